"""Starting Ray or joining a cluster that runs; what its nodes have, and where on them a run's actors lie.

Learner ranks lie in one placement group, packed, since they talk to each other in every pass. Workers lie in none: a
bundle of a group would be lost with its node, while a worker may come back on any node that is left. Only a worker that
shares the card of a rank shares the rank's bundle as well, which reserves the whole card: Ray fills a GPU before it
begins the next, and would put ranks beside ranks.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn, PlacementGroupSchedulingStrategy

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""Waiting longer than this is logged, and again after as long."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Memory of the object store for a run that doesn't say what it needs."""
_GROUP_SECONDS = 300.0
"""How long other jobs of a cluster may take to make room for the learner's ranks."""
_LONGEST_SOCKET = "ray/session_2026-01-31_23-59-59_999999_{pid}/sockets/plasma_store"
"""Longest socket that Ray makes below its folder for temporary files; it holds the time and the process id."""
_LARGEST_PID = 2**22
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a socket that the system takes."""


@dataclass(frozen=True)
class Share:
    """Actors of one kind, each of which reserves a CPU and `gpus_each` GPUs."""

    what: str
    """For people, such as "learner ranks"."""
    num: int
    gpus_each: float = 0.0

    @property
    def gpus(self) -> float:
        """GPUs of all of them together."""
        return self.num * self.gpus_each

    def __str__(self) -> str:
        gpus = f" of {self.gpus_each:g} GPU" if self.gpus_each else ""
        return f"{self.num} {self.what}{gpus}"


@dataclass(frozen=True)
class Places:
    """Where a run's actors lie."""

    ranks: PlacementGroup
    """A bundle for each learner rank, in their order."""
    workers: list[Any]
    """Scheduling strategy of each rollout worker, in their order."""


def start(
    address: str | None, num_cpus: int, num_gpus: float = 0.0, object_store_bytes: int = OBJECT_STORE_BYTES
) -> None:
    """Join the cluster at `address`, or start Ray in this machine's own memory with `num_cpus` places for actors.

    Does nothing where Ray runs in this process already. The places are ours to count: they need not be the machine's
    cores. On a cluster, warns of nodes whose object store is smaller than `object_store_bytes`. Raises ValueError where
    fewer GPUs are there than are asked for, or Ray's sockets cannot lie where they would.
    """
    if not ray.is_initialized() and address is not None:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        _warn_of_small_stores(object_store_bytes)
    elif not ray.is_initialized():
        refuse_unfit_temporary_folder()
        # Ray would run them at niceness 15, last of all on a machine that anybody else works on.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # glibc then asks for pages of 2 MiB: arrays of a pass on CPUs are larger than what a core's table of small
        # pages reaches, all the more so in a virtual machine.
        os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        # Else an actor that reserves no GPU sees all of them, and libraries would take the first.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        ray.init(
            address="local",  # else Ray joins whatever cluster was last started on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            object_store_memory=object_store_bytes,
        )
    found = ray.cluster_resources().get("GPU", 0.0)
    if found < num_gpus:
        raise ValueError(
            f"learner.gpus_per_rank and pool.gpus_per_worker ask for {num_gpus:g} GPUs, and Ray found {found:g}; "
            "its actors would wait for ever. Lower them, or join a larger cluster by ray.address."
        )


def refuse_unfit_temporary_folder() -> None:
    """Raise ValueError where Ray, started by this process, could not make its sockets, as in a folder too deep.

    Ray takes RAY_TMPDIR, else TMPDIR, else /tmp.
    """
    setting = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if setting is None:
        return
    folder = os.environ[setting]
    if not os.path.isabs(folder):
        raise ValueError(
            f"{setting} is {folder!r}, but Ray needs an absolute path; set RAY_TMPDIR to one, such as /tmp."
        )
    longest = len(os.fsencode(os.path.join(folder, _LONGEST_SOCKET.format(pid=os.getpid()))))
    if longest > _SOCKET_BYTES:
        fits = _SOCKET_BYTES - len(os.path.join("/", _LONGEST_SOCKET.format(pid=_LARGEST_PID)))
        raise ValueError(
            f"{setting} is {folder}, which is too long for Ray: its sockets there would have paths of {longest} bytes, "
            f"and no path of a socket may have more than {_SOCKET_BYTES}. Set RAY_TMPDIR to a folder whose path has at "
            f"most {fits} bytes, such as RAY_TMPDIR=/tmp; TMPDIR may stay as it is."
        )


def _warn_of_small_stores(needed_bytes: int) -> None:
    for node in ray.nodes():
        found = node["Resources"].get("object_store_memory", 0.0)
        if node["Alive"] and found < needed_bytes:
            log.warning(
                "node %s has an object store of %.2f GiB, but weights and answers on their way take %.2f; Ray will put "
                "the rest on disk, which is slow. Give `ray start --object-store-memory` more there.",
                node["NodeManagerAddress"],
                found / 2**30,
                needed_bytes / 2**30,
            )


