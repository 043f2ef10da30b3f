"""Stage: groups of objects that one phrase means, by rules: the four criteria of RAS's data.

category   "all apples"          objects of one name
attribute  "everything red"      objects most of whose pixels have a colour
place      "everything on the left"   objects whose centres lie in one half of the image
free       a phrase              objects that a captioner gave the same words
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.datasets._asked import CLEAR, UNLIKE, colours_of
from envs.ranges import at_least
from rollout.label.record import Group, LabelImage, LabelObject, Shown

CRITERIA = ("category", "attribute", "place", "free")
_MOST_PIXELS = 4096
"""Pixels of an object that its colour is told by."""


@dataclass(frozen=True)
class Labeller:
    """Questions that several objects answer."""

    by: tuple[str, ...] = CRITERIA
    """Criteria, of category, attribute, place and free."""
    category: str = "all {name}"
    attribute: str = "everything {colour}"
    place: str = "everything on the {side}"
    """Phrases; {name}, {colour} and {side} (left, right, top or bottom) are filled in."""
    least: Annotated[int, at_least(1)] = 1
    """Fewest objects of a group."""
    HAS_MODEL: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ValueError for a criterion that is none."""
        if wrong := [name for name in self.by if name not in CRITERIA]:
            raise ValueError(f"groups.by has {wrong[0]!r}; it can have {', '.join(CRITERIA)}.")

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Adds groups of the objects that have masks; objects themselves stay as they are."""
        return [self._grouped(one) if one.image.is_open else one.image for one in images]

    def _grouped(self, shown: Shown) -> LabelImage:
        masked = [found for found in shown.image.objects if found.mask is not None]
        makers: dict[str, Callable[[], Iterator[tuple[str, list[LabelObject]]]]] = {
            "category": lambda: self._by_name(masked),
            "attribute": lambda: self._by_colour(masked, shown),
            "place": lambda: self._by_place(masked, shown.image),
            "free": lambda: _by_phrase(masked),
        }
        groups = [
            Group(phrase, tuple(found.number for found in members), criterion)
            for criterion in self.by
            for phrase, members in makers[criterion]()
            if len(members) >= self.least
        ]
        return replace(shown.image, groups=(*shown.image.groups, *groups))

    def _by_name(self, objects: Sequence[LabelObject]) -> Iterator[tuple[str, list[LabelObject]]]:
        for name in dict.fromkeys(found.name for found in objects if found.name):
            yield self.category.replace("{name}", name), [found for found in objects if found.name == name]

    def _by_colour(self, objects: Sequence[LabelObject], shown: Shown) -> Iterator[tuple[str, list[LabelObject]]]:
        """Colours that no object has in part, so that the answer is one."""
        shares = [colours_of(_some_pixels(shown.pixels[shown.image.mask(found)])) for found in objects]
        for colour in dict.fromkeys(colour for one in shares for colour, share in one.items() if share >= CLEAR):
            if any(UNLIKE < one[colour] < CLEAR for one in shares):
                continue
            members = [found for found, one in zip(objects, shares, strict=True) if one[colour] >= CLEAR]
            yield self.attribute.replace("{colour}", colour), members

    def _by_place(self, objects: Sequence[LabelObject], image: LabelImage) -> Iterator[tuple[str, list[LabelObject]]]:
        """Halves of the image, each unless an object lies across its middle."""
        for axis, (side, low, high) in enumerate((("width", "left", "right"), ("height", "top", "bottom"))):
            middle = (image.width if side == "width" else image.height) / 2
            if any(found.box_px[axis] < middle < found.box_px[axis + 2] for found in objects):
                continue
            for name, is_there in (
                (low, lambda box, a=axis, m=middle: box[a + 2] <= m),
                (high, lambda box, a=axis, m=middle: box[a] >= m),
            ):
                yield self.place.replace("{side}", name), [found for found in objects if is_there(found.box_px)]


def _by_phrase(objects: Sequence[LabelObject]) -> Iterator[tuple[str, list[LabelObject]]]:
    """Phrases that are not just a name, which `category` asks for."""
    for phrase in dict.fromkeys(found.phrase for found in objects if found.phrase and found.phrase != found.name):
        yield phrase or "", [found for found in objects if found.phrase == phrase]


def _some_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Evenly taken of pixels [N, 3], at most a few thousand."""
    return pixels[:: max(1, -(-len(pixels) // _MOST_PIXELS))]
