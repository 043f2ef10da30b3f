"""Rollout workers as Ray actors: work handed out in fixed units, weights checked on arrival, deaths survived.

A worker that dies is restarted by Ray and comes back empty. It is stale until it has taken the current weights and
proved it by its checksum; only then does it get a unit again. The units that it had in hand are answered by whoever is
free, with the same result, since random numbers belong to answers and not to workers.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from policies.weights import Bucket, checksum
from rollout.pool_settings import PoolSettings
from rollout.records import Group
from rollout.worker import RolloutWorker, Unit, WorkerSettings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
"""Pause before a worker that restarts is spoken to again."""


@dataclass(frozen=True)
class WeightRefs:
    """One version of the weights, by reference: buckets in Ray's object store and what they add up to."""

    refs: tuple[Any, ...]
    """Ray references to policies.weights.Bucket, in order."""
    hashes: tuple[str, ...]
    """SHA-256 of each bucket."""

    @property
    def checksum(self) -> str:
        """Checksum of the whole policy."""
        return checksum(self.hashes)


@dataclass(frozen=True)
class _Reply:
    """A unit's groups, and what happened on the way."""

    groups: list[Group]
    warnings: list[str]
    """Of rewards, since the last reply."""
    skipped: Counter[str]
    """Answers that rewards left out, by reward, since the last reply."""


class _Warnings(logging.Handler):
    """Keeps what is logged until it is fetched: Ray shows the driver nothing of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.kept.append(self.format(record))


class _Actor(RolloutWorker):
    """RolloutWorker as Ray calls it, from several threads at once where a reward runs in processes."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        super().__init__(settings, name)
        self._warnings, self._replied, self._replying = _Warnings(), Counter[str](), Lock()
        logging.getLogger("rewards").addHandler(self._warnings)

    def reply(self, unit: Unit, version: int) -> _Reply:
        """`answer`, with what the driver should hear of it."""
        groups = self.answer(unit, version)
        with self._replying:
            warnings, self._warnings.kept = self._warnings.kept, []
            skipped = Counter(self.scorer.skipped) - self._replied
            self._replied += skipped
        return _Reply(groups, warnings, skipped)

    def take(self, version: int, refs: Sequence[Any]) -> str:
        """set_weights, with the buckets fetched one after the other from the object store."""
        return self.set_weights(version, (ray.get(ref) for ref in refs))

    def offer(self, checkpoint: Path) -> list[str]:
        """SHA-256 of each bucket of a checkpoint's weights, which this worker then holds; `bucket` hands them out."""
        self.load_checkpoint(checkpoint)
        return [bucket.sha256 for bucket in self.buckets()]

    def bucket(self, place: int) -> Bucket:
        """One bucket of the weights that this worker holds."""
        return next(islice(self.buckets(), place, None))

    def process_id(self) -> int:
        """Of this actor."""
        return os.getpid()

    def version(self) -> int:
        """Version of the weights that this worker holds; -1 for none."""
        return self._version


