"""From terms to totals, on the driver: what a step's answers measured becomes what the learner is told.

Measuring is a reward's part and is archived as it is; shaping is a setting, and can be tried on an archive.
Dimension letters: B groups of a step, G answers of a group. NaN is a term that does not apply; shaping leaves it NaN.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from envs.plugin import did_you_mean
from envs.ranges import check_ranges
from envs.schedule import check_schedule, scheduled
from rewards.settings import TermShaping

Values = NDArray[np.float64]
Terms = Mapping[str, Values]
"""[B, G] values of each term by reward name, all of one shape."""
TOTAL = "total"
"""Key of the shaping of the weighted mean itself; no reward may have this name."""


@dataclass(frozen=True)
class ShapedStep:
    """A step's answers after shaping."""

    terms: dict[str, Values]
    """[B, G] each as it enters the weighted mean; NaN where it does not apply."""
    weights: dict[str, float]
    """Weight of each term at this step."""
    totals: Values
    """[B, G]; where no term applies, the mean of the others of the group, 0 where there is none."""


def weighted_mean(terms: Terms, weights: Mapping[str, float]) -> Values:
    """Weighted mean of the terms that apply to each answer, shaped as they are; NaN where none with a weight applies.

    Terms are added in the order of `weights`; one without a weight counts for nothing. Raises ValueError for a weight
    that names no term.
    """
    weighted = applied = np.zeros(())
    for name, weight in weights.items():
        if name not in terms:
            raise ValueError(
                f"There is a weight for {name}, but the answers have only the terms {', '.join(terms) or '(none)'}; "
                "drop the weight or score the answers under that reward first."
            )
        absent = np.isnan(terms[name])
        weighted = weighted + weight * np.where(absent, 0.0, terms[name])
        applied = applied + weight * ~absent
    return np.divide(weighted, applied, out=np.full(applied.shape, np.nan), where=applied > 0)


def filled_by_group(totals: Values) -> Values:
    """Totals [..., G], NaN replaced by the mean of the others of its group, 0 where there is none.

    So an answer that nothing could be said of is neither reinforced nor punished.
    """
    known = ~np.isnan(totals)
    sums, counts = np.where(known, totals, 0.0).sum(-1, keepdims=True), known.sum(-1, keepdims=True)
    means = np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)
    return np.where(known, totals, means)


def passed(values: Values, threshold: float) -> Values:
    """1.0 where a value is `threshold` or more, else 0.0; NaN stays."""
    return np.where(np.isnan(values), np.nan, (values >= threshold).astype(np.float64))


def group_ranks(values: Values) -> Values:
    """Rank of each of [..., G] values among the values of its group, 0 (lowest) to 1 (highest); NaN stays, uncounted.

    Equal values share the mean of their ranks. A group of equal values, or with only one, gets 0.5.
    """
    others, own = values[..., None, :], values[..., :, None]
    ties = (others == own).sum(-1)
    ranks = (others < own).sum(-1) + (ties - 1) / 2
    count = (~np.isnan(values)).sum(-1, keepdims=True)
    scaled = np.where(count > 1, ranks / np.maximum(count - 1, 1), 0.5)
    return np.where(np.isnan(values), np.nan, scaled)


def quantiles(values: Values, history: Values) -> Values:
    """Share of `history` [N] that lies below each value, plus half the share that equals it, in 0..1; NaN stays.

    N must be 1 or more, and no value of it NaN.
    """
    ordered = np.sort(history)
    below_twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.where(np.isnan(values), np.nan, below_twice / (2 * len(ordered)))


