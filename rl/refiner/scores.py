"""What a refiner is worth, and how far its predictions can be trusted: scores, reliability, and the map that mends it.

First the scores of masks before and after the refiner, with their summary. Then reliability by bins and expected
calibration error: Naeini et al. (2015), Guo et al. (2017, arXiv 1706.04599), with a predicted IoU in place of a
confidence. Last the calibration: isotonic regression (Zadrozny and Elkan, 2002). Departures: it is linear between the
centres of the blocks instead of a staircase, so that two passes hardly ever tie; and small blocks are joined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from scipy.optimize import isotonic_regression

from envs.example import Truth
from envs.polygons import AnswerStatus
from policies.heads.base import Unrolled
from policies.refiner.calibration import Calibration, Curve
from policies.refiner.mask_refiner import chosen_pass
from rl.evaluation.scores import Interval, mean_interval, score_mask

WORSE_BY = 1e-9
"""A mask is worse where its IoU is lower by more than this."""
CLEARLY_WORSE_BY = 0.01

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]

INTERVAL_TITLES = {
    "coarse_iou": "gIoU, coarse",
    "refined_iou": "gIoU, refined",
    "gain_iou": "gain in IoU",
    "coarse_boundary_iou": "boundary IoU, coarse",
    "refined_boundary_iou": "boundary IoU, refined",
    "gain_boundary_iou": "gain in boundary IoU",
    "worse": "made worse",
    "clearly_worse": f"made worse by more than {CLEARLY_WORSE_BY}",
    "unchanged": "returned as it came",
}
RELIABILITY_TITLES = {
    "refined_calibrated": "mask returned, calibrated",
    "refined_raw": "mask returned, raw",
    "coarse_calibrated": "coarse mask, calibrated",
    "coarse_raw": "coarse mask, raw",
}


@dataclass(frozen=True)
class MaskScores:
    """S coarse masks and what the refiner made of them; every field is an array [S]."""

    coarse_iou: Numbers
    """IoU with the truth in 0..1, as rl/evaluation/scores.py has it here and below: an invalid answer has 0, and where
    nothing is true any but `empty`; ignored pixels count neither way."""
    refined_iou: Numbers
    coarse_boundary_iou: Numbers
    """IoU of the boundary bands, in 0..1 (Cheng et al., 2021)."""
    refined_boundary_iou: Numbers
    predicted_iou: Numbers
    """Calibrated prediction for the mask returned, in 0..1."""
    raw_iou: Numbers
    """Prediction for the mask returned before calibration, in 0..1."""
    predicted_coarse_iou: Numbers
    """Calibrated prediction for the coarse mask, in 0..1."""
    raw_coarse_iou: Numbers
    """Prediction for the coarse mask before calibration, in 0..1."""
    passes: Counts
    """Passes run; 0 where the coarse mask was empty."""
    taken: Counts
    """Pass whose mask is returned; 0: the coarse mask as it came."""
    drawn: NDArray[np.bool_]
    """Whether the coarse mask held a pixel; for an empty one nothing is predicted, so it has no say in reliability."""

    def __len__(self) -> int:
        """S."""
        return len(self.coarse_iou)

    @property
    def gain_iou(self) -> Numbers:
        """[S] refined less coarse IoU."""
        return self.refined_iou - self.coarse_iou

    @property
    def gain_boundary_iou(self) -> Numbers:
        """[S] refined less coarse boundary IoU."""
        return self.refined_boundary_iou - self.coarse_boundary_iou

    def selected(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "MaskScores":
        """The masks that `which` selects, a bool mask [S] or indices."""
        return MaskScores(**{name: array[which] for name, array in self._columns.items()})

    @property
    def _columns(self) -> dict[str, NDArray[Any]]:
        return vars(self)


def joined(parts: Sequence[MaskScores]) -> MaskScores:
    """The masks of one part or more, in their order; raises ValueError without a part."""
    if not parts:
        raise ValueError("No masks were scored, so there is nothing to join; score at least one scene.")
    columns = [part._columns for part in parts]
    return MaskScores(**{name: np.concatenate([one[name] for one in columns]) for name in columns[0]})


def score_unrolled(
    unrolled: Unrolled, min_gain: float, truths: Sequence[Truth], statuses: Sequence[AnswerStatus] | None = None
) -> MaskScores:
    """Score what `refine` returns of B unrolled masks, with passes stopped and chosen by predicted IoU alone.

    truths: B, of the masks' size. statuses: how the answers read; None: `ok`, or `empty` for a mask without a pixel.
    """
    predicted, raw = (values.cpu().numpy().astype(np.float64) for values in (unrolled.predicted_iou, unrolled.raw_iou))
    masks = unrolled.masks.cpu().numpy()
    drawn = masks[0].any(axis=(1, 2))
    chosen, run = (values.cpu().numpy() for values in chosen_pass(unrolled.predicted_iou, min_gain))
    taken, passes, each = np.where(drawn, chosen, 0), np.where(drawn, run, 0), np.arange(masks.shape[1])
    said = statuses or [AnswerStatus.OK if held else AnswerStatus.EMPTY for held in drawn]
    coarse_iou, coarse_boundary_iou = score_masks(masks[0], truths, said)
    refined_iou, refined_boundary_iou = score_masks(masks[taken, each], truths, said)
    return MaskScores(
        coarse_iou=coarse_iou,
        refined_iou=refined_iou,
        coarse_boundary_iou=coarse_boundary_iou,
        refined_boundary_iou=refined_boundary_iou,
        predicted_iou=predicted[taken, each],
        raw_iou=raw[taken, each],
        predicted_coarse_iou=predicted[0],
        raw_coarse_iou=raw[0],
        passes=passes,
        taken=taken,
        drawn=drawn,
    )


def score_masks(
    masks: Sequence[NDArray[np.bool_]] | NDArray[np.bool_], truths: Sequence[Truth], statuses: Sequence[AnswerStatus]
) -> tuple[Numbers, Numbers]:
    """(IoU, boundary IoU) [S] of masks, each [H, W], with their truths; statuses: how the answers read."""
    scores = [score_mask(mask, truth, status, "") for mask, truth, status in zip(masks, truths, statuses, strict=True)]
    return np.array([score.iou for score in scores]), np.array([score.boundary_iou for score in scores])


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


@dataclass(frozen=True)
class RefinerSummary:
    """MaskScores in short; intervals are 95 % bootstrap intervals over the masks."""

    num_masks: int
    num_drawn: int
    """Masks that held a pixel; only these are refined."""
    intervals: dict[str, Interval]
    """Means of IoU, boundary IoU and their paired gains, and shares of all masks, by the keys of INTERVAL_TITLES."""
    mean_passes: float
    """Passes run of a mask that was drawn."""
    passes_run: tuple[int, ...]
    """Masks drawn by the number of passes run, 0 to the most that was seen."""
    passes_taken: tuple[int, ...]
    """Masks drawn by the pass that is returned, 0 (the coarse mask) to the last that was seen."""
    reliability: dict[str, Reliability]
    """Predicted against actual IoU of the masks drawn, by the keys of RELIABILITY_TITLES."""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready: plain numbers, with low and high of each under `intervals`."""
        return {
            "num_masks": self.num_masks,
            "num_drawn": self.num_drawn,
            **{name: interval.value for name, interval in self.intervals.items()},
            "intervals": {name: {"low": each.low, "high": each.high} for name, each in self.intervals.items()},
            "mean_passes": self.mean_passes,
            "passes_run": list(self.passes_run),
            "passes_taken": list(self.passes_taken),
            "reliability": {name: each.as_dict() for name, each in self.reliability.items()},
        }


