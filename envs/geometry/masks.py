"""Masks compared and placed: the overlap of two, the box around one, and many sorted by their size.

Frames: masks are bool [H, W]; boxes are (x0, y0, x1, y1) px along pixel edges.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks [H, W] in 0..1; 1 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def reaches_iou(one: NDArray[np.bool_], other: NDArray[np.bool_], least: float) -> bool:
    """Whether two masks [H, W] overlap by an IoU of `least` or more, told without a division."""
    return bool((one & other).sum() >= least * (one | other).sum())


def tight_box_px(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) around the pixels of `mask` [H, W]; None where there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def places_by_size(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Places of equal sizes, in order; sizes in the order in which they first occur."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, size in enumerate(sizes):
        places.setdefault(size, []).append(place)
    return list(places.values())
