"""Masks come back from their rings, budgets are kept; SciPy's labelling and brute force are the oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from envs.geometry.contours import (
    canonical_start,
    largest_rings,
    mask_from_rings,
    outline,
    outline_to_iou,
    rings_from_mask,
    simplify,
)
from envs.polygons import signed_area_px

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=14))
not_empty = masks.filter(lambda mask: mask.any())


def rectangle(height, width, *boxes):
    """Mask of boxes (x0, y0, x1, y1); where two overlap, a hole."""
    mask = np.zeros((height, width), np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] ^= True
    return mask


def disc(radius):
    ys, xs = np.mgrid[: 2 * radius, : 2 * radius] + 0.5 - radius
    return xs**2 + ys**2 < radius**2


def iou(rings, mask):
    filled = mask_from_rings(rings, *mask.shape)
    return (filled & mask).sum() / max((filled | mask).sum(), 1)


@given(masks)
@settings(max_examples=300)
def test_any_mask_comes_back_from_its_rings(mask):
    np.testing.assert_array_equal(mask_from_rings(rings_from_mask(mask), *mask.shape), mask)


def test_a_square_with_a_hole_has_these_two_rings():
    outer, hole = rings_from_mask(rectangle(4, 5, (1, 0, 4, 3), (2, 1, 3, 2)))
    assert outer.tolist() == [[1, 0], [4, 0], [4, 3], [1, 3]]
    assert hole.tolist() == [[2, 1], [2, 2], [3, 2], [3, 1]]


def test_two_pixels_that_touch_at_a_corner_are_two_squares():
    first, second = rings_from_mask(np.eye(2, dtype=bool))
    assert first.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert second.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_an_empty_mask_has_no_ring():
    assert rings_from_mask(np.zeros((3, 4), bool)) == []
    assert not mask_from_rings([], 3, 4).any()


@given(masks)
@settings(max_examples=200)
def test_each_part_is_one_clockwise_ring_and_each_hole_one_the_other_way(mask):
    areas = [signed_area_px(ring) for ring in rings_from_mask(mask)]
    # Parts join along edges only, so the background also joins across corners; it is one part around the image.
    num_parts = ndimage.label(mask)[1]
    num_holes = ndimage.label(~np.pad(mask, 1), np.ones((3, 3)))[1] - 1
    assert sum(area > 0 for area in areas) == num_parts
    assert sum(area < 0 for area in areas) == num_holes
    assert sum(areas) == mask.sum()


@given(masks)
def test_rings_are_ordered_by_their_topmost_then_leftmost_vertices(mask):
    rings = rings_from_mask(mask)
    starts = [(ring[0, 1], ring[0, 0]) for ring in rings]
    assert starts == [min((y, x) for x, y in ring) for ring in rings]
    assert starts == sorted(starts)


@given(not_empty, st.integers(0, 50))
def test_canonical_start_undoes_any_rotation_of_a_traced_ring(mask, shift):
    for ring in rings_from_mask(mask):
        assert canonical_start(np.roll(ring, shift, axis=0)).tolist() == ring.tolist()


@given(masks, st.integers(0, 40))
@settings(max_examples=200)
def test_simplifying_keeps_the_budget_the_rings_their_order_and_their_start(mask, spare):
    rings = rings_from_mask(mask)
    simplified = simplify(rings, 3 * len(rings) + spare)
    assert sum(map(len, simplified)) <= 3 * len(rings) + spare
    assert len(simplified) == len(rings)
    for ring, kept in zip(rings, simplified, strict=True):
        assert len(kept) >= 3
        assert canonical_start(kept).tolist() == kept.tolist()
        vertices = ring.tolist()
        where = [vertices.index(vertex) for vertex in kept.tolist()]
        if len(set(map(tuple, vertices))) == len(vertices):  # a ring that touches itself names a vertex twice
            turn = where.index(min(where))
            assert where[turn:] + where[:turn] == sorted(set(where))


@given(masks)
def test_a_budget_of_all_vertices_for_every_ring_changes_nothing(mask):
    rings = rings_from_mask(mask)
    simplified = simplify(rings, 10_000 * (1 + len(rings)))
    assert [ring.tolist() for ring in simplified] == [ring.tolist() for ring in rings]


def test_the_budget_is_shared_by_perimeter():
    (small,) = rings_from_mask(disc(10))
    large = 3 * small + 100
    assert [len(ring) for ring in simplify([small, large], 14)] == [3 + 2, 3 + 6]
    assert [len(ring) for ring in simplify([large, small], 14)] == [3 + 6, 3 + 2]


def test_a_square_with_a_bump_of_one_pixel_simplifies_to_its_corners():
    mask = rectangle(12, 12, (1, 2, 11, 12), (5, 1, 6, 2))
    (ring,) = simplify(rings_from_mask(mask), 4)
    assert ring.tolist() == [[1, 2], [11, 2], [11, 12], [1, 12]]


def test_a_budget_under_three_vertices_a_ring_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"num_vertices is 5, but 2 rings need 3 each.*raise the budget to 6"):
        simplify(rings_from_mask(np.eye(2, dtype=bool)), 5)


# Largest first: a ring of 100 px with a hole of 36, one of 25 with a hole of 9, a pixel.
FIVE_RINGS = rectangle(12, 24, (0, 0, 10, 10), (2, 2, 8, 8), (12, 0, 17, 5), (13, 1, 16, 4), (20, 0, 21, 1))


@pytest.mark.parametrize(
    ("max_rings", "min_share", "areas"),
    [
        (1, 0.0, [100]),
        (2, 0.0, [100, -36]),
        (3, 0.0, [100, 25, -36]),
        (9, 0.0, [100, 25, 1, -9, -36]),
        (9, 0.02, [100, 25, -9, -36]),
        (9, 0.25, [100, 25, -36]),
        (9, 0.26, [100, -36]),
    ],
)
def test_the_largest_rings_stay_in_order_and_holes_count_as_rings(max_rings, min_share, areas):
    kept = largest_rings(rings_from_mask(FIVE_RINGS), max_rings, min_share)
    assert [signed_area_px(ring) for ring in kept] == areas


def test_no_ring_has_no_largest():
    assert largest_rings([], 4, 0.02) == []


@given(not_empty, st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=200)
def test_a_hole_never_outlives_the_ring_around_it(mask, max_rings, min_share):
    kept = largest_rings(rings_from_mask(mask), max_rings, min_share)
    solid = mask_from_rings([ring for ring in kept if signed_area_px(ring) > 0], *mask.shape)
    for ring in kept:
        if signed_area_px(ring) < 0:
            assert (solid | ~mask_from_rings([ring], *mask.shape)).all()


@given(masks, st.integers(1, 5), st.integers(0, 30))
@settings(max_examples=200)
def test_an_outline_keeps_both_budgets(mask, max_rings, spare):
    rings = outline(mask, 3 * max_rings + spare, max_rings)
    assert len(rings) <= max_rings and sum(map(len, rings)) <= 3 * max_rings + spare
    assert bool(rings) == mask.any()


def test_an_outline_with_room_enough_is_exact():
    assert iou(outline(FIVE_RINGS, 100, max_rings=5, min_share=0), FIVE_RINGS) == 1.0
    assert iou(outline(disc(20), 24), disc(20)) > 0.97


def test_a_square_without_a_corner_pixel_needs_four_vertices_for_0_95_and_five_for_1():
    mask = rectangle(10, 10, (0, 0, 10, 10), (9, 0, 10, 1))
    # The cut (9, 0) to (10, 1) runs through the centre of the missing pixel, and a centre on a right edge is out.
    (five,) = outline_to_iou(mask, 1.0)
    assert five.tolist() == [[0, 0], [9, 0], [10, 1], [10, 10], [0, 10]]
    (four,) = outline_to_iou(mask, 0.95)
    assert len(four) == 4 and iou([four], mask) == 95 / 99


@given(not_empty, st.sampled_from([0.5, 0.8, 0.9, 0.97, 1.0]))
@settings(max_examples=200)
def test_no_smaller_budget_reaches_the_iou_and_this_one_does(mask, min_iou):
    rings = largest_rings(rings_from_mask(mask), 1024 // 3, 0.001)  # of so few pixels none is a speck
    budgets = range(3 * len(rings), 1025)
    enough = next(n for n in budgets if iou(simplify(rings, n), mask) >= min_iou)
    found = outline_to_iou(mask, min_iou)
    assert [ring.tolist() for ring in found] == [ring.tolist() for ring in simplify(rings, enough)]
    assert iou(found, mask) >= min_iou


def test_a_plain_ring_beside_a_rugged_one_does_not_eat_its_budget():
    mask = np.zeros((60, 90), bool)
    mask[:60, :60] = True
    mask[10:30, 65:85] = disc(10)
    assert iou(outline_to_iou(mask, 1.0), mask) == 1.0


def test_where_the_iou_is_out_of_reach_the_best_outline_comes():
    square_and_speck = rectangle(50, 53, (0, 0, 50, 50), (52, 0, 53, 1))
    assert [ring.tolist() for ring in outline_to_iou(square_and_speck, 1.0)] == [[[0, 0], [50, 0], [50, 50], [0, 50]]]
    assert sum(map(len, outline_to_iou(disc(20), 1.0, max_vertices=7))) == 7
    assert outline_to_iou(np.zeros((4, 4), bool), 0.9) == []
