"""The main reward: how well the filled outline matches the true mask."""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """Intersection over union of answer and truth; an empty truth pays 1 for the answer `empty`, 0 for any other."""

    weight: Annotated[float, at_least(0)] = 1.0
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """The IoU, in [0, 1]."""
        return comparison.iou
