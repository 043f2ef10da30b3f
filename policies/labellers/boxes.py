"""Boxes (x0, y0, x1, y1) of labellers: their corners, what lies in the image, and the surest of those that agree."""

import numpy as np
from numpy.typing import NDArray


def corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M, 4] (x0, y0, x1, y1) of boxes [M, 4] (x and y of the centre, width, height)."""
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def clipped(boxes: NDArray[np.float64], height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """([M, 4], [M]) boxes [M, 4] in pixels, cut at the edges of an image of height x width pixels, and whether any
    area of them lies in it (False where a number is not finite)."""
    cut = np.clip(boxes, 0, [width, height, width, height])
    shown = np.all(cut[:, 2:] > cut[:, :2], axis=1) & np.all(np.isfinite(boxes), axis=1)
    return cut, np.asarray(shown, np.bool_)


def boxes_apart(boxes: NDArray[np.float64], scores: NDArray[np.float64], most_iou: float) -> NDArray[np.int64]:
    """Places of boxes [M, 4] in the order of their scores [M], each unless its IoU with one before is above `most_iou`
    (non-maximum suppression)."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.argsort(-scores, kind="stable"), list[int]()
    while len(left):
        first, others = left[0], left[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[others, :2]), np.minimum(boxes[first, 2:], boxes[others, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        left = others[shared <= most_iou * (areas[first] + areas[others] - shared)]
    return np.array(kept, np.int64)
