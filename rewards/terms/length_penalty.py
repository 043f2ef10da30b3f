"""A price on vertices, whatever the answer is worth: the ablation of SimpleSeg (arXiv 2601.19228).

SimpleSeg reports that a penalty on the length of the answer harms the outlines it learns. The form of that penalty was
not published; the one here, linear between two numbers of vertices, is ours. It pays for a short answer and not for a
right one, so keep its weight small beside an IoU; `vertex_economy` prices vertices by the IoU they buy.
"""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """1 up to `free_vertices`, falling linearly to 0 at `max_vertices`."""

    weight: Annotated[float, at_least(0)] = 0.1
    """Share of this term in the weighted mean."""
    free_vertices: Annotated[int, at_least(0)] = 16
    """Vertices of all rings that cost nothing."""
    max_vertices: int = 128
    """Vertices of all rings from which on nothing is earned."""

    def __post_init__(self) -> None:
        if self.max_vertices <= self.free_vertices:
            raise ValueError(
                f"max_vertices is {self.max_vertices}, free_vertices {self.free_vertices}; "
                "set max_vertices above free_vertices."
            )

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1] by the number of vertices alone; 1 for the answer `empty`."""
        spare = (self.max_vertices - comparison.num_vertices) / (self.max_vertices - self.free_vertices)
        return max(0.0, min(1.0, spare))
