"""Masks in parts: pixels that touch, also by a corner, are one part; holes are background shut in by it."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

_TOUCHING = np.ones((3, 3), np.int64)


def parts_of(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([H, W], [K]) the number of each pixel's part, from 1, 0 outside of the mask, and how many pixels each has."""
    numbers, count = label(mask, structure=_TOUCHING)
    return numbers.astype(np.int64), np.bincount(numbers.ravel(), minlength=count + 1)[1:]


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[H, W] the part of most pixels, the first of equals; nothing of a mask without a pixel."""
    numbers, sizes = parts_of(mask)
    return np.asarray(numbers == sizes.argmax() + 1) if len(sizes) else mask


def without_specks(mask: NDArray[np.bool_], least_share: float) -> NDArray[np.bool_]:
    """[H, W] the mask without parts of less than a share of its pixels; its largest part stays in any case."""
    numbers, sizes = parts_of(mask)
    if len(sizes) < 2:
        return mask
    stays = sizes >= min(least_share * sizes.sum(), sizes.max())
    return np.asarray(np.concatenate([[False], stays])[numbers])


def without_holes(mask: NDArray[np.bool_], most_share: float) -> NDArray[np.bool_]:
    """[H, W] the mask with holes of at most a share of its pixels filled.

    A hole is a part of the background, touching by sides alone, that has no pixel at the image's edge.
    """
    numbers, count = label(~mask)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    edges = np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])
    fills = sizes <= most_share * mask.sum()
    fills[0] = False
    fills[np.unique(edges)] = False
    return np.asarray(mask | fills[numbers])


def edges_touched(mask: NDArray[np.bool_]) -> int:
    """How many of the image's four edges have a pixel of the mask."""
    return int(sum(bool(edge.any()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])))
