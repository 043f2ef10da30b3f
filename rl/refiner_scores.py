"""What a refiner is worth on scenes that nobody trained on: gains, losses, passes, and how well it knows its IoU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from envs.example import Truth
from envs.polygons import AnswerStatus
from policies.mask_refiner import chosen_pass
from policies.refiner_pass import Unrolled
from rl.reliability import Reliability, reliability
from rl.scores import Interval, mean_interval, score_mask

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
    """IoU with the truth in 0..1, as rl/scores.py has it: an invalid answer has 0, and where nothing is true any but
    `empty`; ignored pixels count neither way. So here and below."""
    refined_iou: Numbers
    coarse_boundary_iou: Numbers
    """IoU of the boundary bands, in 0..1 (Cheng et al., 2021)."""
    refined_boundary_iou: Numbers
    predicted_iou: Numbers
    """Calibrated prediction for the mask returned, in 0..1."""
    raw_iou: Numbers
    """The same before calibration."""
    predicted_coarse_iou: Numbers
    """Calibrated prediction for the coarse mask, in 0..1."""
    raw_coarse_iou: Numbers
    passes: Counts
    """Passes run; 0 where the coarse mask was empty."""
    taken: Counts
    """The pass whose mask is returned; 0: the coarse mask as it came."""
    drawn: NDArray[np.bool_]
    """Whether the coarse mask held a pixel. Of an empty one nothing is predicted, so it has no say in reliability."""

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
        return MaskScores(**{name: array[which] for name, array in vars(self).items()})


def joined(parts: Sequence[MaskScores]) -> MaskScores:
    """The masks of one part or more, in their order; raises ValueError without a part."""
    if not parts:
        raise ValueError("No masks were scored, so there is nothing to join; score at least one scene.")
    return MaskScores(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


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
    coarse_iou, coarse_boundary_iou = _scored(masks[0], truths, said)
    refined_iou, refined_boundary_iou = _scored(masks[taken, each], truths, said)
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


def _scored(
    masks: NDArray[np.bool_], truths: Sequence[Truth], statuses: Sequence[AnswerStatus]
) -> tuple[Numbers, Numbers]:
    """IoU and boundary IoU [B] of masks [B, H, W]."""
    scores = [score_mask(mask, truth, status, "") for mask, truth, status in zip(masks, truths, statuses, strict=True)]
    return np.array([score.iou for score in scores]), np.array([score.boundary_iou for score in scores])


@dataclass(frozen=True)
class RefinerSummary:
    """MaskScores in short; intervals are 95 % bootstrap intervals over the masks."""

    num_masks: int
    num_drawn: int
    """Masks that held a pixel; only these are refined."""
    intervals: dict[str, Interval]
    """By the keys of INTERVAL_TITLES: means of IoU, boundary IoU and their paired gains, and shares of all masks."""
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