class WorkerPool:
    """A few workers that answer units together. Ray must run (rollout/cluster.py)."""

    def __init__(self, settings: PoolSettings, worker: WorkerSettings) -> None:
        self._settings = settings
        # Only slow rewards make it worthwhile to give a worker a unit before it is done with the last one.
        self._units_each = settings.units_in_flight if worker.hosts_rewards else 1
        remote = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=1, num_gpus=settings.gpus_per_worker)(_Actor)
        remote = remote.options(max_concurrency=self._units_each)
        self.actors: list[Any] = [remote.remote(worker, f"{k}") for k in range(settings.workers)]
        self._fresh: set[int] = set()
        self._died_at: dict[int, float] = {}
        self._weights: WeightRefs | None = None
        self._version = -1
        self.skipped: Counter[str] = Counter()
        """Answers that rewards left out of their term because they failed, by reward."""

    @property
    def weights(self) -> WeightRefs:
        """The weights that workers hold or must take; raises RuntimeError before the first `set_weights`."""
        if self._weights is None:
            raise RuntimeError("the pool has no weights yet; call set_weights first.")
        return self._weights

    def set_weights(self, weights: WeightRefs, version: int) -> None:
        """Deliver `version` to every worker; raises RuntimeError where one then holds other weights than were sent."""
        self._weights, self._version, self._fresh = weights, version, set()
        refs = {self._send_weights(k): k for k in range(len(self.actors))}
        deaths = 0
        while refs:
            (ref,), _ = ray.wait(list(refs), num_returns=1)
            k = refs.pop(ref)
            try:
                self._accept(k, ray.get(ref))
            except RayActorError as error:
                deaths = self._note_death(k, error, deaths)
                refs[self._send_weights(k)] = k

    def answer(self, units: Iterable[Unit]) -> list[Group]:
        """All groups of all units, in order of units.

        Units go to whoever is free; a unit lost with its worker is asked again.
        """
        work = list(units)
        waiting = deque(range(len(work)))
        results: dict[int, list[Group]] = {}
        # By reference: the worker, and the unit that it is on; None while weights are on their way to it.
        running: dict[Any, tuple[int, int | None]] = {}
        deaths = 0
        while len(results) < len(work):
            self._hand_out(work, waiting, running)
            (ref,), _ = ray.wait(list(running), num_returns=1)
            k, done = running.pop(ref)
            try:
                if done is None:
                    self._accept(k, ray.get(ref))
                else:
                    results[done] = self._groups(k, ref)
            except RayActorError as error:
                deaths = self._note_death(k, error, deaths)
                # All that the worker had in hand is lost with it.
                in_hand = [done, *(unit for worker, unit in running.values() if worker == k)]
                waiting.extendleft(unit for unit in in_hand if unit is not None)
                running = {other: task for other, task in running.items() if task[0] != k}
        return [group for unit in range(len(work)) for group in results[unit]]

    def checkpoint_weights(self, checkpoint: Path) -> WeightRefs:
        """The weights of a Hugging Face folder by reference, for `set_weights`; worker 0 reads them."""
        hashes = ray.get(self.actors[0].offer.remote(checkpoint))
        # As results of calls the buckets belong to the driver, and outlive the worker that made them.
        refs = tuple(self.actors[0].bucket.remote(place) for place in range(len(hashes)))
        return WeightRefs(refs, tuple(hashes))

    def process_ids(self) -> list[int]:
        """Process of each worker, for people and for tests of faults."""
        return ray.get([worker.process_id.remote() for worker in self.actors])

    def versions(self) -> list[int]:
        """Version of the weights that each worker holds; -1 for none."""
        return ray.get([worker.version.remote() for worker in self.actors])

    def close(self) -> None:
        """End the workers, and say how many answers rewards left out."""
        for name, times in self.skipped.items():
            log.warning("reward %s failed on %d answers, which were left out of its term", name, times)
        for worker in self.actors:
            ray.kill(worker)

    def _hand_out(self, work: Sequence[Unit], waiting: deque[int], running: dict[Any, tuple[int, int | None]]) -> None:
        """Give weights to workers that lack them, units to the others; who has least in hand is served first."""
        in_hand = Counter(k for k, _ in running.values())
        for k in range(len(self.actors)):
            if k not in self._fresh and not in_hand[k]:
                running[self._send_weights(k)] = (k, None)
        free = [k for level in range(self._units_each) for k in sorted(self._fresh) if in_hand[k] <= level]
        for k in free[: len(waiting)]:
            unit = waiting.popleft()
            running[self.actors[k].reply.remote(work[unit], self._version)] = (k, unit)

    def _groups(self, k: int, ref: Any) -> list[Group]:
        """What a worker answered; raises ValueError or OSError, such as a reward's, as the worker raised it."""
        try:
            reply: _Reply = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError):
                raise error.cause from None
            raise
        for warning in reply.warnings:
            log.warning("rollout worker %d: %s", k, warning)
        self.skipped += reply.skipped
        return reply.groups

    def _send_weights(self, k: int) -> Any:
        # In a list, so that Ray passes references and the worker fetches one bucket at a time.
        return self.actors[k].take.remote(self._version, list(self.weights.refs))

    def _accept(self, k: int, held: str) -> None:
        if held != self.weights.checksum:
            raise RuntimeError(
                f"worker {k} reports checksum {held[:12]} after taking version {self._version}, the learner's is "
                f"{self.weights.checksum[:12]}; its answers would be another policy's. Check that both load the "
                "same checkpoint."
            )
        self._fresh.add(k)
        self._died_at.pop(k, None)

    def _note_death(self, k: int, error: RayActorError, deaths: int) -> int:
        """Count a death of worker `k`; one that is already on its way back is given time."""
        if k not in self._fresh and k in self._died_at:
            waited = time.monotonic() - self._died_at[k]
            if waited > self._settings.restart_seconds:
                raise RuntimeError(
                    f"rollout worker {k} has not come back for {waited:.0f} s: {error}. Look for lack of memory, "
                    "or raise pool.restart_seconds."
                ) from error
            time.sleep(_RETRY_SECONDS)
            return deaths
        self._fresh.discard(k)
        self._died_at[k] = time.monotonic()
        log.warning("rollout worker %d died (%s); it restarts and takes version %d first", k, error, self._version)
        if deaths >= self._settings.max_deaths:
            raise RuntimeError(
                f"rollout workers died {deaths + 1} times in one call, the last one being worker {k}: {error}. Look "
                "for lack of memory, or raise pool.max_deaths."
            ) from error
        return deaths + 1
