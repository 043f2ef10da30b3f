"""How the outlines are made that supervision teaches."""

from dataclasses import dataclass, field
from typing import Annotated

from envs.ranges import at_least, between, check_ranges, one_of

ORDERS = ("clockwise", "counter_clockwise", "any_start", "shuffled")
"""Orders of a ring's vertices on screen: from its topmost, then leftmost vertex, one way or the other; clockwise from
any vertex; in no order at all."""


@dataclass
class Annotator:
    """One kind of annotator among several; what is left out is as the outlines' settings say for all."""

    max_vertices: int | None = None
    """Vertices of an outline."""
    max_rings: Annotated[int | None, at_least(1)] = None
    """Rings of an outline."""
    order: Annotated[str | None, one_of(*ORDERS)] = None
    """Order of a ring's vertices: clockwise, counter_clockwise, any_start or shuffled."""
    outline_margin: Annotated[float | None, at_least(0)] = None
    """How far is drawn outside the object, as a share of the square root of its area."""


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
    simplify: Annotated[str, one_of("budget", "chosen", "iou", "douglas_peucker", "traced")] = "budget"
    """How outlines are simplified: to `max_vertices` (`budget`), or to those `max_vertices` that win most area
    (`chosen`, nearer and slower); to the fewest vertices that keep `min_iou` (`iou`); by Douglas and Peucker's rule
    within `peucker_share` (`douglas_peucker`). max_vertices bounds all four. `traced`: not at all, for a codec that
    fits what it writes itself, as `svg_path` does."""
    min_iou: Annotated[float, between(0, 1, open=True)] = 0.95
    """IoU with the mask that an outline keeps under `simplify: iou`, where max_vertices allow it."""
    peucker_share: Annotated[float, between(0, 1, open=True)] = 0.001
    """How far a dropped vertex may lie from the outline under `simplify: douglas_peucker`, as a share of the ring's
    perimeter; SimpleSeg has a thousandth."""
    order: Annotated[str, one_of(*ORDERS)] = "clockwise"
    """Order of a ring's vertices on screen: `clockwise` or `counter_clockwise` from the topmost, then leftmost one;
    `any_start`, clockwise from any; `shuffled`, none. Holes go the other way. What is free follows from the example's
    id."""
    annotators: list[Annotator] = field(default_factory=list)
    """Kinds of annotators, such as {max_vertices: 9} and {order: any_start}; which draws an example follows from
    its id. Empty: all outlines are drawn alike."""
    draft: Annotator | None = None
    """Who draws the outline that stands for {draft} in `answers`; null where none does."""
    answers: list[str] | None = None
    """Sentences in which answers stand, {answer} in their place, such as "It is {answer}."; which one an example has
    follows from its id. Only lenient reading takes them, but for a block that policy.thinking has read apart, such as a
    draft that the answer revises: "<think> {draft} </think> {answer}". None for the bare answer."""
    outline_margin: Annotated[float, at_least(0)] = 0.0
    """How far annotators draw outside the object, as a share of the square root of its area; 0 is an exact outline."""

    def __post_init__(self) -> None:
        self.check("outlines")

    def check(self, section: str) -> None:
        """Raise ValueError, naming the section of the config, for settings that are out of range or contradict."""
        check_ranges(self, section)
        if self.answers is not None and not (self.answers and all("{answer}" in text for text in self.answers)):
            raise ValueError(f"{section}.answers is {self.answers}; give texts with {{answer}} in each, or null.")
        self._check_vertices(section, self.max_vertices, self.max_rings)
        named = {f"{section}.annotators[{k}]": one for k, one in enumerate(self.annotators)}
        named |= {} if self.draft is None else {f"{section}.draft": self.draft}
        for where, one in named.items():
            check_ranges(one, where)
            self._check_vertices(where, one.max_vertices or self.max_vertices, one.max_rings or self.max_rings)
        orders = {section: self.order} | {where: one.order for where, one in named.items()}
        for where, order in orders.items() if self.simplify == "traced" else ():
            if order not in (None, "clockwise"):
                raise ValueError(
                    f"{where}.order is {order}, but {section}.simplify is traced: the codec chooses the points of an "
                    "outline itself, in the order of its tracing; set order to clockwise, or simplify to chosen."
                )
        if (self.draft is not None) != any("{draft}" in text for text in self.answers or []):
            both = "draft: {max_vertices: 6, max_rings: 2} and answers: ['<think> {draft} </think> {answer}']"
            told = "is not set, but {draft} stands" if self.draft is None else "is set, but no {draft} stands"
            raise ValueError(
                f"{section}.draft {told} in {section}.answers {self.answers}; set both, such as {both}, or neither."
            )

    @staticmethod
    def _check_vertices(where: str, max_vertices: int, max_rings: int) -> None:
        if max_vertices < 3 * max_rings:
            raise ValueError(
                f"{where}.max_vertices is {max_vertices}, but max_rings is {max_rings} and a ring needs 3 "
                f"vertices; set max_vertices to {3 * max_rings} or more, or max_rings to {max(1, max_vertices // 3)}."
            )
