"""What kind of object a true mask shows (size, thinness, number of parts), and what the refiner gains on each kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label

from rl.refiner_scores import MaskScores
from rl.scores import Interval, mean_interval

_TOUCHING = np.ones((3, 3), np.bool_)
"""Pixels that touch at a corner are of one part."""


@dataclass(frozen=True)
class Traits:
    """One true mask, not empty."""

    size: float
    """Square root of its share of the image's area: 0.25 is a square of a quarter of the image's side."""
    thinness: float
    """Square root of its area over the diameter of the largest disc within: 0.89 for a disc, 1 for a square, 2 for a
    bar four times as long as wide."""
    parts: int
    """Pieces that do not touch."""

    @property
    def numbers(self) -> dict[str, float]:
        """The traits by name."""
        return {"size": self.size, "thinness": self.thinness, "parts": float(self.parts)}


@dataclass(frozen=True)
class Kinds:
    """A way to tell objects apart: the kinds' names and the lower ends of all but the first."""

    title: str
    trait: str
    """Its name in Traits.numbers."""
    starts: tuple[float, ...]
    """[K - 1] rising; an object is of the last kind whose start it reaches."""
    names: tuple[str, ...]
    """[K]"""


KINDS = (
    Kinds(
        "Size of the object, of the image's side",
        "size",
        (0.125, 0.25, 0.5),
        ("under 1/8", "1/8 to 1/4", "1/4 to 1/2", "1/2 or more"),
    ),
    Kinds(
        "Thinness of the object",
        "thinness",
        (1.25, 2.0),
        ("compact, as a disc or square", "longish, up to 1 to 4", "thin, over 1 to 4"),
    ),
    Kinds("Parts of the object", "parts", (2, 3), ("1", "2", "3 or more")),
)


@dataclass(frozen=True)
class KindRow:
    """The masks of one kind of object."""

    name: str
    num_masks: int
    coarse_iou: float
    """Mean in 0..1."""
    refined_iou: float
    gain_iou: Interval
    gain_boundary_iou: Interval


def traits(mask: NDArray[np.bool_]) -> Traits | None:
    """Traits of a true mask [H, W], or None where it is empty."""
    area_px = int(mask.sum())
    if not area_px:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # On half pixels the middle of a bar lies on a centre, be it odd or even; distances there are diameters here.
    halved = np.pad(cropped.repeat(2, axis=0).repeat(2, axis=1), 1)
    diameter_px = float(distance_transform_edt(halved).max())
    return Traits(
        size=math.sqrt(area_px / mask.size),
        thinness=math.sqrt(area_px) / diameter_px,
        parts=int(label(cropped, _TOUCHING)[1]),
    )


def gain_by_kind(scores: MaskScores, objects: Sequence[Traits | None], kinds: Kinds) -> list[KindRow]:
    """A row a kind that has a mask, in the order of `kinds`; masks without a true object (None) are left out.

    objects: [S], of the masks in `scores`.
    """
    values = [np.nan if each is None else each.numbers[kinds.trait] for each in objects]
    kind = np.where(np.isnan(values), -1, np.digitize(np.nan_to_num(values), kinds.starts))
    rows = []
    for k, name in enumerate(kinds.names):
        mine = scores.selected(kind == k)
        if len(mine):
            rows.append(
                KindRow(
                    name=name,
                    num_masks=len(mine),
                    coarse_iou=float(mine.coarse_iou.mean()),
                    refined_iou=float(mine.refined_iou.mean()),
                    gain_iou=mean_interval(mine.gain_iou),
                    gain_boundary_iou=mean_interval(mine.gain_boundary_iou),
                )
            )
    return rows
