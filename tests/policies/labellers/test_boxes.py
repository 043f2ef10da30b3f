"""Arithmetic of boxes against numbers by hand."""

import numpy as np

from policies.labellers.boxes import boxes_apart, clipped, corners


def test_a_centre_and_a_size_are_two_corners() -> None:
    assert corners(np.array([[0.5, 0.25, 0.5, 0.5], [1, 2, 0, 4]])).tolist() == [[0.25, 0, 0.75, 0.5], [1, 0, 1, 4]]
    assert corners(np.zeros((0, 4))).shape == (0, 4)


def test_boxes_are_cut_at_the_edges_and_those_outside_or_not_finite_are_told() -> None:
    boxes = np.array([[-5, 10, 30, 50], [59, 39, 70, 70], [60, 0, 80, 10], [3, 3, 3, 9], [0, np.nan, 9, 9]], float)
    cut, inside = clipped(boxes, height=40, width=60)
    assert cut[:4].tolist() == [[0, 10, 30, 40], [59, 39, 60, 40], [60, 0, 60, 10], [3, 3, 3, 9]]
    assert inside.tolist() == [True, True, False, False, False]
    assert clipped(np.zeros((0, 4)), 40, 60)[1].shape == (0,)
    assert not clipped(np.array([[0, 0, np.inf, 9.0]]), 40, 60)[1].any()


def test_of_boxes_that_nearly_agree_the_surest_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [20, 20, 30, 30]], np.float64)
    assert boxes_apart(boxes, np.array([0.5, 0.9, 0.8, 0.1]), 0.7).tolist() == [1, 2, 3]  # IoUs 0.8, 0.4, 0.5
    assert boxes_apart(boxes, np.array([0.5, 0.9, 0.8, 0.1]), 0.45).tolist() == [1, 3]
    assert boxes_apart(boxes[:0], np.zeros(0), 0.7).size == 0
