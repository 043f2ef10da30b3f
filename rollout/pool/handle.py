"""What the driver keeps of the workers of a pool and of their work.

Versions of the weights, batches of units and the request for each of them, the task that a worker has in hand, and the
handle of a worker: what it holds, what it has in hand, when it was last heard.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray

from policies.weights import BucketShape
from rollout.pool.actor import Vitals
from rollout.pool.broadcast import Meeting
from rollout.pool.source import Broadcast
from rollout.pool.stored import WeightRefs
from rollout.records import Group
from rollout.worker import Unit


@dataclass(frozen=True)
class WeightVersion:
    """Weights under the number that answers carry."""

    number: int
    weights: WeightRefs | Broadcast

    @property
    def key(self) -> tuple[int, str]:
        """Number and checksum: a step's weights and their running average share the number."""
        return self.number, self.weights.checksum


class Batch:
    """Units asked together, all of one version of the weights, and the answers so far."""

    def __init__(self, units: Iterable[Unit], weights: WeightVersion, verify_every: int) -> None:
        self.units, self.weights = list(units), weights
        self.results: dict[int, list[Group]] = {}
        """Groups by place of their unit."""
        self.unproved: set[int] = set()
        """Places in `results` whose worker has yet to prove that it still holds the weights."""
        self.verified = verify_every > 0 and any(unit.step % verify_every == 0 for unit in self.units)
        """Whether answers count only when that is proved."""

    @property
    def done(self) -> bool:
        """Whether every unit is answered for good."""
        return len(self.results) == len(self.units) and not self.unproved

    @property
    def requests(self) -> list["Request"]:
        """One request per unit, in order."""
        return [Request(self, place) for place in range(len(self.units))]

    @property
    def groups(self) -> list[Group]:
        """All groups, in order of units."""
        return [group for place in range(len(self.units)) for group in self.results[place]]


@dataclass(frozen=True)
class Request:
    """The request to answer one unit of a batch."""

    batch: Batch
    """The batch that the unit belongs to."""
    place: int
    """Place of the unit in it, from 0."""

    @property
    def unit(self) -> Unit:
        """What is asked."""
        return self.batch.units[self.place]

    def settle(self, groups: list[Group]) -> None:
        """Enter the answer."""
        self.batch.results[self.place] = groups
        if self.batch.verified:
            self.batch.unproved.add(self.place)

    def forget(self) -> None:
        """Take an answer back that was not proved."""
        self.batch.results.pop(self.place, None)
        self.batch.unproved.discard(self.place)


class Doing(Enum):
    """What a worker may be at, in words for a report."""

    STARTING = "starting"
    TAKING = "taking"
    PROVING = "proving"
    ANSWERING = "answering"


@dataclass(frozen=True)
class Task:
    """Something that a worker has in hand."""

    doing: Doing
    weights: WeightVersion | None = None
    """The weights that it takes, or must hold; None where it only starts."""
    request: Request | None = None
    """The unit that it answers; None where it answers none."""
    since: float = field(default_factory=time.monotonic)
    """When it was handed out, on the clock of time.monotonic."""

    @property
    def lost(self) -> list[Request]:
        """What must be asked again where it came to nothing."""
        return [] if self.request is None else [self.request]

    def __str__(self) -> str:
        """In words, for a report."""
        seconds = f"for {time.monotonic() - self.since:.1f} s"
        if self.weights is None:
            return f"{self.doing.value} {seconds}"
        version = self.weights.number
        if self.request is None:
            return f"{self.doing.value} weights version {version} {seconds}"
        unit = self.request.unit
        places = ", ".join(str(position) for position in unit.positions)
        return f"step {unit.step} of split {unit.split}, positions {places}, version {version}, {seconds}"


