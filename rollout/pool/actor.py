"""RolloutWorker as a Ray actor: what it replies, and how it is while it does."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import ray

from policies.weights import Bucket, checksum
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

    def take(self, version: int, refs: Sequence[Any]) -> Held:
        """set_weights, with the buckets fetched one after the other from the object store."""
        return Held(checksum=self.set_weights(version, (ray.get(ref) for ref in refs)), vitals=self.vitals())

    def held(self) -> Held:
        """The weights that this worker holds by now; nothing else may be asked of it meanwhile."""
        return Held(checksum=checksum(bucket.sha256 for bucket in self.buckets()), vitals=self.vitals())

    def offer(self, checkpoint: Path) -> list[str]:
        """SHA-256 of each bucket of a checkpoint's weights, which this worker then holds; `bucket` hands them out."""
        self.load_checkpoint(checkpoint)
        return [bucket.sha256 for bucket in self.buckets()]

    def bucket(self, place: int) -> Bucket:
        """One bucket of the weights that this worker holds."""
        return next(islice(self.buckets(), place, None))

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
