"""Whether the reasoning before an answer is in its form: the format reward of Seg-Zero (arXiv 2503.06520).

A block that is missing where it is required, not closed, written twice or behind other text makes the whole answer
unparsable (`policy.thinking`), so what is left to tell here is whether there is one. Of an answer that can be read and
has none, nobody required it: the term does not apply, and an `optional` block is not a duty by another name.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 for a valid answer behind one well-formed block of reasoning, 0 for an invalid one, None without a block."""

    needs_thinking: ClassVar[bool] = True
    """A run whose answers have no reasoning is refused."""
    asks: ClassVar[tuple[str, ...]] = ("mask", "box", "point")
    weight: Annotated[float, at_least(0)] = 0.1
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """1.0, 0.0 or None, whatever the reasoning says."""
        if not comparison.status.valid:
            return 0.0
        return None if comparison.answer.thinking is None else 1.0
