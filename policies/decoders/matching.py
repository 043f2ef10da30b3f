"""Which true mask each box that a policy sampled is about: what a decoder is taught to draw in it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from envs.geometry.boxes import box_ious
from envs.geometry.masks import tight_box_px
from envs.polygons import Box

LEAST_IOU = 0.25
"""IoU of a box with the tight box of a true mask from which it is taken to be about it. Below, most of the mask lies
outside of the box or most of the box beside the mask, and a decoder would be taught to draw elsewhere than it is asked
to."""


def partners(boxes: Sequence[Box], masks: NDArray[np.bool_]) -> list[int]:
    """[K] which of the true masks [N, H, W] each of K boxes is about, -1 where it is about none.

    Boxes in 0..1 of the image, each of some area. Boxes and masks are matched one to one, with the greatest sum of
    IoUs of the boxes with the masks' tight ones (Kuhn 1955); of pairs below LEAST_IOU, and of boxes and masks that are
    left over, nothing is made. Masks without a pixel have no partner.
    """
    found = [-1] * len(boxes)
    height, width = masks.shape[1:]
    tight = {k: box for k, mask in enumerate(masks) if (box := tight_box_px(mask)) is not None}
    if not boxes or not tight:
        return found
    ious = box_ious(boxes, np.array(list(tight.values())) / (width, height, width, height))
    for box, mask in zip(*linear_sum_assignment(ious, maximize=True), strict=True):
        if ious[box, mask] >= LEAST_IOU:
            found[box] = list(tight)[mask]
    return found
