"""How sharply the outline follows the true one: Boundary IoU (Cheng et al. 2021, arXiv 2103.16562).

Two masks are compared in a band along their outlines only, 2 % of the image's diagonal wide, so a large object drawn a
little too large costs as much as it looks. On its own that measure is blind to the inside: a hollow outline, no wider
than the band, has the band of the whole object. The authors' evaluation therefore takes the lower of Boundary IoU and
mask IoU, and so does this reward unless it is told otherwise.
"""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU of the bands along both outlines; an empty truth pays 1 for the answer `empty`, 0 for any other."""

    weight: Annotated[float, at_least(0)] = 0.3
    """Share of this term in the weighted mean."""
    capped: bool = True
    """Never more than the mask IoU. False rewards a hollow outline like the full object."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; never None."""
        if comparison.target.area_px == 0:
            return comparison.iou
        return min(comparison.boundary_iou, comparison.iou) if self.capped else comparison.boundary_iou
