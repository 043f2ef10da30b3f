"""How far a predicted IoU can be trusted: reliability by bins, expected calibration error, and the map that mends it.

Reliability and expected calibration error: Naeini et al. (2015), Guo et al. (2017, arXiv 1706.04599), with a predicted
IoU in place of a confidence. The map: isotonic regression (Zadrozny and Elkan, 2002). Departures: it is linear between
the centres of the blocks instead of a staircase, so that two passes hardly ever tie; and small blocks are joined.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from policies.calibration import Calibration, Curve

_MIN_NUM = 20
"""Fewer masks than this say too little: their map is the identity."""
_MAX_BLOCKS = 30
_MIN_NUM_PER_KNOT = 10
_END_SLOPE = 1e-3
"""Rise beyond the outermost blocks, where nothing was seen: enough to keep the order, too little to promise more."""


@dataclass(frozen=True)
class Reliability:
    """Predicted against actual IoU of N masks, by equal bins of the predicted one; bins without a mask are left out."""

    predicted: tuple[float, ...]
    """Mean predicted IoU of each bin, rising."""
    actual: tuple[float, ...]
    """Mean IoU of each bin's masks with their truths."""
    count: tuple[int, ...]
    """Masks of each bin."""
    error: float
    """Expected calibration error: mean of |predicted - actual| over the bins, weighted by count; 0 without a mask."""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, by field name."""
        return {
            "predicted": list(self.predicted),
            "actual": list(self.actual),
            "count": list(self.count),
            "error": self.error,
        }


def reliability(predicted: NDArray[np.floating], actual: NDArray[np.floating], bins: int = 10) -> Reliability:
    """Reliability of predictions [N] in 0..1 of actual values [N] in 0..1, over `bins` equal bins; 1 is in the last.

    Raises ValueError for unequal lengths, for a prediction that is no number of 0..1, and without a bin.
    """
    predicted, actual = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    if predicted.shape != actual.shape or predicted.ndim != 1 or bins < 1:
        raise ValueError(
            f"predicted has shape {predicted.shape}, actual {actual.shape}, bins is {bins}; give [N] twice, and 1 or "
            "more."
        )
    if not ((predicted >= 0) & (predicted <= 1)).all():
        raise ValueError("predicted holds a number outside 0..1; a predicted IoU is the sigmoid of what the head says.")
    place = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    held = count > 0
    mean_predicted = np.bincount(place, predicted, bins)[held] / count[held]
    mean_actual = np.bincount(place, actual, bins)[held] / count[held]
    error = (count[held] * np.abs(mean_predicted - mean_actual)).sum() / max(len(predicted), 1)
    return Reliability(
        tuple(mean_predicted.tolist()), tuple(mean_actual.tolist()), tuple(count[held].tolist()), float(error)
    )


def isotonic_curve(raw: NDArray[np.floating], actual: NDArray[np.floating]) -> Curve:
    """The rising map that takes raw predictions [N] in 0..1 closest to actual values [N] in 0..1, in at most 32 knots.

    The identity where there are fewer than 20 masks, or where the map would not lower the expected calibration error on
    the very masks that it was fitted to.
    """
    before = reliability(raw, actual)
    if len(raw) < _MIN_NUM:
        return Curve()
    x, y = _with_ends(*_blocks(np.asarray(raw, np.float64), np.asarray(actual, np.float64)))
    lower = reliability(np.interp(raw, x, y), actual).error < before.error
    return Curve(tuple(x.tolist()), tuple(y.tolist())) if lower else Curve()


def fit_calibration(raw: NDArray[np.floating], actual: NDArray[np.floating]) -> Calibration:
    """The calibration of a refiner: a curve for the coarse mask (row 0), and one for what each of K passes draws.

    raw, actual: [K + 1, N] predicted and actual IoU of N masks that held a pixel, of scenes that nobody trained on.
    Raises ValueError for unequal shapes.
    """
    raw, actual = np.asarray(raw), np.asarray(actual)
    if raw.shape != actual.shape or raw.ndim != 2:
        raise ValueError(f"raw has shape {raw.shape}, actual {actual.shape}; give [K + 1, N] twice.")
    return Calibration(tuple(isotonic_curve(*row) for row in zip(raw, actual, strict=True)))


def _blocks(raw: NDArray[np.float64], actual: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean raw and fitted value of the blocks of the isotonic fit, both strictly rising, small ones joined."""
    # Equal predictions are one; to six decimals, so that knots stay apart in single precision.
    values, group, num = np.unique(raw.round(6), return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(group, actual) / num, weights=num).x
    enough = max(_MIN_NUM_PER_KNOT, len(raw) / _MAX_BLOCKS)
    seen, start, starts = np.cumsum(num), 0, [0]
    for k in np.flatnonzero(np.diff(fitted) > 0) + 1:
        if seen[k - 1] - start >= enough and len(raw) - seen[k - 1] >= enough:
            starts.append(int(k))
            start = seen[k - 1]
    total = np.add.reduceat(num, starts)
    return np.add.reduceat(values * num, starts) / total, np.add.reduceat(fitted * num, starts) / total


def _with_ends(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The knots with one at raw 0 and one at raw 1, where these are missing; y clipped to 0..1."""
    first, last = x[:1] > 0, x[-1:] < 1
    x, y = (
        np.concatenate([np.zeros(1)[first], x, np.ones(1)[last]]),
        np.concatenate([(y[:1] - _END_SLOPE * x[:1])[first], y, (y[-1:] + _END_SLOPE * (1 - x[-1:]))[last]]),
    )
    return x, y.clip(0, 1)
