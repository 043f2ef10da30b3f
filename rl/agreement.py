"""What an archive says of rewards, kept as running sums: values, spread in a group, agreement, disagreement.

Everything takes one step at a time, [B, G] arrays of B groups of G answers, and needs no more memory for more steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rewards.shaping import Values
from rl.gspo import Algorithm

NUM_BINS = 20


def kendall(a: Values, b: Values) -> Values:
    """Kendall's tau-b of a and b within each group, [B, G] each -> [B], in [-1, 1].

    Of all pairs of answers: ordered alike less ordered the other way, over the geometric mean of the pairs that a and b
    tell apart. A pair with a NaN is left out; NaN where a or b tells no pair apart.
    """
    sign_a, sign_b = (np.sign(values[:, :, None] - values[:, None, :]) for values in (a, b))
    known = ~(np.isnan(sign_a) | np.isnan(sign_b))
    sign_a, sign_b = np.where(known, sign_a, 0.0), np.where(known, sign_b, 0.0)
    alike = (sign_a * sign_b).sum(axis=(1, 2))
    apart = np.sqrt((sign_a**2).sum(axis=(1, 2)) * (sign_b**2).sum(axis=(1, 2)))
    return np.divide(alike, apart, out=np.full_like(apart, np.nan), where=apart > 0)


@dataclass
class Distribution:
    """Mean, spread and histogram of numbers in [0, 1] that were seen so far, NaN counted apart."""

    num: int = 0
    """Numbers that are not NaN."""
    num_absent: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    """[NUM_BINS] of equal width over 0..1; what is outside goes to the nearest."""

    def add(self, values: Values) -> None:
        """Take in an array of any shape."""
        present = values[~np.isnan(values)]
        self.num += present.size
        self.num_absent += values.size - present.size
        self.total += float(present.sum())
        self.total_of_squares += float((present**2).sum())
        bins = np.clip((present * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
        self.counts += np.bincount(bins, minlength=NUM_BINS)

    @property
    def mean(self) -> float:
        """NaN before the first number."""
        return self.total / self.num if self.num else math.nan

    @property
    def std(self) -> float:
        """Of all numbers, not of a sample; NaN before the first."""
        return math.sqrt(max(0.0, self.total_of_squares / self.num - self.mean**2)) if self.num else math.nan

    @property
    def absent_share(self) -> float:
        """Share of NaN; 0 before the first value."""
        return self.num_absent / max(1, self.num + self.num_absent)


@dataclass
class ConfigSums:
    """What one reward config makes of the answers."""

    terms: dict[str, Distribution] = field(default_factory=dict)
    """By reward name, as measured; NaN where it does not apply."""
    totals: Distribution = field(default_factory=Distribution)
    spread: Distribution = field(default_factory=Distribution)
    """Standard deviation of the totals of each group."""
    silent: Distribution = field(default_factory=Distribution)
    """1 for a group whose answers all earn the same, which the learner leaves out, else 0."""
    agreement: dict[str, Distribution] = field(default_factory=dict)
    """Kendall's tau of each group's totals with a feature of its answers, by feature."""

    def add(self, terms: Mapping[str, Values], totals: Values, features: Mapping[str, Values]) -> None:
        """Take in a step, all [B, G]."""
        for name, values in terms.items():
            self.terms.setdefault(name, Distribution()).add(values)
        self.totals.add(totals)
        self.spread.add(totals.std(axis=1))
        _, counts = Algorithm().advantages(totals)
        self.silent.add((~counts).astype(np.float64))
        for name, values in features.items():
            self.agreement.setdefault(name, Distribution()).add(kendall(totals, values))


@dataclass(frozen=True)
class Disagreement:
    """An answer that one config reinforces and another punishes."""

    step: int
    position: int
    index: int
    """Step, position and index name the answer in the archive."""
    example_id: str
    totals: tuple[float, float]
    """Under the config that reinforces and under the one that punishes."""
    advantages: tuple[float, float]
    """The same; the first is above 0, the second below."""

    @property
    def size(self) -> float:
        """The weaker of the two opinions: large where both are strong."""
        return min(abs(advantage) for advantage in self.advantages)


@dataclass
class DirectionSums:
    """The answers that a first config reinforces and a second one punishes."""

    num_shown: int = 4
    share: Distribution = field(default_factory=Distribution)
    """1 for such an answer, 0 for any other."""
    deviations: dict[str, Distribution] = field(default_factory=dict)
    """By feature: how far these answers lie above the mean of their groups."""
    largest: list[Disagreement] = field(default_factory=list)
    """The `num_shown` largest of different examples, largest first."""

    def add(self, place: "StepPlace", totals: Sequence[Values], features: Mapping[str, Values]) -> None:
        """Take in a step; totals of the config that reinforces and of the one that punishes, [B, G] each."""
        first, second = (Algorithm().advantages(values)[0] for values in totals)
        size = np.where((first > 0) & (second < 0), np.minimum(first, -second), 0.0)
        self.share.add((size > 0).astype(np.float64))
        for name, values in features.items():
            deviation = values - values.mean(axis=1, keepdims=True)
            self.deviations.setdefault(name, Distribution()).add(deviation[size > 0])
        for position in np.argsort(-size.max(axis=1), kind="stable")[: self.num_shown].tolist():
            index = int(size[position].argmax())
            if size[position, index] > 0:
                at = (position, index)
                pair = (float(totals[0][at]), float(totals[1][at]))
                sides = (float(first[at]), float(second[at]))
                self._offer(Disagreement(place.step, *at, place.example_ids[position], pair, sides))

    def _offer(self, new: Disagreement) -> None:
        kept = [old for old in self.largest if old.example_id != new.example_id or old.size >= new.size]
        if any(old.example_id == new.example_id for old in kept):
            return
        self.largest = sorted([*kept, new], key=lambda found: -found.size)[: self.num_shown]


@dataclass(frozen=True)
class StepPlace:
    """Which step a batch of groups is from."""

    step: int
    example_ids: Sequence[str]
    """[B]."""


@dataclass
class PairSums:
    """Two configs beside each other."""

    agreement: Distribution = field(default_factory=Distribution)
    """Kendall's tau of their totals within each group."""
    same_best: Distribution = field(default_factory=Distribution)
    """1 for a group in which some answer is the best, or one of several best, under both, else 0."""
    first_only: DirectionSums = field(default_factory=DirectionSums)
    """Reinforced by the first, punished by the second."""
    second_only: DirectionSums = field(default_factory=DirectionSums)

    def add(self, place: StepPlace, first: Values, second: Values, features: Mapping[str, Values]) -> None:
        """Take in a step: totals under either config [B, G]."""
        self.agreement.add(kendall(first, second))
        best = [values == values.max(axis=1, keepdims=True) for values in (first, second)]
        self.same_best.add((best[0] & best[1]).any(axis=1).astype(np.float64))
        self.first_only.add(place, (first, second), features)
        self.second_only.add(place, (second, first), features)
