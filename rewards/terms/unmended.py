"""What the refiner cannot mend, taken off: an outline pays for the mistakes that stay, and for no others.

Wrong pixels that the refiner puts right cost nothing. Those that it spoils cost nothing either: they are the refiner's
fault, not the outline's. So the reward asks for outlines that the refiner can finish, and leaves fine detail to it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU with the truth of the outline in which everything is put right that the refiner mends, nothing spoiled.

    The outline's own IoU where the refiner mends nothing; never less than that, nor than the refined mask's. An empty
    truth pays 1 for the answer `empty`, 0 for any other; nothing refines an empty answer, so that one earns 0 where
    something is true.
    """

    needs_refined: ClassVar[bool] = True
    """A run without a refiner is refused."""
    weight: Annotated[float, at_least(0)] = 1.0
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; None only where no refiner ran."""
        unmended = comparison.unmended
        return None if unmended is None else 1.0 - unmended
