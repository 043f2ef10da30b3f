"""Scores as ratios of sums over answers: their values, bootstrap intervals, and paired differences.

A mean, a pooled IoU and a share all are sum(above) / (sum(below) + epsilon). So one resampling of the answers serves
all scores, and numerator and denominator of a pooled score are drawn together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.evaluation.scores import CONFIDENCE, Interval, resample_indices

_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Ratio:
    """sum(above) / (sum(below) + epsilon) over N answers; 0 where sum(below) is 0: nothing counts."""

    above: NDArray[np.float64]
    """[N]"""
    below: NDArray[np.float64]
    """[N] 0 or more."""
    epsilon: float = 0.0

    @property
    def value(self) -> float:
        """The ratio; sums are exact, so that the order of answers does not matter."""
        below = math.fsum(self.below)
        return math.fsum(self.above) / (below + self.epsilon) if below > 0 else 0.0


def mean_where(values: ArrayLike, where: ArrayLike, epsilon: float = 0.0) -> Ratio:
    """The mean of [N] values over the answers `where` [N] bool; of bool values, a share."""
    counted = np.asarray(where, np.float64)
    return Ratio(np.asarray(values, np.float64) * counted, counted, epsilon)


def values_of(ratios: Mapping[str, Ratio]) -> dict[str, float]:
    """The value of each ratio, by its title."""
    return {title: ratio.value for title, ratio in ratios.items()}


def intervals_of(ratios: Mapping[str, Ratio], seed: int) -> dict[str, Interval]:
    """Each ratio with its 95 % percentile bootstrap interval over answers."""
    return _intervals(values_of(ratios), _resampled(ratios, seed))


def differences_of(before: Mapping[str, Ratio], after: Mapping[str, Ratio], seed: int) -> dict[str, Interval]:
    """Each ratio of `after` less that of `before`, of the same answers in the same order, resampled in pairs."""
    values = {title: after[title].value - ratio.value for title, ratio in before.items()}
    return _intervals(values, _resampled(after, seed) - _resampled(before, seed))


def _intervals(values: Mapping[str, float], resampled: NDArray[np.float64]) -> dict[str, Interval]:
    tail = (1 - CONFIDENCE) / 2
    found = {}
    for (title, value), drawn in zip(values.items(), resampled.T, strict=True):
        drawn = drawn[np.isfinite(drawn)]  # a resample without an answer that counts says nothing
        low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (value, value)
        found[title] = Interval(value, float(low), float(high))
    return found


def _resampled(ratios: Mapping[str, Ratio], seed: int) -> NDArray[np.float64]:
    """[R, S] the S ratios in each of R resamples of the answers; NaN where nothing counts in one."""
    above = np.stack([ratio.above for ratio in ratios.values()], axis=1)
    below = np.stack([ratio.below for ratio in ratios.values()], axis=1)
    epsilons = np.array([ratio.epsilon for ratio in ratios.values()])
    indices = resample_indices(len(above), seed)
    found = np.empty((len(indices), len(epsilons)))
    for first in range(0, len(indices), _RESAMPLES_AT_ONCE):
        part = slice(first, first + _RESAMPLES_AT_ONCE)
        times = np.stack([np.bincount(row, minlength=len(above)) for row in indices[part]]).astype(np.float64)
        counted = times @ below
        found[part] = np.divide(
            times @ above, counted + epsilons, out=np.full(counted.shape, np.nan), where=counted > 0
        )
    return found