def summarise_refined(scores: MaskScores, seed: int = 0) -> RefinerSummary:
    """The summary of S masks; raises ValueError without any."""
    gain, drawn = scores.gain_iou, scores.selected(scores.drawn)
    values: dict[str, NDArray[np.generic]] = {
        "coarse_iou": scores.coarse_iou,
        "refined_iou": scores.refined_iou,
        "gain_iou": gain,
        "coarse_boundary_iou": scores.coarse_boundary_iou,
        "refined_boundary_iou": scores.refined_boundary_iou,
        "gain_boundary_iou": scores.gain_boundary_iou,
        "worse": gain < -WORSE_BY,
        "clearly_worse": gain < -CLEARLY_WORSE_BY,
        "unchanged": scores.taken == 0,
    }
    return RefinerSummary(
        num_masks=len(scores),
        num_drawn=len(drawn),
        intervals={name: mean_interval(numbers, seed) for name, numbers in values.items()},
        mean_passes=float(drawn.passes.mean()) if len(drawn) else 0.0,
        passes_run=tuple(np.bincount(drawn.passes).tolist()),
        passes_taken=tuple(np.bincount(drawn.taken).tolist()),
        reliability={
            "refined_calibrated": reliability(drawn.predicted_iou, drawn.refined_iou),
            "refined_raw": reliability(drawn.raw_iou, drawn.refined_iou),
            "coarse_calibrated": reliability(drawn.predicted_coarse_iou, drawn.coarse_iou),
            "coarse_raw": reliability(drawn.raw_coarse_iou, drawn.coarse_iou),
        },
    )


def refiner_table(summary: RefinerSummary) -> Table:
    """The summary as a table of two columns, at most 80 characters wide."""
    table = Table(
        title=f"Refiner on {summary.num_masks} masks, 95 % bootstrap intervals", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("score")
    table.add_column("value [low, high]", justify="right", no_wrap=True)
    for name, title in INTERVAL_TITLES.items():
        table.add_row(title, Text(str(summary.intervals[name])))
    table.add_row("passes run, mean", f"{summary.mean_passes:.2f}")
    for name, title in RELIABILITY_TITLES.items():
        table.add_row(f"calibration error, {title}", f"{summary.reliability[name].error:.3f}")
    return table


_MIN_NUM = 20
"""Fewer masks than this say too little: their map is the identity."""
_MAX_BLOCKS = 30
_MIN_NUM_PER_KNOT = 10
_END_SLOPE = 1e-3
"""Rise beyond the outermost blocks, where nothing was seen: enough to keep the order, too little to promise more."""


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
