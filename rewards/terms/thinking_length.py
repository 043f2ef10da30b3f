"""How long the reasoning before an answer is: neither cut to nothing nor drawn out.

Runs that reason have such a signal in many forms; this one, linear on both sides of a stretch that costs nothing, is
ours. It pays for a length and not for sense: any words fill a block. Keep its weight small beside an IoU.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least, one_of
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 from `least` to `most`, falling linearly to 0 at no length and at twice `most`; None without a block."""

    needs_thinking: ClassVar[bool] = True
    """A run whose answers have no reasoning is refused."""
    asks: ClassVar[tuple[str, ...]] = ("mask", "box", "point")
    weight: Annotated[float, at_least(0)] = 0.05
    """Share of this term in the weighted mean."""
    least: Annotated[int, at_least(0)] = 10
    """Length from which on all is earned."""
    most: Annotated[int, at_least(1)] = 100
    """Length up to which all is earned."""
    unit: Annotated[str, one_of("words", "characters")] = "words"
    """What is counted: words between white space, or characters."""

    def __post_init__(self) -> None:
        if self.most < self.least:
            raise ValueError(f"most is {self.most}, least {self.least}; set most to {self.least} or more.")

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1] by the length of the reasoning alone; 0.0 for an invalid answer."""
        thinking = comparison.answer.thinking
        if not comparison.status.valid:
            return 0.0
        if thinking is None:
            return None
        length = len(thinking.split()) if self.unit == "words" else len(thinking)
        if length < self.least:
            return length / self.least
        return max(0.0, min(1.0, 2.0 - length / self.most))