def stop() -> None:
    """Shut down what `start` started."""
    ray.shutdown()


def place(placement: str, ranks: Share, workers: Share) -> Places:
    """Reserve the ranks' places and find the workers' (RaySettings.placement says which), before any of them starts.

    Raises ValueError with the arithmetic where they don't fit on the cluster's nodes.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    _refuse_too_few([ranks, workers], nodes, "the cluster")
    group = together(ranks.num, ranks.gpus_each)
    if placement == "shared":
        return Places(group, ["DEFAULT"] * workers.num)
    taken = nodes_of(group)
    left = [node for node in nodes if node["NodeID"] not in taken]
    try:
        _refuse_too_few([workers], left, f"what ray.placement 'apart' leaves of {len(nodes)} nodes, {len(left)},")
    except ValueError:
        remove_placement_group(group)
        raise
    return Places(group, [NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*sorted(taken))})] * workers.num)


def colocate(ranks: Share, workers: Share) -> Places:
    """Reserve a bundle for each rank and its worker, of a whole GPU where they work on one: both see the same card.

    Raises ValueError with the arithmetic where the bundles don't fit on the cluster's nodes.
    """
    cards = 1.0 if workers.gpus_each else 0.0
    bundle = {"CPU": 2.0} | ({"GPU": cards} if cards else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(node.get(kind, 0.0) // need for kind, need in bundle.items())) for node in nodes)
    if room < workers.num:
        need = " and ".join(f"{need:g} {kind}s" if need > 1 else f"1 {kind}" for kind, need in bundle.items())
        raise ValueError(
            f"{workers.num} pairs of a rank and a worker need {need} each, on one node, but the {len(nodes)} nodes of "
            f"the cluster have room for {room}; lower learner.ranks and pool.workers, or add nodes."
        )
    group = _reserved([bundle] * workers.num, f"{workers.num} pairs of a learner rank and a rollout worker")
    return Places(group, [PlacementGroupSchedulingStrategy(group, k) for k in range(workers.num)])


def _refuse_too_few(shares: Sequence[Share], nodes: Sequence[dict[str, Any]], where: str) -> None:
    asked = {"CPU": float(sum(share.num for share in shares)), "GPU": sum(share.gpus for share in shares)}
    for kind, need in asked.items():
        found = sum(node["Resources"].get(kind, 0.0) for node in nodes)
        if found < need:
            raise ValueError(
                f"{' and '.join(map(str, shares))} need {need:g} {kind}s (every actor counts as one CPU), but {where} "
                f"has {found:g}; lower learner.ranks, pool.workers or the GPUs of each, or add nodes."
            )


def together(num: int, gpus_each: float) -> PlacementGroup:
    """Places for `num` learner ranks of one CPU and some GPUs each, on as few nodes as there is room on.

    Raises ValueError where the cluster hasn't had room for five minutes.
    """
    bundle = {"CPU": 1.0} | ({"GPU": gpus_each} if gpus_each else {})
    return _reserved([bundle] * num, f"{num} learner ranks of {bundle}")


def _reserved(bundles: list[dict[str, float]], what: str) -> PlacementGroup:
    """A placement group once there is room for it; what: for people."""
    group = placement_group(bundles, strategy="PACK")
    started = time.monotonic()
    ready = group.ready()
    while not ray.wait([ready], timeout=PATIENCE_SECONDS)[0]:
        waited = time.monotonic() - started
        log.warning("for %.0f s the cluster has had no room for %s", waited, what)
        if waited > _GROUP_SECONDS:
            remove_placement_group(group)
            raise ValueError(
                f"the cluster has had no room for {what} for {waited:.0f} s; free what other jobs hold, lower "
                "learner.ranks or learner.gpus_per_rank, or add nodes."
            )
    return group


def nodes_of(group: PlacementGroup) -> set[str]:
    """Ids of the nodes that a group lies on."""
    return set(placement_group_table(group)["bundles_to_node_id"].values())


def node_address() -> str:
    """Address of the node that this process runs on."""
    return ray.util.get_node_ip_address()


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free on it now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return node_address(), probe.getsockname()[1]


def stored(value: Any) -> Any:
    """A reference to a value that lies in this node's object store."""
    return ray.put(value)


def first_done(refs: Sequence[Any], waited_for: str, patience: float = PATIENCE_SECONDS) -> Any:
    """The first of some Ray references that there is an answer to; every `patience` seconds logs what is waited for."""
    started = time.monotonic()
    while not (done := ray.wait(list(refs), num_returns=1, timeout=patience)[0]):
        log.warning("for %.0f s: waiting for %s", time.monotonic() - started, waited_for)
    return done[0]
