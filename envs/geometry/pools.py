"""What can be chosen from a pool of candidate masks, and what a pool should hold: no copies, no specks, not too many.

Letters: N candidates, K true masks, P pixels, 2^N choices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.geometry.masks import iou

MEANT = 0.5
"""IoU with a true instance from which a candidate is meant by it."""


def meant(candidates: NDArray[np.bool_], masks: NDArray[np.bool_], least: float = MEANT) -> NDArray[np.bool_]:
    """[N] candidates that stand for a true mask: for each of masks [K, H, W] the one of highest IoU, if it is at least
    `least`, the first of equals; of two masks that would take the same one, the later takes the next
    best. A mask without a pixel is meant by none."""
    chosen = np.zeros(len(candidates), np.bool_)
    for mask in masks[masks.any(axis=(1, 2))]:
        ious = np.array([iou(candidate, mask) for candidate in candidates])
        ious[chosen] = -1.0
        if len(ious) and ious.max() >= least:
            chosen[ious.argmax()] = True
    return chosen


def oracle(candidates: NDArray[np.bool_], union: NDArray[np.bool_]) -> float:
    """IoU of `best_choice`; 1 where nothing is true, since nothing need be chosen."""
    if not union.any():
        return 1.0
    return iou(np.asarray(candidates[best_choice(candidates, union)].any(axis=0)), union)


def best_choice(candidates: NDArray[np.bool_], union: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] the best choice of candidates [N, H, W] for a union [H, W] that adding and leaving one at a time finds, from
    none at all; the first of equals. None where nothing is true."""
    chosen, best = np.zeros(len(candidates), np.bool_), 0.0
    if not len(candidates) or not union.any():
        return chosen
    # Pixels that the same candidates cover, true or not, count as one.
    held, sizes = _kinds_of_pixels(np.concatenate([candidates, union[None]]))
    of_pool, is_true = held[:-1], held[-1]
    while True:
        times = chosen.astype(np.int64) @ of_pool.astype(np.int64)
        # Leaving a chosen one uncovers what it alone covers; adding another covers what nothing covers.
        changed = np.where(chosen[:, None], times - of_pool, times + of_pool) > 0
        shared = (changed & is_true) @ sizes
        ious = shared / ((changed | is_true) @ sizes)
        if ious.max() <= best:
            return chosen
        best = float(ious.max())
        chosen[ious.argmax()] ^= True


def _kinds_of_pixels(masks: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """([N, C], [C]) the C ways in which pixels lie in masks [N, H, W], and how many pixels lie so."""
    flat = masks.reshape(len(masks), -1)
    keys = np.ascontiguousarray(np.packbits(flat, axis=0).T)
    _, firsts, sizes = np.unique(keys.view(np.dtype((np.void, keys.shape[1]))).ravel(), True, False, True)
    return flat[:, firsts], sizes


@dataclass(frozen=True)
class PoolRule:
    """What a pool keeps of the masks that are found in an image."""

    same_iou: float = 0.9
    """IoU from which two masks are one; the better one stays."""
    least_share: float = 0.0005
    """Least share of the image's pixels that a mask covers."""
    most: int = 64
    """Most masks of an image, the best ones."""

    def __post_init__(self) -> None:
        if not 0 < self.same_iou <= 1 or not 0 <= self.least_share < 1 or self.most < 1:
            raise ValueError(
                f"a pool takes masks of IoU {self.same_iou} for one, masks of a share of {self.least_share} of the "
                f"image or more, and {self.most} at most; set the first to 0..1 (0 excluded), the second to 0..1 (1 "
                "excluded), the third to 1 or more."
            )


@dataclass(frozen=True)
class Kept:
    """Which of M masks a pool keeps, and why not the others: the four numbers add up to M."""

    places: NDArray[np.int64]
    """Places of those that are kept, the best first."""
    worth: NDArray[np.float64]
    """What each of these was ordered by."""
    small: int
    """Masks of too few pixels, or of none."""
    copies: int
    """Masks that are nearly a better one."""
    over_limit: int
    """Masks beyond the limit."""


def kept_masks(
    masks: NDArray[np.bool_], weights: NDArray[np.float64], rule: PoolRule, by_agreement: bool = False
) -> Kept:
    """What a pool keeps of masks [M, H, W]: taken one after the other, the highest weight first, the first of equals,
    each unless it has `rule.same_iou` or more with one that is taken.

    weights: [M] how good each is, or how often it was drawn. by_agreement: the weight of a mask is that of all masks
    that are nearly it, so that what many agree on comes first.
    """
    areas = masks.sum(axis=(1, 2))
    large = np.flatnonzero(areas >= max(1.0, rule.least_share * masks[0].size)) if len(masks) else np.zeros(0, int)
    same = pairwise_iou(masks[large]) >= rule.same_iou
    weight = weights[large]
    worth = same @ weight if by_agreement else weight
    taken: list[int] = []
    for place in np.argsort(-worth, kind="stable").tolist():
        if not same[place, taken].any():
            taken.append(place)
    first = taken[: rule.most]
    small, copies = len(masks) - len(large), len(large) - len(taken)
    return Kept(large[first], worth[first], small, copies, len(taken) - len(first))


def pairwise_iou(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[M, M] IoU of masks [M, H, W], 1 on the diagonal; 0 with a mask without a pixel."""
    bits = np.packbits(masks.reshape(len(masks), masks[0].size if len(masks) else 0), axis=1)
    found = np.eye(len(masks))
    areas = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    for place in range(len(masks) - 1):
        shared = np.bitwise_count(bits[place] & bits[place + 1 :]).sum(axis=1, dtype=np.int64)
        either = areas[place] + areas[place + 1 :] - shared
        found[place, place + 1 :] = found[place + 1 :, place] = shared / np.maximum(either, 1)
    return found
