"""The rollout workers together: fixed units of work, answers ahead of time, weights that are proved, deaths survived.

A worker that dies is restarted by Ray and comes back empty. It is stale until it has taken the weights that its next
unit wants and proved it by their checksum. The units that it had in hand are answered by whoever is free, with the same
result, since random numbers belong to answers and not to workers.

A thread hands units to whoever is free. All that is asked could be sent to the workers at once, without a thread; but
then a slow worker would keep its share while others idle, and what a dead one had in hand would lie there until the
driver comes back from the learner.
"""

import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rollout.pool.actor import PoolActor
from rollout.pool.broadcast import Meeting
from rollout.pool.dispatch import Dispatcher
from rollout.pool.handle import Batch, WeightVersion, WorkerHandle
from rollout.pool.source import Broadcast, WeightSource
from rollout.pool.stored import WeightRefs
from rollout.records import Group
from rollout.settings import PoolSettings
from rollout.worker import Unit, WorkerSettings

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
"""How long the thread waits for workers, at most, before it notices new work."""


class WorkerPool:
    """A few workers that answer units together. Ray must run (rollout/cluster.py).

    What goes wrong with a worker meanwhile is raised by the next call that waits: RuntimeError for workers that die too
    often, do not come back, or twice hold other weights than were sent; ValueError and OSError as a reward raised them.
    All that was asked is then forgotten.
    """

    def __init__(self, settings: PoolSettings, worker: WorkerSettings, strategies: Sequence[Any] | None = None) -> None:
        """strategies: Ray's scheduling strategy of each worker (cluster.place); None: wherever there is room."""
        units_each = settings.units_in_flight if worker.works_ahead else 1
        remote = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=1, num_gpus=settings.gpus_per_worker)(
            PoolActor
        )
        self.actors: list[Any] = [
            remote.options(max_concurrency=units_each, scheduling_strategy=where).remote(worker, f"{k}")
            for k, where in enumerate(strategies or ["DEFAULT"] * settings.workers)
        ]
        workers = [WorkerHandle(f"{k}", actor) for k, actor in enumerate(self.actors)]
        self._dispatcher = Dispatcher(workers, settings, units_each)
        self._settings, self._broadcasts = settings, settings.transport == "broadcast"
        self._current: WeightVersion | None = None
        self._set_already: tuple[tuple[int, bool], int] | None = None
        self._meeting: Meeting | None = None
        self._members: tuple[Any, ...] = ()
        self._asked: deque[Batch] = deque()
        self._changed = threading.Condition()  # held by whoever touches the dispatcher
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rollout pool", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # before Ray's own: a thread that waits inside Ray must not see it shut down

    @property
    def weights(self) -> WeightRefs | Broadcast:
        """The weights that were set last; raises RuntimeError before the first `set_weights`."""
        return self._set.weights

    @property
    def skipped(self) -> Counter[str]:
        """Answers that rewards left out of their term because they failed, by reward."""
        return self._dispatcher.skipped

    def set_weights(self, weights: WeightRefs | WeightSource, version: int) -> None:
        """Set the weights for what is asked from now on, under the number that the answers will carry.

        Waits until every worker holds them, but not where something asked before is still to be collected: workers
        finish that first, with the weights that it was asked for, which are kept until then. Weights that go through a
        group wait for that in any case, since all workers take them at once.
        """
        if not isinstance(weights, WeightRefs) and self._set_already == (weights.state, version):
            return
        self._current = current = WeightVersion(version, self._sent(weights, version))
        self._set_already = None if isinstance(weights, WeightRefs) else (weights.state, version)
        with self._changed:
            self._dispatcher.set_weights(current)
            self._changed.notify_all()
        if not self._asked:
            self._wait(lambda: all(worker.holds == current.key for worker in self._dispatcher.workers))

    def _sent(self, weights: WeightRefs | WeightSource, version: int) -> WeightRefs | Broadcast:
        if isinstance(weights, WeightRefs):
            return weights
        every = self._settings.sha256_every
        strong = every > 0 and version % every == 0
        receivers = self._receivers() if self._broadcasts else []
        if not receivers:
            return weights.refs(strong)
        shapes, meeting = weights.shapes(), self._meeting_of(weights, receivers)
        words = [
            worker.receive(version, meeting, member, shapes, strong) for member, worker in enumerate(receivers, start=1)
        ]
        sent = weights.send(meeting, strong)
        if sent.broken is not None:
            self._meeting = None
            log.warning("%s. The weights go through Ray's object store this time", sent.broken)
        if not sent.formed:
            self._broadcasts = False  # it would take as long in every step
        taken = Broadcast(weights, sent)
        with self._changed:
            for worker, word in zip(receivers, words, strict=True):
                worker.is_taking(word, WeightVersion(version, taken))
        return taken

    def _receivers(self) -> list[WorkerHandle]:
        """Who can take weights now, once all that was asked is answered and everybody has been heard or is dead."""
        dispatcher = self._dispatcher
        self._wait(lambda: dispatcher.is_idle)
        with self._changed:
            dispatcher.rest()
            dispatcher.greet()
            self._changed.notify_all()
        self._wait(lambda: all(w.vitals is not None or w.died_at is not None for w in dispatcher.workers))
        return [worker for worker in dispatcher.workers if worker.is_serving and not worker.tasks]

    def _meeting_of(self, source: WeightSource, receivers: Sequence[WorkerHandle]) -> Meeting:
        """The meeting of a group of these processes: the one before where they are the same."""
        members = tuple((worker.name, worker.vitals and worker.vitals.process_id) for worker in receivers)
        if self._meeting is None or self._members != members:
            self._meeting, self._members = source.meeting(len(receivers)), members
        return self._meeting

    def sleep(self) -> None:
        """Have every worker let go of its card until `set_weights`; what was asked must have been collected.

        Returns once all of them sleep. One that dies, or hangs and is killed, comes back asleep. Raises RuntimeError
        where one could not be built.
        """
        with self._changed:
            self._dispatcher.rest()
            going = {worker.actor.sleep.remote(): worker for worker in self._dispatcher.workers}
        self._current, self._set_already, began = None, None, time.monotonic()
        while going:
            ready, _ = ray.wait(list(going), num_returns=1, timeout=_LOOK_SECONDS)
            if time.monotonic() - began > self._settings.unit_seconds:
                for worker in going.values():
                    if worker.is_serving:  # else it is still being built
                        worker.kill()
            for ref in ready:
                _slept(ref, going.pop(ref))

    def ask(self, units: Iterable[Unit]) -> None:
        """Have units answered with the weights set last, after all that was asked before; does not wait."""
        batch = Batch(units, self._set, self._settings.verify_every)
        self._asked.append(batch)
        with self._changed:
            self._dispatcher.waiting.extend(batch.requests)
            self._changed.notify_all()

    def collect(self) -> list[Group]:
        """All groups of what was asked first and not yet collected, in order of units.

        Raises RuntimeError where nothing was asked.
        """
        if not self._asked:
            raise RuntimeError("the pool has nothing to collect; ask first.")
        return self._answered(self._asked.popleft())

    def answer(self, units: Iterable[Unit]) -> list[Group]:
        """All groups of all units, in order of units, answered with the weights set last.

        The driver waits for it, so it goes before what was asked ahead.
        """
        batch = Batch(units, self._set, self._settings.verify_every)
        with self._changed:
            self._dispatcher.waiting.extendleft(reversed(batch.requests))
            self._changed.notify_all()
        return self._answered(batch)

    def checkpoint_weights(self, checkpoint: Path) -> WeightRefs:
        """The weights of a Hugging Face folder by reference, for `set_weights`; worker 0 reads them.

        Nothing may be in hand meanwhile.
        """
        with self._changed:
            self._dispatcher.workers[0].holds = None
        reader = self._dispatcher.workers[0]
        reader.num_buckets, checksum = ray.get(self.actors[0].offer.remote(checkpoint))
        # As results of calls the buckets belong to the driver, and outlive the worker that made them.
        return WeightRefs(tuple(reader.offer_buckets()), checksum)

    def process_ids(self) -> list[int]:
        """Process of each worker, for people and for tests of faults."""
        return ray.get([worker.process_id.remote() for worker in self.actors])

    def close(self) -> None:
        """End the workers, and say how many answers rewards left out."""
        self._stop()
        for name, times in self.skipped.items():
            log.warning("reward %s failed on %d answers, which were left out of its term", name, times)
        for worker in self.actors:
            ray.kill(worker)

    @property
    def _set(self) -> WeightVersion:
        if self._current is None:
            raise RuntimeError("the pool has no weights yet; call set_weights first.")
        return self._current

    def _answered(self, batch: Batch) -> list[Group]:
        self._wait(lambda: batch.done)
        return batch.groups

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or done())
            if self._error is not None:
                error, self._error = self._error, None
                self._asked.clear()
                raise error

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self._stop)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except BaseException as error:
            self._fail(error)  # or the driver would wait for ever
            raise

    def _turn(self) -> None:
        """Hand out what can be, wait for a word, deal with it."""
        with self._changed:
            self._dispatcher.hand_out()
            refs = self._dispatcher.in_hand
            if not refs:
                self._changed.wait(self._dispatcher.spared_seconds)
                return
        ready, _ = ray.wait(refs, num_returns=1, timeout=_LOOK_SECONDS)
        with self._changed:
            try:
                for ref in ready:
                    self._dispatcher.settle(ref)
                self._dispatcher.end_silent()
            except (RayError, RuntimeError, ValueError, OSError) as error:
                self._fail(error)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._dispatcher.drop_all()
            self._changed.notify_all()


def _slept(ref: Any, worker: WorkerHandle) -> None:
    """Take a worker's word that it sleeps; its death says the same, and is told when it is next spoken to."""
    try:
        ray.get(ref)
    except RayActorError as error:
        if error.actor_init_failed:
            raise RuntimeError(f"rollout worker {worker.name} could not be built: {error}") from error
