"""What somebody shows beside words, in pixels of an image: regions, points, boxes, and masks to choose from."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.example import BoxPart, MaskPart, Part, PointPart, Prompt, TextPart
from envs.images import View
from envs.mask_files import masks_from_file, one_mask

_PLACES = re.compile(r"<(mask|point|box)>")


@dataclass(frozen=True)
class Shown:
    """All of it, in pixels of the image."""

    masks: tuple[NDArray[np.bool_], ...] = ()
    """Regions [H, W] that the words refer to."""
    points: tuple[tuple[float, float], ...] = ()
    """(x, y)."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """(x0, y0, x1, y1)."""
    candidates: NDArray[np.bool_] | None = None
    """[N, H, W] masks to choose from; None without."""

    def prompt(self, phrase: str, view: View, height: int, width: int) -> Prompt:
        """The words of a phrase and what is shown, in pixels of a view of the image of height x width pixels.

        Where the phrase says <mask>, <point> or <box>, the next of these stands there; else they come behind it, in
        this order. Raises ValueError where it says one more or less often than it is shown.
        """
        shown = {kind: list(parts) for kind, parts in self._parts(view, height, width)}
        pieces, parts = _PLACES.split(phrase), list[Part]()
        for kind, given in shown.items():
            said = pieces[1::2].count(kind)
            if said not in (0, len(given)):
                raise ValueError(
                    f"the phrase {phrase!r} says <{kind}> {said} times, and {len(given)} are given; give one --{kind} "
                    "for each, in their order, or leave the marks out."
                )
        for place, piece in enumerate(pieces):
            if place % 2:
                parts.append(shown[piece].pop(0))
            elif piece.strip():
                parts.append(TextPart(piece.strip()))
        return Prompt((*parts, *(part for left in shown.values() for part in left)))

    def pool(self, view: View) -> NDArray[np.bool_] | None:
        """[N, h, w] the candidates in a view."""
        return None if self.candidates is None else np.stack([view.mask(mask) for mask in self.candidates])

    def _parts(self, view: View, height: int, width: int) -> Iterator[tuple[str, list[Part]]]:
        down, right = (shown / size for shown, size in zip(view.size(height, width), (height, width), strict=True))
        yield "mask", [MaskPart(view.mask(mask)) for mask in self.masks]
        yield "point", [PointPart((x * right, y * down)) for x, y in self.points]
        yield "box", [BoxPart((x0 * right, y0 * down, x1 * right, y1 * down)) for x0, y0, x1, y1 in self.boxes]


NOTHING = Shown()


@dataclass(frozen=True)
class ShownFiles:
    """The same as files and texts, before the image is known."""

    candidates: Path | None = None
    """File of the masks to choose from; None without."""
    masks: tuple[Path, ...] = ()
    """A file with one mask for each region."""
    points: tuple[str, ...] = ()
    """Each "x,y"."""
    boxes: tuple[str, ...] = ()
    """Each "x0,y0,x1,y1"."""

    def read(self, image: Path, height: int, width: int) -> Shown:
        """What they show of an image of this size; image: its file, by whose path COCO's files know it.

        Raises FileNotFoundError or ValueError, in a line, for what cannot be read or does not fit the image.
        """
        pool = None if self.candidates is None else masks_from_file(self.candidates, image, height, width)
        return Shown(
            tuple(one_mask(path, image, height, width) for path in self.masks),
            tuple(point_of(text, height, width) for text in self.points),
            tuple(box_of(text, height, width) for text in self.boxes),
            pool,
        )


def point_of(text: str, height: int, width: int) -> tuple[float, float]:
    """ "x,y" in pixels; raises ValueError for another form, and for a point outside the image."""
    x, y = _numbers(text, 2, "--point", "X,Y")
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(
            f"--point is {text}, outside the image of {width} x {height} pixels; give x and y inside of it."
        )
    return x, y


def box_of(text: str, height: int, width: int) -> tuple[float, float, float, float]:
    """ "x0,y0,x1,y1" in pixels; raises ValueError for another form, and for a box that is inverted, has no area, or is
    not inside the image."""
    x0, y0, x1, y1 = _numbers(text, 4, "--box", "X0,Y0,X1,Y1")
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"--box is {text}; give its left, upper, right and lower edge in pixels, with an area, inside the image of "
            f"{width} x {height}."
        )
    return x0, y0, x1, y1


def _numbers(text: str, count: int, option: str, form: str) -> Sequence[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{option} is {text!r}; write {count} numbers with commas between, {form}, in pixels.")
    return numbers
