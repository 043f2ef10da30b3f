"""Numbers in which a model writes places: fractions of the image, thousandths of it, or pixels of what it was shown.

Released models were trained on one of these each: SimpleSeg on fractions with three decimals, Qwen3-VL on thousandths,
Qwen2.5-VL on pixels of the resized image. Whatever they write, rings are in pixels of the photo.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Ring

COORDINATES = ("family", "unit", "thousandths", "resized_px")
"""What `coordinates` may say; "family": as the released models of the policy's family write them."""
ShownSize = Callable[[int, int], tuple[int, int]]
"""From height and width of an image to those of what a model sees of it, pixels after resizing."""


def shown_as_it_is(height: int, width: int) -> tuple[int, int]:
    """The size of an image that is not resized."""
    return height, width


@dataclass(frozen=True)
class Coordinates:
    """How numbers stand for places of an image, x along its width and y along its height."""

    kind: str = "unit"
    """One of COORDINATES but the first."""
    decimals: int = 3
    """Digits after the point of fractions."""
    shown_size: ShownSize = shown_as_it_is
    """Size of what the model sees of an image."""

    def span(self, height: int, width: int) -> NDArray[np.float64]:
        """[2] the numbers (x, y) of the image's lower right corner; those of its upper left one are 0."""
        if self.kind == "unit":
            return np.ones(2)
        if self.kind == "thousandths":
            return np.full(2, 1000.0)
        return np.array(self.shown_size(height, width)[::-1], np.float64)

    def steps(self, height: int, width: int) -> NDArray[np.int64]:
        """[2] steps (x, y) of the grid on which places are written, over the whole image."""
        if self.kind == "unit":
            return np.full(2, 10**self.decimals)
        return self.span(height, width).astype(np.int64)

    def text(self, step: int) -> str:
        """A number of the grid as it is written; fractions as 0.5 and 1.0 rather than 0.500 and 1.000, which is what
        Python's rounding prints and SimpleSeg was trained on."""
        if self.kind != "unit":
            return str(step)
        digits = f"{step / 10**self.decimals:.{self.decimals}f}".rstrip("0")
        return digits + "0" if digits.endswith(".") else digits

    def unit(self, points: Ring, height: int, width: int) -> Ring:
        """Numbers [N, 2] that were written, as fractions of width and height."""
        return np.asarray(points / self.span(height, width))
