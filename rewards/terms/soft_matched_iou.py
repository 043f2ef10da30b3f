"""For several targets: each drawn instance softly matched with the true ones, precision and recall in one number.

The reward of DECT-GRPO (ContourVLA): entropic transport between drawn and true instances by IoU, with bins for those
that are missed or wrong, then the harmonic mean of the expected IoU of the drawn ones (precision) and of the true ones
(recall). Beside `matched_iou` it has no jumps where the best pairing changes.
"""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.credit import soft_f
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """F of soft precision and recall, in [0, 1]; where nothing is true, 1 for `empty`, 0 for any other.

    The entropy of the matching takes less than a hundredth of what exact instances earn.
    """

    weight: Annotated[float, at_least(0)] = 0.5
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; never None."""
        if comparison.target.area_px == 0:
            return comparison.iou
        num_drawn = len(comparison.answer.instances)
        if num_drawn == 0:
            return 0.0
        if num_drawn == comparison.target.num_instances == 1:  # nothing to match
            return comparison.iou
        return soft_f(comparison.instance_iou)
