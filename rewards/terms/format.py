"""Whether the answer could be read at all."""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 for an answer whose status is `ok` or `empty`, 0 for any other."""

    weight: Annotated[float, at_least(0)] = 0.1
    """Share of this term in the weighted mean."""

    def __call__(self, comparison: Comparison) -> float | None:
        """1.0 or 0.0, by the answer's status alone."""
        return float(comparison.status.valid)
