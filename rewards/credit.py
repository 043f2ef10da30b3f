"""What the parts of an answer contribute to its score: vertices, boxes, and instances among several.

Gains are differences of IoU with the target, so they are in [-1, 1]; positive where the answer is better with the part
than without it. Letters: A answers of a group, N vertices of an answer, M instances drawn, K instances true.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Answer, Box, Ring, flat_answers
from rewards.kernels.vertices import left_out
from rewards.target import Target

BIN_SCORE = 0.3
"""IoU at which a drawn instance may as well be matched with nothing, and so may a true one."""
SHARPNESS = 20.0
"""How much likelier a pair is for each unit of IoU that it is better, natural logarithm: 0.1 is a factor of 7."""
_ROUNDS = 300
"""Rounds of Sinkhorn's algorithm; after so many the sums of a 5 x 5 matrix are right to a hundredth."""


def vertex_gains(answers: Sequence[Answer], target: Target) -> list[NDArray[np.float64]]:
    """[A][N] IoU of each answer less that of the same answer without one of its vertices, for each of them.

    Rings of three vertices vanish without one. 0 for all vertices where nothing is true.
    """
    flat = flat_answers([answer.rings_px for answer in answers])
    if not target.area_px:
        return [np.zeros(answer.num_vertices) for answer in answers]
    sums = left_out(*flat, target.spans, target.table, target.ignored, target.width)
    without = sums[:, 0] / (target.area_px + sums[:, 1] - sums[:, 0])
    counts = [answer.num_vertices for answer in answers]
    with_all = np.repeat(target.overlap_flat(flat).iou, counts)
    return np.split(with_all - without, np.cumsum(counts)[:-1])


def box_gains(answers: Sequence[Answer], target: Target) -> list[float | None]:
    """[A] IoU of each answer less that of the same outline stretched to the mean box of the group.

    Of answers that are one instance with a box of its own; None for others. 0 where nothing is true.
    """
    boxes = [_own_box(answer) for answer in answers]
    said = [box for box in boxes if box is not None]
    if not said:
        return [None] * len(answers)
    mean = tuple(np.mean(said, axis=0).tolist())
    moved = [
        [] if box is None else [_stretched(ring, box, mean) for ring in answer.rings_px]
        for answer, box in zip(answers, boxes, strict=True)
    ]
    now = target.overlap([answer.rings_px for answer in answers]).iou
    gains = (now - target.overlap(moved).iou) if target.area_px else np.zeros(len(answers))
    return [None if box is None else float(gain) for box, gain in zip(boxes, gains, strict=True)]


def _own_box(answer: Answer) -> Box | None:
    return answer.instances[0].box_px if len(answer.instances) == 1 else None


def _stretched(ring: Ring, box: Box, to: Box) -> Ring:
    """A ring moved as a box is that becomes another one; along a side without extent it is only shifted."""
    low, size = np.array(box[:2]), np.subtract(box[2:], box[:2])
    ratio = np.divide(np.subtract(to[2:], to[:2]), size, out=np.ones(2), where=size > 0)
    return (ring - low) * ratio + np.array(to[:2])


def soft_matching(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M + 1, K + 1] how much of each drawn instance goes to each true one: entropic transport with dustbins.

    iou: [M, K], M and K 1 or more. The last row and column are bins of score BIN_SCORE that take missed and wrong ones;
    every instance weighs 1, and each bin as much as the other side has instances, so that all of them may go there.
    By Sinkhorn's algorithm on exp(SHARPNESS * score) (arXiv 1306.0895; bins as arXiv 1911.11763).
    """
    drawn, true = iou.shape
    padded = np.full((drawn + 1, true + 1), BIN_SCORE)
    padded[:drawn, :true] = iou
    kernel = np.exp(SHARPNESS * padded)
    rows, columns = np.append(np.ones(drawn), true), np.append(np.ones(true), drawn)
    left, right = np.ones(drawn + 1), np.ones(true + 1)
    for _ in range(_ROUNDS):
        left = rows / (kernel @ right)
        right = columns / (kernel.T @ left)
    return left[:, None] * kernel * right


def instance_scores(iou: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """([M] of drawn instances, [K] of true ones) expected IoU of each under `soft_matching`, in [0, 1].

    What of an instance goes to the bin counts as IoU 0, so a false one scores near 0 whatever it overlaps.
    """
    matched = soft_matching(iou)
    drawn = (matched[:-1, :-1] * iou).sum(1) / matched[:-1].sum(1)
    true = (matched[:-1, :-1] * iou).sum(0) / matched[:, :-1].sum(0)
    return drawn, true


def soft_f(iou: NDArray[np.float64]) -> float:
    """Harmonic mean of the mean scores of drawn and of true instances (DECT-GRPO's precision and recall), in [0, 1]."""
    drawn, true = instance_scores(iou)
    precision, recall = float(drawn.mean()), float(true.mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
