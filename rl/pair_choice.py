"""From a shortlist to pairs, by the outlines: near-duplicates out, the rest of each example spread out, strata even."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.polygons import FlatAnswers
from envs.spans import Spans, spans_from_rings
from rewards.target import Target
from rl.pair_rule import PairRule, even_shares


class Spread(NamedTuple):
    """Which of A answers to one example are taken."""

    taken: list[int]
    """Their places, in the order in which they were taken."""
    num_duplicates: int
    """Others whose mask is nearly that of one taken."""


def spread_out(
    answers: FlatAnswers, strata: NDArray[np.int8], height: int, width: int, rule: PairRule, start: int
) -> Spread:
    """Take at most `per_example` of A answers to one example, over an image of height x width.

    The strata of IoU [A] take turns from stratum `start` on; each gives the answer whose mask differs most from those
    taken, the first of equals.
    """
    nearest, live, taken = np.zeros(answers.num_answers), np.ones(answers.num_answers, np.bool_), list[int]()
    turn = start
    while live.any() and len(taken) < rule.per_example:
        mine = np.flatnonzero(live & (strata == turn % rule.iou_strata))
        turn += 1
        if not mine.size:
            continue
        taken.append(int(mine[np.argmin(nearest[mine])]))
        nearest = np.maximum(nearest, _iou_with(answers, taken[-1], height, width))
        live &= nearest < rule.near_duplicate_iou
        live[taken] = False
    others = np.ones(answers.num_answers, np.bool_)
    others[taken] = False
    return Spread(taken, int((others & (nearest >= rule.near_duplicate_iou)).sum()))


def _iou_with(answers: FlatAnswers, k: int, height: int, width: int) -> NDArray[np.float64]:
    """[A] IoU of each answer's mask with that of answer `k`."""
    one = answers.part(k, k + 1)
    spans = Spans(*spans_from_rings(one.vertices, one.ring_offsets, height, width))
    return Target.from_spans([spans], None, height, width).overlap_flat(answers).iou


def within_limit(
    iou_strata: NDArray[np.int8], boundary_strata: NDArray[np.int8], limit: int | None
) -> NDArray[np.bool_]:
    """[A] which of A pairs stay under a limit: of each stratum the first, equally many as far as it has.

    The strata of IoU share the limit, and the strata of boundary error the part of each of them.
    """
    kept = np.ones(len(iou_strata), np.bool_)
    if limit is None or len(kept) <= limit:
        return kept
    shares = even_shares(np.bincount(iou_strata), limit)
    for stratum, share in enumerate(shares):
        mine = np.flatnonzero(iou_strata == stratum)
        for cell, num in enumerate(even_shares(np.bincount(boundary_strata[mine]), int(share))):
            kept[mine[boundary_strata[mine] == cell][num:]] = False
    return kept
