"""Masks to choose from, for a composed scene: what can be seen of each object, and what a segmenter might say instead.

A segmenter's masks of the objects are not exact, and some it does not find; such pools can be had, too: the best choice
from one is then worse than the truth.

Letters: K objects, N candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

Mask = NDArray[np.bool_]

LEAST = 4
"""Candidates of a pool, as far as so many different ones are found."""
_ALIKE = 0.9
"""IoU from which a distractor is not worth having beside another candidate."""
_TRIES = 12
"""Distractors that are made for each that is wanted."""


@dataclass(frozen=True)
class Segmenter:
    """How far a pool's masks of the objects are from what can be seen of these."""

    off_px: int = 0
    """Most pixels by which each is grown or shrunk, and moved along each axis; each drawn evenly."""
    missing: float = 0.0
    """Chance that an object has no mask of its own."""

    def found(self, masks: Mask, rng: Generator) -> list[Mask]:
        """What is found of masks [K, H, W]; at least one of them, and none empty."""
        there = [mask if self.off_px == 0 else _rough(mask, self.off_px, rng) for mask in masks]
        if self.missing == 0:
            return there
        kept = [mask for mask, chance in zip(there, rng.random(len(there)), strict=True) if chance >= self.missing]
        return kept or [there[int(rng.integers(len(there)))]]


EXACT = Segmenter()


def pool_of(masks: Mask, most: int, rng: Generator, segmenter: Segmenter = EXACT) -> Mask:
    """[N, H, W] candidates in a random order: all K masks, as a segmenter finds them, and others, drawn anew for each
    scene, so that there are `most` at most.

    masks: [K, H, W], none empty. The others are halves of an object, two objects as one, and objects moved by a part of
    their size; none is empty, or nearly the same as another candidate.
    """
    pool = segmenter.found(masks, rng)
    wanted = max(len(masks), int(rng.integers(LEAST, most + 1)))
    kinds: list[Callable[[Mask, Generator], Mask]] = [_half, _merged, _moved]
    for _ in range(_TRIES * (wanted - len(pool))):
        if len(pool) >= wanted:
            break
        made = kinds[int(rng.integers(len(kinds)))](masks, rng)
        if made.any() and all((made & held).sum() < _ALIKE * (made | held).sum() for held in pool):
            pool.append(made)
    return np.stack([pool[k] for k in rng.permutation(len(pool))])


def _rough(mask: Mask, off_px: int, rng: Generator) -> Mask:
    """A mask grown or shrunk along its outline and moved, each by up to `off_px`; itself where nothing is left."""
    grown, down, right = rng.integers(-off_px, off_px + 1, 3).tolist()
    changed = mask
    if grown:
        changed = (binary_dilation if grown > 0 else binary_erosion)(mask, iterations=abs(grown))
    rows, columns = np.nonzero(changed)
    found = _drawn(rows + down, columns + right, mask)
    return found if found.any() else mask


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
    return _drawn(rows + round(far * np.sin(angle)), columns + round(far * np.cos(angle)), mask)


def _drawn(rows: NDArray[np.int64], columns: NDArray[np.int64], like: Mask) -> Mask:
    """The pixels at (rows, columns), those outside of the image left out."""
    inside = (rows >= 0) & (rows < like.shape[0]) & (columns >= 0) & (columns < like.shape[1])
    drawn = np.zeros_like(like)
    drawn[rows[inside], columns[inside]] = True
    return drawn
