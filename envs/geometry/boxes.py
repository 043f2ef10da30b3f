"""Boxes compared with boxes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def box_ious(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """[P, K] IoU of boxes [P, 4] with boxes [K, 4], each x0, y0, x1, y1 with some area."""
    first = np.asarray(a, np.float64).reshape(-1, 1, 4)
    second = np.asarray(b, np.float64).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (first, second)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))
