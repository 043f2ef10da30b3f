"""For several targets: how many instances are found, and how many of the answer's are none: F1, as VGent is scored on
MaskGroups-HQ.

An instance is found where one of the answer's has an IoU with it of at least `min_iou`; each finds one at most, and as
many are paired as can be. How well a found one fits changes nothing, so that alone this teaches no outlines.
"""

from dataclasses import dataclass
from typing import Annotated

from scipy.optimize import linear_sum_assignment

from envs.ranges import at_least, between
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """2 * #pairs / (#answered + #true); where nothing is true, 1 for `empty`, 0 for any other."""

    weight: Annotated[float, at_least(0)] = 0.5
    """Share of this term in the weighted mean."""
    min_iou: Annotated[float, between(0.5, 1)] = 0.5
    """Least IoU of an instance with the true one that it finds."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; never None."""
        if comparison.target.area_px == 0:
            return comparison.iou
        num_answered, num_true = len(comparison.answer.instances), comparison.target.num_instances
        if num_answered == 0:
            return 0.0
        fits = comparison.instance_iou >= self.min_iou
        pairs = int(fits[linear_sum_assignment(fits, maximize=True)].sum())
        return 2 * pairs / (num_answered + num_true)
