"""Where the outline lies, with a slope also where the IoU is 0 or flat.

After the distance term of SimpleSeg's reward, made independent of scale: the squared distance between the centroids is
measured in areas of the true object, so that a small object and a large one ask for the same relative care.
"""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 where the centroids coincide, falling with their squared distance over the true object's area, down to 0."""

    weight: Annotated[float, at_least(0)] = 0.2
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """max(0, 1 - d^2 / area), in [0, 1]; 0 for an answer without a pixel, None where the truth has none."""
        truth = comparison.target.centroid_px
        if truth is None:
            return None
        if comparison.centroid_px is None:
            return 0.0
        x, y = comparison.centroid_px
        squared_distance = (x - truth[0]) ** 2 + (y - truth[1]) ** 2
        return max(0.0, 1.0 - squared_distance / comparison.target.area_px)
