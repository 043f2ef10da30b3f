"""The dispatcher of a pool: which worker gets which request, and what becomes of it when one dies, hangs or errs.

One thread at a time: WorkerPool sees to that. Timing decides who answers a unit, never what the answer is, since a unit
names its random numbers and the version of the weights.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rollout.pool.actor import Greeting, Held, NotReceived, Reply
from rollout.pool.deaths import cause_of_death, death_report
from rollout.pool.handle import Doing, Request, Task, WeightVersion, WorkerHandle
from rollout.pool.source import Broadcast
from rollout.pool.stored import WeightRefs
from rollout.settings import PoolSettings

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
"""Pause before a worker that restarts is spoken to again."""
_PAUSE_SECONDS = 5.0
"""A look at the workers that is later than this says that the driver itself stood still."""
_TELL_SECONDS = 60.0
"""How often a worker is spoken of that does not start."""


_WHEN = {
    Doing.STARTING: "before",
    Doing.PROVING: "after answering with",
    Doing.TAKING: "after taking",
    Doing.ANSWERING: "in the middle of",
}


class Dispatcher:
    """The workers of a pool, and the requests that wait for one of them."""

    def __init__(self, workers: Sequence[WorkerHandle], settings: PoolSettings, units_each: int) -> None:
        self.workers = list(workers)
        self.waiting: deque[Request] = deque()
        """What nobody has in hand yet, in the order in which it is handed out."""
        self.skipped: Counter[str] = Counter()
        """Answers that rewards left out of their term because they failed, by reward."""
        self._settings, self._units_each = settings, units_each
        self._weights: WeightVersion | None = None
        self._again: WeightRefs | None = None  # of weights that were sent through a group, for who missed them
        self._deaths = 0
        self._looked_at = 0.0

    def set_weights(self, weights: WeightVersion) -> None:
        """Have whoever has nothing else to do take `weights`."""
        self._weights, self._deaths, self._again = weights, 0, None
        for worker in self.workers:
            worker.wrong = 0

    def rest(self) -> None:
        """Have nobody take weights by itself until `set_weights`, and count nobody's weights as held."""
        self._weights = None
        for worker in self.workers:
            worker.holds = None

    @property
    def is_idle(self) -> bool:
        """Whether all that was asked is answered and proved, and nobody who lives has anything in hand."""
        return not self.waiting and not any(w.unproved or (w.tasks and w.is_serving) for w in self.workers)

    def greet(self) -> None:
        """Have all speak up who were never heard."""
        for worker in self.workers:
            if worker.vitals is None and not worker.tasks:
                worker.greet()

    def drop_all(self) -> None:
        """Forget all that was asked."""
        self.waiting.clear()
        for worker in self.workers:
            worker.drop()

    @property
    def in_hand(self) -> list[Any]:
        """Ray's references to all that workers have in hand."""
        return [ref for worker in self.workers for ref in worker.tasks]

    @property
    def spared_seconds(self) -> float | None:
        """How long until a worker may be spoken to again that is left alone now; None where none is."""
        spared = [worker.spared_seconds for worker in self.workers]
        return min((seconds for seconds in spared if seconds), default=None)

    def hand_out(self) -> None:
        """Give everybody something to do; who has least in hand is served first."""
        for level in range(self._units_each):
            for worker in self.workers:
                if len(worker.tasks) == level and not worker.spared_seconds:
                    self._give(worker)

    def _give(self, worker: WorkerHandle) -> None:
        front = self.waiting[0] if self.waiting else None
        weights = self._weights if front is None else front.batch.weights
        proves = bool(worker.unproved) and (front is None or front.batch is not worker.unproved[0].batch)
        if weights is None:
            return
        if front is not None and worker.holds == weights.key and not proves:
            worker.answer(self.waiting.popleft())
        elif not worker.tasks and proves:
            worker.prove(worker.unproved[0].batch.weights)
        elif not worker.tasks and worker.holds != weights.key and not self._arrives(weights):
            worker.take(weights, self._refs_of(weights))

    def _arrives(self, weights: WeightVersion) -> bool:
        """Whether a worker is just taking these weights from a whole group, so that who missed them can soon ask it."""
        if not isinstance(weights.weights, Broadcast) or weights.weights.sent.broken or self._again is not None:
            return False
        if any(worker.is_serving and worker.holds == weights.key for worker in self.workers):
            return False
        return any(
            task.doing is Doing.TAKING and task.weights is not None and task.weights.key == weights.key
            for worker in self.workers
            if worker.is_serving
            for task in worker.tasks.values()
        )

    def _refs_of(self, weights: WeightVersion) -> Sequence[Any]:
        """The buckets of weights by reference; of those sent through a group, from a worker that has them.

        Raises RuntimeError where nobody has them any more.
        """
        held = weights.weights
        if isinstance(held, WeightRefs):
            return held.refs
        for worker in self.workers:
            if worker.is_serving and worker.holds == weights.key:
                return worker.offer_buckets()
        if self._again is None:
            self._again = held.source.refs()
        if self._again.checksum != held.checksum:
            raise RuntimeError(
                f"the weights of version {weights.number} were sent as {held.checksum[:12]} and are now "
                f"{self._again.checksum[:12]}; look at the memory of the learner's machine."
            )
        return self._again.refs

    def settle(self, ref: Any) -> None:
        """Deal with a worker's word that is there, or with its end.

        Raises RuntimeError where workers die too often, do not come back or err twice; what a worker raised passes
        through, ValueError and OSError as they were.
        """
        worker = next(worker for worker in self.workers if ref in worker.tasks)
        try:
            word = _fetched(ref)
        except (RayActorError, ObjectLostError) as error:
            if not isinstance(error, RayTaskError):
                self._lose(worker, error)
            elif _is_sent_again(worker.tasks[ref]):
                worker.tasks.pop(ref)  # who was to hand them over is lost, and another will
            else:
                raise  # not the worker is lost, but the weights that it was to take, with the rank that owned them
            return
        task = worker.tasks.pop(ref)
        if worker.was_replaced_by(word.vitals):  # it died while idle, and is back, so this word is worth nothing
            self._report_death(worker, cause_of_death(worker.vitals))
            self._ask_again([*task.lost, *worker.drop()])
            worker.heard(word.vitals)
            return
        worker.heard(word.vitals)
        if isinstance(word, Held):
            self._settle_held(worker, task, word)
        elif isinstance(word, NotReceived):
            log.warning("rollout worker %s: %s. It takes the weights once more", worker.name, word.why)
        elif isinstance(word, Reply) and task.request is not None:
            self._settle_reply(worker, task.request, word)

    def _settle_held(self, worker: WorkerHandle, task: Task, held: Held) -> None:
        assert task.weights is not None  # who only starts says nothing of weights
        sent = task.weights.weights
        if held.checksum != sent.checksum or held.sha256 not in (None, sent.sha256) or task.request is not None:
            self._refuse(worker, held.checksum, task, task.weights)
        elif task.doing is Doing.PROVING:
            for request in worker.unproved:
                request.batch.unproved.discard(request.place)
            worker.unproved = []
        else:
            worker.holds, worker.num_buckets = task.weights.key, held.num_buckets

    def _settle_reply(self, worker: WorkerHandle, request: Request, reply: Reply) -> None:
        for warning in reply.warnings:
            log.warning("rollout worker %s: %s", worker.name, warning)
        self.skipped += reply.skipped
        request.settle(reply.groups)
        if request.batch.verified:
            worker.unproved.append(request)

    def _refuse(self, worker: WorkerHandle, held: str, task: Task, weights: WeightVersion) -> None:
        """Have a worker take its weights once more, and everything that it did not prove asked again."""
        worker.wrong += 1
        text = (
            f"rollout worker {worker.name} reports checksum {held[:12]} {_WHEN[task.doing]} version {weights.number}, "
            f"the learner's is {weights.weights.checksum[:12]}"
        )
        if worker.wrong > 1:
            raise RuntimeError(
                f"{text}, for the second time; its answers would be another policy's. Check that both load the same "
                f"checkpoint, and the memory of its machine, {worker.place}."
            )
        log.warning("%s; it takes them again, and what it answered since is asked again", text)
        self._ask_again([*task.lost, *worker.drop()])

    def _lose(self, worker: WorkerHandle, error: RayActorError | ObjectLostError) -> None:
        """Deal with the end of a worker; one that is already on its way back is given time."""
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise RuntimeError(f"rollout worker {worker.name} could not be built: {error}") from error
        if worker.died_at is None:
            self._report_death(worker, cause_of_death(worker.vitals, error))
        elif worker.dead_seconds > self._settings.restart_seconds:
            self._give_up(worker)
            return
        self._ask_again(worker.drop())
        worker.spare(_RETRY_SECONDS)

    def end_silent(self) -> None:
        """Kill who is hung; give up who does not come back. To be called all the time while something is in hand."""
        paused, self._looked_at = time.monotonic() - self._looked_at > _PAUSE_SECONDS, time.monotonic()
        for worker in tuple(self.workers):
            if paused:
                worker.excuse()  # what it said meanwhile is yet to be read
            if worker.died_at is not None and worker.dead_seconds > self._settings.restart_seconds:
                self._give_up(worker)
                continue
            if worker.vitals is None and worker.silent_seconds > worker.told_seconds + _TELL_SECONDS:
                worker.told_seconds += _TELL_SECONDS
                log.warning("rollout worker %s has not started for %.0f s", worker.name, worker.silent_seconds)
            if worker.is_serving and worker.silent_seconds > self._settings.unit_seconds:
                worker.kill()
                self._report_death(
                    worker, f"hung, no word for {worker.silent_seconds:.0f} s (pool.unit_seconds), killed"
                )
                self._ask_again(worker.drop())

    def _report_death(self, worker: WorkerHandle, cause: str) -> None:
        """Report a death, and count it."""
        report = death_report(worker.name, worker.vitals, list(worker.tasks.values()), cause)
        worker.died_at = time.monotonic()
        self._deaths += 1
        if self._deaths > self._settings.max_deaths:
            raise RuntimeError(
                f"rollout workers died {self._deaths} times since the weights were last set. The last one: {report}. "
                "Look for lack of memory, or raise pool.max_deaths."
            )
        log.warning("%s. It restarts, and takes its weights before it answers again", report)

    def _give_up(self, worker: WorkerHandle) -> None:
        """Go on without a worker that does not come back, such as one whose node is lost, as long as one is left."""
        text = (
            f"rollout worker {worker.name}, last seen on {worker.place}, has not come back for "
            f"{worker.dead_seconds:.0f} s"
        )
        others = [other for other in self.workers if other is not worker]
        if not any(other.died_at is None for other in others):
            raise RuntimeError(f"{text}. Look for lack of memory or places, or raise pool.restart_seconds.")
        log.warning("%s and is given up; the run goes on with %d", text, len(others))
        self._ask_again(worker.drop())
        ray.kill(worker.actor)
        self.workers = others

    def _ask_again(self, requests: Sequence[Request]) -> None:
        for request in reversed(requests):
            request.forget()
            self.waiting.appendleft(request)


def _is_sent_again(task: Task) -> bool:
    """Whether a worker takes weights from another one, having missed them when they were sent."""
    return task.weights is not None and isinstance(task.weights.weights, Broadcast)


def _fetched(ref: Any) -> Held | Reply | Greeting | NotReceived:
    """A worker's word; raises ValueError or OSError, such as a reward's, as the worker raised it."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from None
        raise
