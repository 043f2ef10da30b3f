"""The IoU that is kept when vertices cost something: redundant vertices lose, needed ones do not.

Each truth allows as many vertices as its own outline needs, once simplified (Visvalingam and Whyatt 1993), to keep
`min_iou` of itself. Up to there an answer earns its IoU; beyond, its IoU shrinks as allowed / spent. The form is ours.
"""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least, between
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU * min(1, allowed / spent); an empty truth pays 1 for the answer `empty`, 0 for any other.

    So the exact outline of a mask, a vertex for every stair of its pixels, earns less than 1: it is right, but not
    economical.
    """

    weight: Annotated[float, at_least(0)] = 0.5
    """Share of this term in the weighted mean."""
    free_vertices: Annotated[int, at_least(3, ", as a ring needs.")] = 8
    """Always allowed, however simple the truth is."""
    min_iou: Annotated[float, between(0, 1, open=True, advice=", such as 0.95.")] = 0.95
    """IoU with the truth that its simplified outline must keep; above 0, at most 1. More of it allows more vertices."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1], never above the IoU; never None."""
        spent, iou = comparison.num_vertices, comparison.iou
        if spent <= self.free_vertices or iou == 0:
            return iou
        # Slow for the first answer to a truth, a look-up for the others.
        allowed = max(self.free_vertices, comparison.target.outline_vertices(self.min_iou))
        return iou * min(1.0, allowed / spent)
