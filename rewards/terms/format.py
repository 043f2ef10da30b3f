"""Whether the answer could be read at all, and whether it stands alone."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least, between
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 for an answer whose status is `ok` or `empty`, 0 for any other.

    What it pays for where only lenient reading takes the answer, in a sentence or a fence, says `wrapped`.
    """

    asks: ClassVar[tuple[str, ...]] = ("mask", "box", "point")
    weight: Annotated[float, at_least(0)] = 0.1
    """Share of this term in the weighted mean."""
    wrapped: Annotated[float, between(0, 1, advice=" (below 1, the bare answer pays more).")] = 1.0
    """What a valid answer earns with something around it, such as SimpleSeg's sentences; 0 to 1."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1], by the answer's status, and by its form where `wrapped` is below 1."""
        if not comparison.status.valid:
            return 0.0
        return 1.0 if self.wrapped == 1 or comparison.answer.bare else self.wrapped
