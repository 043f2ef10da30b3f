"""Masks put together: of one object that was drawn in several shapes, and of a patch of a photo."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.readers.base import Shape


@dataclass(frozen=True)
class UnitedShape:
    """What any of some shapes covers."""

    shapes: tuple[Shape, ...]

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels of all shapes."""
        mask = np.zeros((height, width), np.bool_)
        for shape in self.shapes:
            mask |= shape.mask(height, width)
        return mask


def united(shapes: Sequence[Shape]) -> Shape:
    """One shape of one or more."""
    return shapes[0] if len(shapes) == 1 else UnitedShape(tuple(shapes))


def placed(patch: NDArray[np.bool_], corner: tuple[int, int], height: int, width: int) -> NDArray[np.bool_]:
    """[height, width] nothing but `patch` [h, w] at `corner` (left, top), cut off at the edge."""
    mask = np.zeros((height, width), np.bool_)
    (left, top), (rows, columns) = corner, patch.shape
    y0, y1 = max(0, top), min(height, top + rows)
    x0, x1 = max(0, left), min(width, left + columns)
    if y0 < y1 and x0 < x1:
        mask[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask
