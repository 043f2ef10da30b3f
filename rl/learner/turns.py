"""Whose turn the cards have, where learner ranks and rollout workers share them (pool.colocate).

Cards change hands when the other side needs them, and not before: an evaluation and the sampling after it are one turn
of the workers, a step and the checkpoint after it one of the ranks.
"""

from rl.learner.learner import Learner
from rollout.pool.pool import WorkerPool


class Turns:
    """The order in which ranks and workers have their cards; without colocation each always has its own.

    It begins with the ranks, while the workers sleep.
    """

    def __init__(self, learner: Learner, pool: WorkerPool, colocated: bool) -> None:
        self._learner, self._pool, self._colocated = learner, pool, colocated
        self._sampling = False

    def of_workers(self) -> None:
        """Before weights are set: the ranks rest. Workers wake as they take weights."""
        if self._colocated and not self._sampling:
            self._learner.rest()
            self._sampling = True

    def of_ranks(self) -> None:
        """Before a step is learned or saved: the workers, who have answered all, sleep, and the ranks wake."""
        if self._colocated and self._sampling:
            self._pool.sleep()
            self._learner.wake()
            self._sampling = False
