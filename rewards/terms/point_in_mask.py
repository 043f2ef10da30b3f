"""Whether the answer lies on the object at all: the point-in-mask reward of Rex-Omni (arXiv 2510.12798).

Rex-Omni's models answer with a point. An outline has none, so a point well inside stands for it: the middle of its
longest horizontal run of pixels, which unlike a centroid lies on the drawing whatever its shape.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.polygons import AnswerStatus
from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 where the answer's inner point is on a true pixel, else 0; where nothing is true, 1 for `empty` only.

    Where points are asked for, these are scored, each with the object that it is matched to (rewards/places.py).
    """

    asks: ClassVar[tuple[str, ...]] = ("mask", "point")
    weight: Annotated[float, at_least(0)] = 0.1
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """1.0 or 0.0; 0.0 for an answer without a pixel."""
        if comparison.asked == "point":
            return comparison.iou
        if comparison.target.area_px == 0:
            return float(comparison.status is AnswerStatus.EMPTY)
        point = comparison.inner_point_px
        return float(point is not None and comparison.target.contains(*point))
