"""How well the refined mask matches the true one: the outline is a means, the refiner's mask the end.

Pays an outline for what the refiner makes of it. A refiner that mends nearly anything pays nearly any outline, so the
outlines may grow lazy; `unmended` and docs/rewards.md say what to do and what to watch.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU of refined mask and truth; an empty truth pays 1 for the answer `empty`, 0 for any other.

    Nothing refines an empty answer, so that one earns 0 where something is true.
    """

    needs_refined: ClassVar[bool] = True
    """A run without a refiner is refused."""
    weight: Annotated[float, at_least(0)] = 1.0
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """The IoU, in [0, 1]; None only where no refiner ran."""
        return comparison.refined_iou
