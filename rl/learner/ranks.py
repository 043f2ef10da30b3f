"""The ranks of a learner as Ray actors: asked together, ended together as soon as one dies, and told apart by name.

What a rank answers is a Reply, so that an error of its own reaches the driver as it was raised. The ranks of a refiner
are asked the same way (rl/refiner/train.py).
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import ray
import torch
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.config.learner import RankPlace
from rollout import cluster, disk


@dataclass(frozen=True)
class Reply:
    """What a rank answers."""

    value: Any
    memory_gib: float
    """Resident memory of its process when it answered."""


def reply(value: Any) -> Reply:
    """A reply of this process, with the memory that it has now."""
    return Reply(value, psutil.Process().memory_info().rss / 2**30)


class Rank(Protocol):
    """One rank of a training, of a policy or of a refiner: what it does whatever it trains."""

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on below folder/tag."""
        ...

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`, by whatever number of ranks."""
        ...

    def save_policy(self, folder: Path) -> None:
        """Write what is trained."""
        ...


class RankActor:
    """A rank as Ray calls it; what it does beyond this stands in the actor of each kind."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def begin(self) -> Reply:
        """Where this rank runs, for people."""
        return reply(f"process {os.getpid()} on {cluster.node_address()}")

    def save(self, folder: Path, tag: str) -> Reply:
        """Rank.save."""
        self._rank.save(folder, tag)
        return reply(None)

    def load(self, folder: Path, tag: str) -> Reply:
        """Rank.load."""
        self._rank.load(folder, tag)
        return reply(None)

    def save_policy(self, folder: Path) -> Reply:
        """Rank.save_policy."""
        self._rank.save_policy(folder)
        return reply(None)


def alone() -> RankPlace:
    """The place of a rank that is the only one, in this process, on the GPU that it sees first where it sees any."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return RankPlace(port=probe.getsockname()[1], device=device)


_NEIGHBOUR_SECONDS = 10.0
"""How long after an error of one rank another is given to be found dead: its end breaks their collectives first."""
_REASON_LENGTH = 170
"""Length of the last line that Ray has to say of a death; after that follow its guesses."""
_DEATHS = (RayActorError, OutOfMemoryError)
STORE_FULL = (ObjectStoreFullError, OutOfDiskError)


class RankGroup:
    """All ranks of one training. Ray must run (rollout/cluster.py).

    `ask` raises ChildProcessError where a rank dies in it, and what a rank itself raises of ValueError, OSError and
    FloatingPointError; after either, all ranks have been ended.
    """

    kept = "this policy"
    """What `save_policy` writes, for an error of the disk."""

    def __init__(
        self,
        actor: type,
        settings: Any,
        num: int,
        gpus_each: float = 0.0,
        places: PlacementGroup | None = None,
        patience: float = cluster.PATIENCE_SECONDS,
    ) -> None:
        """actor: a class made of (settings, RankPlace) whose methods answer a Reply; places: a bundle per rank
        (cluster.place); patience: seconds of waiting for a rank after which it is logged."""
        self._patience = patience
        # Ranks that otherwise share cards with workers get whole ones where there are none.
        self._group = places or cluster.together(num, math.ceil(gpus_each))
        bundles = [PlacementGroupSchedulingStrategy(self._group, k) for k in range(num)]
        host, port = self._address(bundles[0])
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus_each)(actor)
        device = "cuda" if gpus_each else "cpu"
        self.actors: list[Any] = [
            remote.options(scheduling_strategy=bundle).remote(settings, RankPlace(k, num, host, port, device))
            for k, bundle in enumerate(bundles)
        ]
        self._begun = [rank.begin.remote() for rank in self.actors]
        self._names = ["its process had not begun"] * num
        self._memory_gib = [0.0] * num
        self._last_task = "none"

    def process_ids(self) -> list[int]:
        """Process of each rank, for people and for tests of faults."""
        self._await_begin()
        return [int(name.split()[1]) for name in self._names]

    def ask(self, task: str, calls: Sequence[Any]) -> list[Any]:
        """What every rank answers to `task`, in their order; calls: the references of one call a rank."""
        self._await_begin()
        values = self._answers(task, calls)
        self._last_task = task
        return values

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        with writing("this checkpoint", folder / tag):
            self.ask("save", [rank.save.remote(folder.absolute(), tag) for rank in self.actors])

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        self.ask("load", [rank.load.remote(folder.absolute(), tag) for rank in self.actors])

    def save_policy(self, folder: Path) -> None:
        """Write what is trained into a folder."""
        with writing(self.kept, folder):
            self.ask("save_policy", [rank.save_policy.remote(folder.absolute()) for rank in self.actors])

    def close(self) -> None:
        """End the ranks."""
        for rank in self.actors:
            ray.kill(rank)
        remove_placement_group(self._group)

    def _address(self, bundle: PlacementGroupSchedulingStrategy) -> tuple[str, int]:
        """Where the ranks meet: the node of rank 0, which on a cluster need not be the driver's."""
        if cluster.nodes_of(self._group) == {ray.get_runtime_context().get_node_id()}:
            return cluster.free_address()  # without the seconds that a process of its own takes to start
        find = ray.remote(num_cpus=0)(cluster.free_address).options(scheduling_strategy=bundle)
        return ray.get(cluster.first_done([find.remote()], "an address for learner rank 0", self._patience))

    def _await_begin(self) -> None:
        if self._begun:
            begun, self._begun = self._begun, []
            self._names = self._answers("begin", begun)

    def _answers(self, task: str, calls: Sequence[Any]) -> list[Any]:
        waiting, values = {call: k for k, call in enumerate(calls)}, {}
        while waiting:
            names = ", ".join(map(str, waiting.values()))
            ref = cluster.first_done(list(waiting), f"`{task}` of learner rank {names}", self._patience)
            k = waiting.pop(ref)
            try:
                reply: Reply = ray.get(ref)
            except _DEATHS as error:
                raise self._ended(_unbuilt(error) or self._death(k, task, error)) from None
            except RayTaskError as error:
                raise self._ended(self._neighbour_death(task, waiting) or _own_error(error)) from None
            values[k], self._memory_gib[k] = reply.value, reply.memory_gib
        return [values[k] for k in range(len(calls))]

    def _neighbour_death(self, task: str, waiting: dict[Any, int]) -> Exception | None:
        """The death behind another rank's error, if there is one."""
        until = time.monotonic() + _NEIGHBOUR_SECONDS
        waiting = dict(waiting)
        while waiting and (done := ray.wait(list(waiting), timeout=max(0.0, until - time.monotonic()))[0]):
            k = waiting.pop(done[0])
            try:
                ray.get(done[0])
            except _DEATHS as error:
                return self._death(k, task, error)
            except RayTaskError:
                continue  # as broken as the first
        return None

    def _death(self, k: int, task: str, error: RayError) -> ChildProcessError:
        reason = str(error).strip().splitlines()[-1][:_REASON_LENGTH]
        return ChildProcessError(
            f"learner rank {k} ({self._names[k]}, {self._memory_gib[k]:.2f} GiB when it last answered) died in "
            f"`{task}`; the last task that all ranks finished was `{self._last_task}`. What was learned since the last "
            "checkpoint is lost with it: go on from there by --resume (demo, sft and refine do so by themselves); if "
            f"it dies again, look for lack of memory. Ray says: {reason}"
        )

    def _ended(self, error: Exception) -> Exception:
        """End the other ranks, which would wait for ever, and give back the error."""
        self.close()
        return error


def _unbuilt(error: RayError) -> ValueError | None:
    """A user's mistake that a rank found as it was built, of which Ray hands on the text alone; None for all else."""
    if not (isinstance(error, RayActorError) and error.actor_init_failed):
        return None
    kind, _, text = str(error).strip().splitlines()[-1].partition(": ")
    return ValueError(text) if kind == "ValueError" else None


def _own_error(error: RayTaskError) -> Exception:
    """What a rank raised, without Ray around it where it is a user's to mend."""
    if isinstance(error.cause, STORE_FULL):
        return full_store(error.cause)
    return error.cause if isinstance(error.cause, ValueError | OSError | FloatingPointError) else error


def full_store(error: RayError) -> OSError:
    """What to say where Ray has no room for an object."""
    reason = str(error).strip().splitlines()[0]
    return OSError(
        f"Ray's object store is full, and what it puts on disk finds no room there either ({reason[:_REASON_LENGTH]}). "
        "Raise ray.object_store_gb (on a cluster, `ray start --object-store-memory`) or free the disk of Ray's "
        "temporary folder, then go on by --resume."
    )


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Around calls in which ranks write: torch and safetensors raise errors of their own where a disk refuses."""
    try:
        yield
    except ChildProcessError:
        raise
    except RayTaskError as error:
        raise disk.refused(what, path, str(error.cause).strip().partition("\n")[0]) from error
    except OSError as error:
        raise disk.refused(what, path, error.strerror, error.errno) from error
