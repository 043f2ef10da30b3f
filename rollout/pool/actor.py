"""RolloutWorker as a Ray actor: what it replies, how it is while it does, and how weights reach it."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import ray
import torch

from policies.checksums import sha256_of
from policies.weights import Bucket, BucketShape, bucket_checksum
from rollout.pool import broadcast
from rollout.pool.stored import StoredBucket, fetched
from rollout.records import Group
from rollout.worker import RolloutWorker, Unit, WorkerSettings


@dataclass(frozen=True)
class Vitals:
    """A worker's process at its last word: what is left to tell when it dies."""

    process_id: int
    node_id: str
    """Ray's, in hex."""
    address: str
    """IP address of the node."""
    memory_bytes: int
    """Resident memory of the process."""
    available_bytes: int
    """What its machine could still give."""


@dataclass(frozen=True)
class Reply:
    """A unit's groups, and what happened on the way."""

    vitals: Vitals
    groups: list[Group]
    warnings: tuple[str, ...] = ()
    """Warnings of rewards since the last reply."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Answers that rewards left out, by reward, since the last reply."""


@dataclass(frozen=True)
class Held:
    """The weights that a worker has, hashed just now from its own parameters."""

    vitals: Vitals
    checksum: str
    sha256: str | None = None
    """SHA-256 of all bytes; None where nobody asked for it."""
    num_buckets: int = 0
    """Buckets in which it can hand them out; 0 where they were only proved."""


@dataclass(frozen=True)
class Greeting:
    """A worker that is there."""

    vitals: Vitals


@dataclass(frozen=True)
class NotReceived:
    """A delivery that broke off; the worker holds no weights until the next one."""

    vitals: Vitals
    why: str


class _Warnings(logging.Handler):
    """Keeps what is logged until it is fetched: Ray shows the driver nothing of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.kept.append(self.format(record))


class PoolActor(RolloutWorker):
    """RolloutWorker as Ray calls it, from several threads at once where a reward runs in processes."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        super().__init__(settings, name)
        self._warnings, self._replied, self._replying = _Warnings(), Counter[str](), Lock()
        logging.getLogger("rewards").addHandler(self._warnings)
        self._receiving: broadcast.Group | None = None
        self._handed_out: Iterator[Bucket] = iter(())
        self._next_bucket, self._handing_out = 0, Lock()

    def reply(self, unit: Unit, version: int) -> Reply | Held:
        """`answer`, with what the driver should hear of it.

        The weights held where they are not of this version, as in a process that restarted unnoticed, or where they
        changed since they arrived and nothing sensible can be computed with them.
        """
        if version != self._version:
            return self.held()
        try:
            groups = self.answer(unit, version)
        except RuntimeError:
            held = self.held()
            if held.checksum == self._checksum:
                raise
            return held
        with self._replying:
            warnings, self._warnings.kept = self._warnings.kept, []
            skipped = Counter(self.scorer.skipped) - self._replied
            self._replied += skipped
        return Reply(self.vitals(), groups, tuple(warnings), skipped)

    def greet(self) -> Greeting:
        """That it is there."""
        return Greeting(self.vitals())

    def take(self, version: int, refs: Sequence[Any], strong: bool = False) -> Held:
        """set_weights, with the buckets fetched one after the other from the object store.

        strong: whether to take SHA-256 of what it then holds, too.
        """
        return self._held_after(version, fetched(refs), strong)

    def receive(
        self, version: int, meeting: broadcast.Meeting, member: int, shapes: Sequence[BucketShape], strong: bool
    ) -> Held | NotReceived:
        """set_weights, with the buckets that a group's sender broadcasts."""
        try:
            if self._receiving is None or self._receiving.meeting != meeting:
                self._leave()
                self._receiving = broadcast.join(meeting, member, torch.device(self.device))
            return self._held_after(version, self._receiving.receive(shapes), strong)
        except broadcast.BrokenGroupError as error:
            self._leave()
            return NotReceived(self.vitals(), str(error))

    def _held_after(self, version: int, buckets: Iterable[Bucket], strong: bool) -> Held:
        checksum = self.set_weights(version, buckets)
        sha256 = sha256_of(bucket.data for bucket in self.buckets()) if strong else None
        return Held(self.vitals(), checksum, sha256, self.num_buckets())

    def _leave(self) -> None:
        if self._receiving is not None:
            self._receiving.close()
            self._receiving = None

    def held(self) -> Held:
        """The weights that this worker holds by now; nothing else may be asked of it meanwhile."""
        return Held(checksum=self.held_checksum(), vitals=self.vitals())

    def offer(self, checkpoint: Path) -> tuple[int, str]:
        """Number of buckets of a checkpoint's weights, which this worker then holds, and their checksum.

        `bucket` hands them out.
        """
        self.load_checkpoint(checkpoint)
        shapes: list[BucketShape] = []

        def counted() -> Iterator[Bucket]:
            for bucket in self.buckets():
                shapes.append(bucket.shape)
                yield bucket

        checksum = bucket_checksum(counted())
        return len(shapes), checksum

    def bucket(self, place: int) -> StoredBucket:
        """One bucket of the weights that this worker holds; cheapest when asked for one after the other."""
        with self._handing_out:
            if place == 0 or place != self._next_bucket:
                self._handed_out = islice(self.buckets(), place, None)
            self._next_bucket = place + 1
            return StoredBucket.of(next(self._handed_out))

    def process_id(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def vitals(self) -> Vitals:
        """This process as it is now."""
        return Vitals(
            process_id=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),
            memory_bytes=psutil.Process().memory_info().rss,
            available_bytes=psutil.virtual_memory().available,
        )
