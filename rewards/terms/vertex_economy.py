"""The IoU that is kept when vertices cost something: redundant vertices lose, needed ones do not.

Each truth allows as many vertices as its own outline needs, once simplified (Visvalingam and Whyatt 1993), to keep
`min_iou` of itself. Up to there an answer earns its IoU; beyond, its IoU shrinks as allowed / spent. The form is ours.
"""

from dataclasses import dataclass
from math import isfinite

from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU * min(1, allowed / spent); an empty truth pays 1 for the answer `empty`, 0 for any other.

    So the exact outline of a mask, a vertex for every stair of its pixels, earns less than 1: it is right, but not
    economical. Raises ValueError for settings out of range.
    """

    weight: float = 0.5
    free_vertices: int = 8
    """Always allowed, however simple the truth is."""
    min_iou: float = 0.95
    """IoU with the truth that its simplified outline must keep; above 0, at most 1. More of it allows more vertices."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"weight is {self.weight}; set it to a finite number of 0 or more.")
        if self.free_vertices < 3:
            raise ValueError(f"free_vertices is {self.free_vertices}; a ring needs 3, set it to 3 or more.")
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"min_iou is {self.min_iou}; set it above 0 and to 1 at most, such as 0.95.")

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1], never above the IoU; never None."""
        spent, iou = comparison.num_vertices, comparison.iou
        if spent <= self.free_vertices or iou == 0:
            return iou
        # Slow for the first answer to a truth, a look-up for the others.
        allowed = max(self.free_vertices, comparison.target.outline_vertices(self.min_iou))
        return iou * min(1.0, allowed / spent)
