"""For several targets: each drawn instance against the true one that it fits best, one to one.

Hungarian matching, and the sum divided by the larger of both numbers, as in VisionReasoner (arXiv 2505.12081): a guess
too many and an object too few cost the same, so neither flooding the image with instances nor drawing one outline
around all of them pays. VisionReasoner thresholds the IoU of a pair at 0.5; here it is taken as it is.
"""

from dataclasses import dataclass
from typing import Annotated

from scipy.optimize import linear_sum_assignment

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """Sum of the matched IoUs over max(#drawn, #true); where nothing is true, 1 for `empty`, 0 for any other."""

    weight: Annotated[float, at_least(0)] = 0.5
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; never None."""
        if comparison.target.area_px == 0:
            return comparison.iou
        num_drawn, num_true = len(comparison.answer.instances), comparison.target.num_instances
        if num_drawn == 0:
            return 0.0
        if num_drawn == num_true == 1:  # by far the most frequent
            return comparison.iou
        iou = comparison.instance_iou
        return float(iou[linear_sum_assignment(iou, maximize=True)].sum()) / max(num_drawn, num_true)
