"""What is asked of the pool: batches of units, and the tasks that workers get for them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rollout.pool_weights import WeightVersion
from rollout.records import Group
from rollout.worker import Unit


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
    def asked(self) -> list["Asked"]:
        """Its units, one by one."""
        return [Asked(self, place) for place in range(len(self.units))]

    @property
    def groups(self) -> list[Group]:
        """All groups, in order of units."""
        return [group for place in range(len(self.units)) for group in self.results[place]]


@dataclass(frozen=True)
class Asked:
    """One unit of a batch."""

    batch: Batch
    place: int

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


@dataclass(frozen=True)
class Task:
    """Something that a worker has in hand."""

    weights: WeightVersion
    """The weights that it takes, or must hold."""
    asked: Asked | None = None
    """The unit that it answers; None where it takes weights or proves them."""
    proves: bool = False
    """Whether it proves the weights that it holds."""
    since: float = field(default_factory=time.monotonic)
    """When it was handed out, on the clock of time.monotonic."""

    @property
    def lost(self) -> list[Asked]:
        """What must be asked again where it came to nothing."""
        return [] if self.asked is None else [self.asked]

    def __str__(self) -> str:
        """In words, for a report."""
        seconds = f"for {time.monotonic() - self.since:.1f} s"
        if self.asked is None:
            return f"{'proving' if self.proves else 'taking'} weights version {self.weights.number} {seconds}"
        unit = self.asked.unit
        places = ", ".join(str(position) for position in unit.positions)
        return f"step {unit.step} of split {unit.split}, positions {places}, version {self.weights.number}, {seconds}"
