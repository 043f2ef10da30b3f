"""How the outlines are made that supervision teaches."""

from dataclasses import dataclass
from typing import Annotated

from envs.ranges import at_least, between, check_ranges, one_of


@dataclass(kw_only=True)
class OutlineSettings:
    """Outlines as an annotator would draw them around a mask."""

    scenes: Annotated[int | None, at_least(1, ", or to null where every training scene has outlines.")] = None
    """How many training scenes, the first ones, have outlines; null: all of them. Boxes are taught of every scene, and
    rewards see the masks of every scene."""
    max_vertices: int = 12
    """Vertices of an annotated outline."""
    max_rings: Annotated[int, at_least(1)] = 3
    """Rings of an annotated outline."""
    simplify: Annotated[str, one_of("budget", "iou", "douglas_peucker")] = "budget"
    """How outlines are simplified: to `max_vertices` (`budget`); to the fewest vertices that keep `min_iou` (`iou`); by
    Douglas and Peucker's rule within `peucker_share` (`douglas_peucker`). max_vertices bounds all three."""
    min_iou: Annotated[float, between(0, 1, open=True)] = 0.95
    """IoU with the mask that an outline keeps under `simplify: iou`, where max_vertices allow it."""
    peucker_share: Annotated[float, between(0, 1, open=True)] = 0.001
    """How far a dropped vertex may lie from the outline under `simplify: douglas_peucker`, as a share of the ring's
    perimeter; SimpleSeg has a thousandth."""
    answers: list[str] | None = None
    """Sentences in which answers stand, {answer} in their place, such as "It is {answer}."; which one an example has
    follows from its id. Only lenient reading takes them. None for the bare answer."""
    outline_margin: Annotated[float, at_least(0)] = 0.0
    """How far annotators draw outside the object, as a share of the square root of its area; 0 is an exact outline."""

    def __post_init__(self) -> None:
        self.check("outlines")

    def check(self, section: str) -> None:
        """Raise ValueError, naming the section of the config, for settings that are out of range or contradict."""
        check_ranges(self, section)
        if self.answers is not None and not (self.answers and all("{answer}" in text for text in self.answers)):
            raise ValueError(f"{section}.answers is {self.answers}; give texts with {{answer}} in each, or null.")
        if self.max_vertices < 3 * self.max_rings:
            raise ValueError(
                f"{section}.max_vertices is {self.max_vertices}, but max_rings is {self.max_rings} and a ring needs 3 "
                f"vertices; set max_vertices to {3 * self.max_rings} or more."
            )
