"""What can be chosen from a pool of candidate masks: which candidates mean a truth, and the best that a choice can be.

Letters: N candidates, K true masks, 2^N choices.
"""

import numpy as np
from numpy.typing import NDArray

MEANT = 0.5
"""IoU with a true instance from which a candidate is meant by it."""


def meant(candidates: NDArray[np.bool_], masks: NDArray[np.bool_], least: float = MEANT) -> NDArray[np.bool_]:
    """[N] candidates that stand for a true mask: for each of masks [K, H, W] the one of highest IoU, if it is at least
    `least`, the first of equals; of two masks that would take the same one, the later takes the next best."""
    chosen = np.zeros(len(candidates), np.bool_)
    for mask in masks:
        ious = np.array([iou(candidate, mask) for candidate in candidates])
        ious[chosen] = -1.0
        if len(ious) and ious.max() >= least:
            chosen[ious.argmax()] = True
    return chosen


def oracle(candidates: NDArray[np.bool_], union: NDArray[np.bool_]) -> float:
    """IoU of the best choice that adding and leaving candidates one at a time finds, from none at all; 1 where nothing
    is true, since nothing need be chosen."""
    if not union.any():
        return 1.0
    chosen, best = np.zeros(len(candidates), np.bool_), 0.0
    while len(candidates):
        tried = [iou(_covered(candidates, _flipped(chosen, k)), union) for k in range(len(candidates))]
        if max(tried) <= best:
            break
        best = max(tried)
        chosen = _flipped(chosen, int(np.argmax(tried)))
    return best


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 0.0


def _covered(candidates: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(candidates[chosen].any(axis=0))


def _flipped(chosen: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    other = chosen.copy()
    other[k] = not other[k]
    return other