class WorkerHandle:
    """What the driver knows of one worker of the pool, and how it speaks to it."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.holds: tuple[int, str] | None = None
        """Key of the WeightVersion that it proved to hold; None for none, as after a death."""
        self.num_buckets = 0
        """Buckets in which it can hand out what it holds."""
        self.tasks: dict[Any, Task] = {}
        """What it has in hand, by Ray's reference to the answer."""
        self.unproved: list[Request] = []
        """What it answered and must yet prove, all of one batch."""
        self.wrong = 0
        """Times that it held other weights than were sent, since they were last set."""
        self.vitals: Vitals | None = None
        """State of its process at its last word; None before the first."""
        self.died_at: float | None = None
        """When it died, until it is back; on the clock of time.monotonic."""
        self.told_seconds = 0.0
        """For how long it is known not to have started."""
        self._heard_at = 0.0
        self._spared_until = 0.0

    def greet(self) -> None:
        """Have it say that it is there."""
        self.tasks[self.actor.greet.remote()] = Task(Doing.STARTING)

    def take(self, weights: WeightVersion, refs: Sequence[Any]) -> None:
        """Have it take weights from the object store."""
        # In a list, so that Ray passes references and the worker fetches one bucket at a time.
        ref = self.actor.take.remote(weights.number, list(refs), weights.weights.sha256 is not None)
        self.tasks[ref] = Task(Doing.TAKING, weights)

    def receive(self, number: int, meeting: Meeting, member: int, shapes: Sequence[BucketShape], strong: bool) -> Any:
        """Have it take weights from the sender of a group, as version `number`; Ray's reference to its word.

        `is_taking` notes it once the sender has said what was sent.
        """
        return self.actor.receive.remote(number, meeting, member, list(shapes), strong)

    def is_taking(self, ref: Any, weights: WeightVersion) -> None:
        """Note what `receive` gave it to do."""
        self.tasks[ref] = Task(Doing.TAKING, weights)

    def offer_buckets(self) -> list[Any]:
        """Ray's references to the buckets of the weights that it holds; it packs them when it comes to it."""
        return [self.actor.bucket.remote(place) for place in range(self.num_buckets)]

    def answer(self, request: Request) -> None:
        """Have it answer a unit, with the weights that it holds."""
        weights = request.batch.weights
        self.tasks[self.actor.reply.remote(request.unit, weights.number)] = Task(Doing.ANSWERING, weights, request)

    def prove(self, weights: WeightVersion) -> None:
        """Have it hash the weights that it holds."""
        self.tasks[self.actor.held.remote()] = Task(Doing.PROVING, weights)

    def heard(self, vitals: Vitals) -> None:
        """Note a sign of life."""
        self.vitals, self.died_at, self._heard_at = vitals, None, time.monotonic()

    def excuse(self) -> None:
        """Begin to count its silence anew."""
        self._heard_at = time.monotonic()

    def drop(self) -> list[Request]:
        """Take everything from it, and its word that it holds any weights; returns the units to be asked again."""
        again = [*self.unproved, *(request for task in self.tasks.values() for request in task.lost)]
        self.holds, self.tasks, self.unproved = None, {}, []
        return again

    def spare(self, seconds: float) -> None:
        """Leave it alone for a while."""
        self._spared_until = time.monotonic() + seconds

    @property
    def spared_seconds(self) -> float:
        """How long it is still to be left alone."""
        return max(0.0, self._spared_until - time.monotonic())

    @property
    def silent_seconds(self) -> float:
        """How long it has had something in hand without a word; 0 where it has nothing."""
        if not self.tasks:
            return 0.0
        # A second task waits for the first, so its own time begins with the word before.
        return time.monotonic() - max(self._heard_at, min(task.since for task in self.tasks.values()))

    @property
    def dead_seconds(self) -> float:
        """How long ago it died; 0 where it lives."""
        return 0.0 if self.died_at is None else time.monotonic() - self.died_at

    @property
    def is_serving(self) -> bool:
        """Whether its process has said something, and has not died since."""
        return self.vitals is not None and self.died_at is None

    def was_replaced_by(self, vitals: Vitals) -> bool:
        """Whether `vitals` are another process's than those before, though no death is known."""
        if self.vitals is None or self.died_at is not None:
            return False
        return (self.vitals.node_id, self.vitals.process_id) != (vitals.node_id, vitals.process_id)

    @property
    def place(self) -> str:
        """Address of the worker's node, as far as known."""
        return "a node unknown" if self.vitals is None else self.vitals.address

    def kill(self) -> None:
        """End its process; Ray starts another."""
        ray.kill(self.actor, no_restart=False)
