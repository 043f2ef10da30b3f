"""Morphological smoothing, what a refiner has to beat: a mask opened and closed with a disc, which sees no image.

After Serra (1982): opening removes what is thinner than the disc, closing fills gaps and bays that are narrower. The
radius is relative to the object, so that small and large ones are smoothed alike, and is chosen on training pairs.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.damage import dilated
from envs.example import Truth
from envs.polygons import AnswerStatus
from rl.scores import score_mask

RADIUS_SHARES = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)
"""Radii to choose from, as shares of the square root of the mask's area; 0 leaves every mask as it is."""


def smoothed(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """A bool mask [H, W], opened and then closed with a disc of `radius_px`; as it came where nothing would be left.

    The disc holds the pixels whose centres are within radius_px, so a radius below 1 changes nothing. What lies beyond
    the image counts neither as drawn nor as left out.
    """
    opened = dilated(_eroded(mask, radius_px), radius_px)
    return _eroded(dilated(opened, radius_px), radius_px) if opened.any() else mask.copy()


def smoothed_by_size(mask: NDArray[np.bool_], radius_share: float) -> NDArray[np.bool_]:
    """A bool mask [H, W], smoothed with a radius of `radius_share` of the square root of its area."""
    return smoothed(mask, radius_share * math.sqrt(mask.sum()))


def fit_radius_share(coarse: Sequence[NDArray[np.bool_]], truths: Sequence[Truth]) -> float:
    """The one of RADIUS_SHARES whose smoothed coarse masks score the highest mean IoU; of equals the smallest.

    coarse: bool masks [H, W], one of the size of each truth. Raises ValueError without a pair, or for unequal numbers.
    """
    if not coarse or len(coarse) != len(truths):
        raise ValueError(f"{len(coarse)} coarse masks and {len(truths)} truths; give one or more pairs of them.")
    means = [
        np.mean([_iou(smoothed_by_size(mask, share), truth) for mask, truth in zip(coarse, truths, strict=True)])
        for share in RADIUS_SHARES
    ]
    return RADIUS_SHARES[int(np.argmax(means))]


def _eroded(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    return ~dilated(~mask, radius_px)


def _iou(mask: NDArray[np.bool_], truth: Truth) -> float:
    return score_mask(mask, truth, AnswerStatus.OK, "").iou
