"""One worker as the driver knows it: what it holds, what it has in hand, when it was last heard of."""

import time
from typing import Any

import ray

from rollout.pool_actor import Vitals
from rollout.pool_weights import WeightVersion
from rollout.pool_work import Asked, Task


class Member:
    """A worker of the pool."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor
        self.holds: tuple[int, str] | None = None
        """Key of the WeightVersion that it proved to hold; None for none, as after a death."""
        self.tasks: dict[Any, Task] = {}
        """What it has in hand, by Ray's reference to the answer."""
        self.unproved: list[Asked] = []
        """What it answered and must yet prove, all of one batch."""
        self.wrong = 0
        """Times that it held other weights than were sent, since they were last set."""
        self.vitals: Vitals | None = None
        """Of its last word; None before the first."""
        self.died_at: float | None = None
        """When it died, until it is back; on the clock of time.monotonic."""
        self.told_seconds = 0.0
        """For how long it is known not to have started."""
        self._heard_at = 0.0
        self._spared_until = 0.0

    def take(self, weights: WeightVersion) -> None:
        """Have it take weights."""
        # In a list, so that Ray passes references and the worker fetches one bucket at a time.
        ref = self.actor.take.remote(weights.number, list(weights.weights.refs))
        self.tasks[ref] = Task(weights)

    def answer(self, asked: Asked) -> None:
        """Have it answer a unit, with the weights that it holds."""
        weights = asked.batch.weights
        self.tasks[self.actor.reply.remote(asked.unit, weights.number)] = Task(weights, asked)

    def prove(self, weights: WeightVersion) -> None:
        """Have it hash the weights that it holds."""
        self.tasks[self.actor.held.remote()] = Task(weights, proves=True)

    def heard(self, vitals: Vitals) -> None:
        """Note a sign of life."""
        self.vitals, self.died_at, self._heard_at = vitals, None, time.monotonic()

    def excuse(self) -> None:
        """Begin to count its silence anew."""
        self._heard_at = time.monotonic()

    def drop(self) -> list[Asked]:
        """Take everything from it, and its word that it holds any weights; returns the units to be asked again."""
        again = [*self.unproved, *(asked for task in self.tasks.values() for asked in task.lost)]
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
        """Its node's address, as far as known."""
        return "a node unknown" if self.vitals is None else self.vitals.address

    def kill(self) -> None:
        """End its process; Ray starts another."""
        ray.kill(self.actor, no_restart=False)
