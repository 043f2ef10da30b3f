"""Weights from a learner to its workers: by the object store with SHA-256 on both sides, and by both transports.

One process holds a model of layers of equal size, several take it, each in a process of its own, all on this machine:
gloo then goes over the loopback interface, where a cluster has its network and cards have NCCL.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from rich.table import Table
from torch import nn

from policies.weights import (
    BucketShape,
    bucket_names,
    held_checksum,
    held_sha256,
    load_bucket,
    make_bucket,
    shape_of,
)
from rollout import cluster
from rollout.pool import broadcast, stored
from rollout.pool.broadcast import Meeting
from rollout.pool.sender import WeightSender
from rollout.pool.source import Sent
from rollout.pool.stored import WeightRefs

_MIB = 2**20
_CPU = torch.device("cpu")
WAYS = ("sha256", "object_store", "broadcast")
"""sha256: through the store, hashed on both sides, taken when all is there; then pool.transport's two."""


@dataclass(frozen=True)
class Size:
    """What is sent to whom."""

    mib: int = 512
    """Size of the model, MiB of bfloat16."""
    layer_mib: int = 8
    """Size of each of its layers."""
    workers: int = 2


@dataclass
class WayTimed:
    """Deliveries by one way."""

    way: str
    seconds: list[float] = field(default_factory=list)
    """Seconds of each delivery, until the last worker has proved what it holds."""
    parts: list[dict[str, float]] = field(default_factory=list)
    """Seconds of the sender by what they were spent on, where it tells."""

    @property
    def median(self) -> float:
        """Median seconds of a delivery."""
        return statistics.median(self.seconds)


def _model(size: Size, seed: int) -> nn.ParameterList:
    generator = torch.Generator().manual_seed(seed)
    numbers = size.layer_mib * _MIB // 2
    layers = [torch.randn(numbers, generator=generator).to(torch.bfloat16) for _ in range(size.mib // size.layer_mib)]
    return nn.ParameterList(layers).requires_grad_(False)


class _Holder:
    """Who has the weights."""

    def __init__(self, size: Size) -> None:
        torch.set_num_threads(1)
        self._model, self._sender = _model(size, 0), WeightSender(_CPU)

    def shapes(self) -> tuple[BucketShape, ...]:
        """What the buckets hold."""
        return tuple(map(shape_of, bucket_names(self._model)))

    def checksums(self) -> tuple[str, str]:
        """Checksum and SHA-256 of what a receiver should hold."""
        return held_checksum(self._model), held_sha256(self._model)

    def put(self, sha256: bool) -> WeightRefs:
        """The weights in the object store; sha256: hashed on the way."""
        return stored.put(map(make_bucket, bucket_names(self._model)), sha256)

    def meeting(self, receivers: int) -> Meeting:
        """Where a group meets."""
        return self._sender.meeting(receivers)

    def send(self, meeting: Meeting) -> Sent:
        """The weights to a group."""
        return self._sender.send(bucket_names(self._model), meeting, strong=False)


class _Taker:
    """Who takes the weights."""

    def __init__(self, size: Size) -> None:
        torch.set_num_threads(1)
        self._model = _model(size, 1)
        self._group: broadcast.Group | None = None

    def ready(self) -> None:
        """That it is built, and the kernel compiled."""
        held_checksum(self._model)

    def forget(self) -> None:
        """Hold other weights."""
        for parameter in self._model:
            parameter.zero_()

    def take(self, refs: list[Any], sha256: bool) -> str:
        """From the object store; returns the hash of what it then holds."""
        for bucket in stored.fetched(refs):
            load_bucket(self._model, bucket)
        return held_sha256(self._model) if sha256 else held_checksum(self._model)

    def receive(self, meeting: Meeting, member: int, shapes: tuple[BucketShape, ...]) -> str:
        """From a group; returns the checksum of what it then holds."""
        self._group = self._group or broadcast.join(meeting, member, _CPU)
        for bucket in self._group.receive(shapes):
            load_bucket(self._model, bucket)
        return held_checksum(self._model)


class _Deliveries:
    """A holder and its takers, and the ways between them."""

    def __init__(self, size: Size) -> None:
        actor: Any = ray.remote(num_cpus=0)
        self._holder = actor(_Holder).remote(size)
        self._takers = [actor(_Taker).remote(size) for _ in range(size.workers)]
        ray.get([taker.ready.remote() for taker in self._takers])
        self._shapes = ray.get(self._holder.shapes.remote())
        self._checksum, self._sha256 = ray.get(self._holder.checksums.remote())
        self._meeting = ray.get(self._holder.meeting.remote(size.workers))

    def by(self, way: str) -> tuple[float, dict[str, float]]:
        """Seconds of one delivery, and those of the sender by part. Raises RuntimeError where it did not arrive."""
        ray.get([taker.forget.remote() for taker in self._takers])
        began, parts = time.perf_counter(), dict[str, float]()
        if way == "broadcast":
            calls = [
                taker.receive.remote(self._meeting, k, self._shapes) for k, taker in enumerate(self._takers, start=1)
            ]
            parts = ray.get(self._holder.send.remote(self._meeting)).seconds
        else:
            hashed = way == "sha256"
            refs = ray.get(self._holder.put.remote(hashed)).refs
            calls = [taker.take.remote(list(refs), hashed) for taker in self._takers]
        held = set(ray.get(calls))
        seconds = time.perf_counter() - began
        if held != {self._sha256 if way == "sha256" else self._checksum}:
            raise RuntimeError(f"weights sent by {way} did not arrive as they were")
        return seconds, parts


def bench(size: Size, rounds: int = 5) -> Iterator[list[WayTimed]]:
    """All ways in turns, once to warm up and then `rounds` times; yields what was measured so far."""
    cluster.start(None, num_cpus=2, object_store_bytes=4 * size.mib * _MIB)
    deliveries, timed = _Deliveries(size), [WayTimed(way) for way in WAYS]
    for number in range(rounds + 1):
        for each in timed:
            seconds, parts = deliveries.by(each.way)
            if number:
                each.seconds.append(seconds)
                each.parts.append(parts)
        yield timed
    cluster.stop()


def report(size: Size, timed: list[WayTimed]) -> dict[str, Any]:
    """What --json prints: seconds by way, the sender's by part, and how many times as long the other ways took as
    `broadcast` (ratio.object_store and ratio.sha256)."""
    by_way = {each.way: each for each in timed}
    sender = by_way["broadcast"].parts
    return {
        "mib": size.mib,
        "workers": size.workers,
        "seconds": {way: round(each.median, 4) for way, each in by_way.items()},
        "spread": {way: [round(min(each.seconds), 4), round(max(each.seconds), 4)] for way, each in by_way.items()},
        "sender_seconds": {part: round(statistics.median(one[part] for one in sender), 4) for part in sender[0]},
        "ratio": {way: round(by_way[way].median / by_way["broadcast"].median, 3) for way in ("object_store", "sha256")},
    }


def table(size: Size, timed: list[WayTimed]) -> Table:
    """The ways side by side."""
    shown = Table("way", "median s", "least to most", "GiB per second and worker", "times broadcast")
    broadcast_median = timed[-1].median
    for each in timed:
        shown.add_row(
            each.way,
            f"{each.median:.3f}",
            f"{min(each.seconds):.3f} to {max(each.seconds):.3f}",
            f"{size.mib / 1024 / each.median:.2f}",
            f"{each.median / broadcast_median:.2f}",
        )
    return shown