class Shaper:
    """Totals of one step after the other; the only thing that it remembers is what quantiles are taken among."""

    def __init__(self, weights: Mapping[str, float], shaping: Mapping[str, TermShaping] | None = None) -> None:
        """weights: of each reward. shaping: by reward, or TOTAL for the weighted mean; one that is left out stays raw.

        Raises ValueError, naming the setting, for weights that are wrong or all 0 at some step, and wrong shapings.
        """
        self._weights, self._shaping = dict(weights), dict(shaping or {})
        _check_weights(self._weights)
        for name, term in self._shaping.items():
            _check_shaping(name, term, list(self._weights))
        knots = [point[0] for term in self._shaping.values() for point in term.weight_schedule]
        for step in [0, *knots]:  # the weights are linear in between
            if not any(self.weights_at(step).values()):
                raise ValueError(
                    f"The weights are {self.weights_at(step)} at step {step:g}; set at least one above 0, or every "
                    "answer earns the same."
                )
        self._history: dict[str, Values] = {}

    @property
    def shaping(self) -> dict[str, TermShaping]:
        """What is not left raw by being left out, by reward name or TOTAL."""
        return dict(self._shaping)

    def weights_at(self, step: float) -> dict[str, float]:
        """The weight of each reward at a step."""
        return {
            name: scheduled(self._shaping[name].weight_schedule, step, weight) if name in self._shaping else weight
            for name, weight in self._weights.items()
        }

    def thresholds_at(self, step: float) -> dict[str, float]:
        """The threshold at a step of each shaping that has one, by reward name or TOTAL."""
        return {
            name: scheduled(term.threshold_schedule, step, term.threshold)
            for name, term in self._shaping.items()
            if term.kind == "threshold"
        }

    def shape(self, step: int, terms: Terms) -> ShapedStep:
        """Shaped terms and totals of a step, whose values join the quantile histories: call it once a step, in order.

        Raises ValueError where a reward has no term.
        """
        weights = self.weights_at(step)
        shaped = {name: self._shaped(name, step, terms[name]) for name in weights if name in terms}
        total = self._shaped(TOTAL, step, weighted_mean({**terms, **shaped}, weights))
        return ShapedStep(shaped, weights, filled_by_group(total))

    def totals(self, step: int, terms: Terms) -> Values:
        """[B, G] totals of a step, as by `shape`."""
        return self.shape(step, terms).totals

    def observe(self, step: int, terms: Terms) -> None:
        """Let a past step's terms join the quantile histories, as its `shape` did."""
        self.shape(step, terms)

    def replay(self, newest_first: Iterable[tuple[int, Terms]]) -> None:
        """Make the histories what they were after past steps (step, terms), given newest first.

        Takes from the iterable no more steps than can matter: none where nothing is shaped by quantile.
        """
        self._history = {}
        for step, terms in reversed(list(self._steps_that_matter(newest_first))):
            self.observe(step, terms)

    def _steps_that_matter(self, newest_first: Iterable[tuple[int, Terms]]) -> Iterator[tuple[int, Terms]]:
        missing = {name: term.history for name, term in self._shaping.items() if term.kind == "quantile"}
        missing_totals, past = missing.pop(TOTAL, 0), iter(newest_first)
        while missing_totals > 0 or any(count > 0 for count in missing.values()):
            if (pair := next(past, None)) is None:
                return
            yield pair
            step, terms = pair
            if missing_totals > 0:
                missing_totals -= _count(weighted_mean(terms, self.weights_at(step)))
            if missing_totals <= 0:  # the oldest total needed is itself made of terms with a full history
                missing = {name: count - _count(terms[name]) for name, count in missing.items()}

    def _shaped(self, name: str, step: int, values: Values) -> Values:
        term = self._shaping.get(name)
        if term is None or term.kind == "raw":
            return values
        if term.kind == "threshold":
            return passed(values, scheduled(term.threshold_schedule, step, term.threshold))
        if term.kind == "power":
            return values**term.power
        if term.kind == "rank":
            return group_ranks(values)
        seen = np.concatenate([self._history.get(name, np.zeros(0)), values[~np.isnan(values)]])
        self._history[name] = seen[-term.history :]
        return quantiles(values, self._history[name]) if len(seen) else values


def _count(values: Values) -> int:
    return int(np.count_nonzero(~np.isnan(values)))


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"The weight of {name} is {weight}; set it to a finite number of 0 or more.")
    if TOTAL in weights:
        raise ValueError(f"A reward is called {TOTAL}, which stands for the weighted mean; give it another name.")


_ONLY_FOR = {"threshold": "threshold", "threshold_schedule": "threshold", "power": "power", "history": "quantile"}


def _check_shaping(name: str, term: TermShaping, rewards: Sequence[str]) -> None:
    where = f"shaping.{name}"
    if name not in (*rewards, TOTAL):
        raise ValueError(
            f"{where} names no reward{did_you_mean(name, [*rewards, TOTAL])} Rewards: {', '.join(rewards)}; "
            f"{TOTAL} shapes their weighted mean."
        )
    check_ranges(term, where)
    given, defaults = asdict(term), asdict(TermShaping())
    for key, kind in _ONLY_FOR.items():
        value = given[key]
        if term.kind != kind and value != defaults[key]:
            raise ValueError(f"{where}.{key} is {value}, of no use to kind {term.kind}; set kind: {kind} or remove it.")
    if name == TOTAL and term.weight_schedule:
        raise ValueError(f"{where}.weight_schedule is set, but the weighted mean has no weight; remove it.")
    check_schedule(f"{where}.weight_schedule", term.weight_schedule, float("inf"))
    check_schedule(f"{where}.threshold_schedule", term.threshold_schedule, 1.0)
