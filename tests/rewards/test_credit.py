"""What parts of an answer are worth: numbers by hand, and another implementation of the transport."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from envs.polygons import Answer, AnswerStatus, answer_from_rings, instance_from_rings
from rewards.credit import BIN_SCORE, box_gains, instance_scores, soft_f, soft_matching, vertex_gains
from rewards.target import Target

SQUARE = np.array([(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)])


def left_half() -> Target:
    mask = np.zeros((4, 8), np.bool_)
    mask[:, :4] = True
    return Target.from_mask(mask)


def boxed(x0: float, x1: float) -> Answer:
    """The rectangle of columns x0..x1, said in a box of its own."""
    ring = SQUARE / 4 * [x1 - x0, 4] + [x0, 0]
    return Answer(AnswerStatus.OK, (instance_from_rings([ring], (x0, 0.0, x1, 4.0)),))


def test_a_needed_corner_is_worth_what_it_fills_and_a_needless_vertex_nothing_and_a_spike_less_than_nothing() -> None:
    middle = np.insert(SQUARE, 1, (2.0, 0.0), axis=0)
    spike = np.insert(SQUARE, 2, (8.0, 2.0), axis=0)  # a triangle of 4 wide and 4 high beside the square
    found = vertex_gains([answer_from_rings([middle]), answer_from_rings([spike])], left_half())
    # Without the corner (0, 0) the ring runs from (0, 4) to (2, 0): 2, 1, 1 and 0 centres of the rows are left of that.
    assert found[0][:2].tolist() == [4 / 16, 0.0]
    with_spike = 16 / (16 + 8)
    assert found[1][2] == pytest.approx(with_spike - 1.0)


def test_of_nothing_true_no_vertex_is_worth_anything_and_an_answer_without_vertices_has_none() -> None:
    nothing = Target.from_mask(np.zeros((4, 8), np.bool_))
    assert vertex_gains([answer_from_rings([SQUARE])], nothing)[0].tolist() == [0.0] * 4
    assert [len(gains) for gains in vertex_gains([Answer(AnswerStatus.EMPTY)], left_half())] == [0]


def test_a_box_is_worth_the_iou_that_the_mean_box_would_lose() -> None:
    # Columns 0..4 are true; the boxes 0..4 and 0..8 have the mean 0..6, under which the outline has IoU 4/6.
    found = box_gains([boxed(0, 4), boxed(0, 8), answer_from_rings([SQUARE])], left_half())
    assert found == [pytest.approx(1 - 4 / 6), pytest.approx(1 / 2 - 4 / 6), None]


def test_two_drawn_well_and_one_missed_have_the_f_of_precision_1_and_recall_two_thirds() -> None:
    iou = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    drawn, true = instance_scores(iou)
    # By the entropy 0.6 % of either goes to the bin.
    assert drawn == pytest.approx([1, 1], abs=0.01) and true == pytest.approx([1, 1, 0], abs=0.01)
    assert soft_f(iou) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3), abs=0.01)
    assert soft_f(np.zeros((2, 1))) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_transport_keeps_its_sums_and_is_about_as_good_as_the_best_there_is(m: int, k: int, seed: int) -> None:
    iou = np.random.default_rng(seed).random((m, k))
    plan = soft_matching(iou)
    assert plan[:m].sum(1) == pytest.approx(np.ones(m), abs=1e-2)
    assert plan.sum(0) == pytest.approx(np.append(np.ones(k), m), abs=1e-4)
    padded = np.full((m + 1, k + 1), BIN_SCORE)
    padded[:m, :k] = iou
    sums = np.zeros((m + k + 2, (m + 1) * (k + 1)))
    for i in range(m + 1):
        sums[i, i * (k + 1) : (i + 1) * (k + 1)] = 1
    for j in range(k + 1):
        sums[m + 1 + j, j :: k + 1] = 1
    best = -linprog(-padded.ravel(), A_eq=sums, b_eq=[*[1] * m, k, *[1] * k, m]).fun
    assert best - 0.25 * (m + k) <= (plan * padded).sum() <= best + 1e-3
