"""What boxes and points that were asked for are worth: matched with the true objects, one each (Kuhn 1955).

A box is worth its IoU with the tight box of the object's counted pixels, a point 1 where it lies on one. Both are
summed over the best matching and divided by the larger number of places, so that neither a missing nor a superfluous
one is free. With one place and one object this is the plain box IoU, and whether the point hits.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from envs.geometry.boxes import box_ious
from envs.geometry.spans import Spans
from envs.polygons import Answer, AnswerStatus
from rewards.target import Target, span_box


def place_score(answer: Answer, target: Target, asked: str) -> float:
    """What an answer is worth, in [0, 1], where boxes (asked: "box") or points ("point") were asked for.

    Where nothing is true, 1 for the status `empty` and 0 for any other; an invalid answer is worth 0.
    """
    objects = [instance for instance in target.instances if len(instance.bounds)]
    if not objects:
        return float(answer.status is AnswerStatus.EMPTY)
    if not answer.instances:
        return 0.0
    if asked == "box":
        said = [instance.box_px for instance in answer.instances if instance.box_px is not None]
        worth = box_ious(said, [span_box(each) for each in objects])
    else:
        points = [instance.vertices_px[0] for instance in answer.instances]
        worth = np.array([[holds(each, *point) for each in objects] for point in points], np.float64)
    return matched_share(worth)


def matched_share(worth: NDArray[np.float64]) -> float:
    """The sum over the best matching of `worth` [P, K], over the larger of P and K; 0 without any."""
    if not worth.size:
        return 0.0
    return float(worth[linear_sum_assignment(worth, maximize=True)].sum() / max(worth.shape))


def holds(spans: Spans, x: float, y: float) -> bool:
    """Whether the pixel under (x, y) px is among those of spans; False outside of the image, or for no number."""
    if not 0 <= y < len(spans.starts) - 1:
        return False
    first, end = spans.starts[int(y)], spans.starts[int(y) + 1]
    pairs = spans.bounds[first:end].reshape(-1, 2).tolist()
    return any(left <= x < right for left, right in pairs)
