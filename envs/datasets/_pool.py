"""Masks to choose from, for a composed scene: what can be seen of each object, and what a segmenter might say instead.

Letters: K objects, N candidates.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

LEAST = 4
"""Candidates of a pool, as far as so many different ones are found."""
_ALIKE = 0.9
"""IoU from which a distractor is not worth having beside another candidate."""
_TRIES = 12
"""Distractors that are made for each that is wanted."""


def pool_of(masks: Mask, most: int, rng: Generator) -> Mask:
    """[N, H, W] candidates in a random order: all K masks, and up to `most` - K others, drawn anew for each scene.

    masks: [K, H, W], none empty. The others are halves of an object, two objects as one, and objects moved by a part of
    their size; none is empty, or nearly the same as another candidate.
    """
    pool = list(masks)
    wanted = max(len(masks), int(rng.integers(LEAST, most + 1)))
    kinds: list[Callable[[Mask, Generator], Mask]] = [_half, _merged, _moved]
    for _ in range(_TRIES * (wanted - len(pool))):
        if len(pool) >= wanted:
            break
        made = kinds[int(rng.integers(len(kinds)))](masks, rng)
        if made.any() and all((made & held).sum() < _ALIKE * (made | held).sum() for held in pool):
            pool.append(made)
    return np.stack([pool[k] for k in rng.permutation(len(pool))])


def _half(masks: Mask, rng: Generator) -> Mask:
    """One side of an object, cut through its centre."""
    mask = masks[int(rng.integers(len(masks)))]
    rows, columns = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    row, column = np.mgrid[: mask.shape[0], : mask.shape[1]]
    side = (row - rows.mean()) * np.sin(angle) + (column - columns.mean()) * np.cos(angle) > 0
    return np.asarray(mask & side)


def _merged(masks: Mask, rng: Generator) -> Mask:
    """Two objects as one; of a single object nothing."""
    if len(masks) < 2:
        return np.zeros_like(masks[0])
    first, second = rng.permutation(len(masks))[:2]
    return np.asarray(masks[first] | masks[second])


def _moved(masks: Mask, rng: Generator) -> Mask:
    """An object moved by a fifth to a half of its size, cut off at the edge of the image."""
    mask = masks[int(rng.integers(len(masks)))]
    rows, columns = np.nonzero(mask)
    length = max(np.ptp(rows), np.ptp(columns)) + 1
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5) * length
    rows, columns = rows + round(far * np.sin(angle)), columns + round(far * np.cos(angle))
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    moved = np.zeros_like(mask)
    moved[rows[inside], columns[inside]] = True
    return moved
