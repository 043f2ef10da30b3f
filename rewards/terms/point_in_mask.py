"""Whether the answer lies on the object at all: the point-in-mask reward of Rex-Omni (arXiv 2510.12798).

Rex-Omni's models answer with a point. An outline has none, so a point well inside stands for it: the middle of its
longest horizontal run of pixels, which unlike a centroid lies on the drawing whatever its shape.
"""

from dataclasses import dataclass
from math import isfinite

from envs.polygons import AnswerStatus
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 where the answer's inner point is on a true pixel, else 0; an empty truth pays 1 for the answer `empty` only.

    Raises ValueError for settings out of range.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"weight is {self.weight}; set it to a finite number of 0 or more.")

    def __call__(self, comparison: Comparison) -> float | None:
        """1.0 or 0.0; 0.0 for an answer without a pixel."""
        if comparison.target.area_px == 0:
            return float(comparison.status is AnswerStatus.EMPTY)
        point = comparison.inner_point_px
        return float(point is not None and comparison.target.contains(*point))
