"""Frames, flat rings and signed areas: hand-computed numbers, round trips, and Shapely for areas."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.polygons import (
    Answer,
    AnswerStatus,
    answer_from_rings,
    bounding_box_px,
    flat_answers,
    flatten_rings,
    grid_from_px,
    instance_from_rings,
    px_from_grid,
    px_from_unit,
    signed_area_px,
    split_rings,
    unit_from_px,
)

RECTANGLE = np.array([(0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0)])
coordinates = st.floats(-1e4, 1e4)
point_lists = arrays(np.float64, st.tuples(st.integers(0, 9), st.just(2)), elements=coordinates)
sides = st.floats(1e-3, 5e3)


@given(st.lists(point_lists, max_size=6))
def test_splitting_undoes_flattening_for_any_rings_the_empty_ones_too(rings):
    vertices, offsets = flatten_rings(rings)
    assert vertices.dtype == np.float64 and vertices.flags.c_contiguous and offsets.dtype == np.int64
    assert vertices.shape == (sum(map(len, rings)), 2) and offsets.shape == (len(rings) + 1,)
    assert [ring.tolist() for ring in split_rings(vertices, offsets)] == [ring.tolist() for ring in rings]


def test_two_rings_of_three_and_four_vertices_have_offsets_0_3_7():
    vertices, offsets = flatten_rings([RECTANGLE[:3], RECTANGLE])
    assert offsets.tolist() == [0, 3, 7]
    assert vertices[3:].tolist() == RECTANGLE.tolist()
    assert np.shares_memory(split_rings(vertices, offsets)[1], vertices)


def test_clockwise_on_screen_is_positive():
    assert signed_area_px(RECTANGLE) == 12.0
    assert signed_area_px(RECTANGLE[::-1]) == -12.0
    assert signed_area_px(RECTANGLE[:2]) == 0.0


@given(
    angles=st.lists(st.integers(0, 359), min_size=3, max_size=12, unique=True).map(sorted),
    radii=st.lists(st.floats(1, 100), min_size=12, max_size=12),
    centre=st.tuples(coordinates, coordinates),
    backwards=st.booleans(),
)
def test_signed_area_has_shapelys_size_and_orientation(angles, radii, centre, backwards):
    turns = np.deg2rad(angles)
    ring = np.stack([np.cos(turns), np.sin(turns)], axis=1) * np.array(radii[: len(turns)])[:, None] + centre
    ring = ring[::-1] if backwards else ring
    polygon = shapely.Polygon(ring)
    if not polygon.is_valid or polygon.area < 1e-3:
        return
    # Shapely's y runs up, so what it calls counter-clockwise runs clockwise on a screen.
    sign = 1 if shapely.is_ccw(polygon.exterior) else -1
    assert signed_area_px(ring) == pytest.approx(sign * polygon.area, rel=1e-6, abs=1e-5)


def test_grid_numbers_say_both_edges_of_an_extent():
    extent = (10.0, 20.0, 42.0, 84.0)
    grid = np.array([(0, 0), (32, 32), (16, 8)])
    assert px_from_grid(grid, 32, extent).tolist() == [[10, 20], [42, 84], [26, 36]]
    assert grid_from_px(np.array([(10, 20), (42, 84), (26, 36)]), 32, extent).tolist() == grid.tolist()


def test_halves_round_up_and_points_outside_are_clipped():
    points = np.array([(0.99, 1.0), (3.0, 2.99), (-5.0, 100.0), (7.0, 8.0)])
    assert grid_from_px(points, 4, (0, 0, 8, 8)).tolist() == [[0, 1], [2, 1], [0, 4], [4, 4]]


extents = st.tuples(coordinates, coordinates, sides, sides).map(lambda e: (e[0], e[1], e[0] + e[2], e[1] + e[3]))


@given(bins=st.integers(1, 1000), extent=extents, data=st.data())
def test_grid_to_pixels_and_back_is_exact(bins, extent, data):
    grid = data.draw(arrays(np.int64, (5, 2), elements=st.integers(0, bins)))
    assert grid_from_px(px_from_grid(grid, bins, extent), bins, extent).tolist() == grid.tolist()


@given(bins=st.integers(1, 1000), extent=extents, shares=arrays(np.float64, (5, 2), elements=st.floats(0, 1)))
def test_a_point_of_the_extent_moves_by_half_a_step_at_most(bins, extent, shares):
    size = np.array([extent[2] - extent[0], extent[3] - extent[1]])
    points = np.array(extent[:2]) + shares * size
    moved = px_from_grid(grid_from_px(points, bins, extent), bins, extent)
    assert (np.abs(moved - points) <= size / bins / 2 + 1e-8).all()


def test_units_are_fractions_of_width_for_x_and_of_height_for_y():
    assert unit_from_px(np.array([(50.0, 50.0)]), height=100, width=200).tolist() == [[0.25, 0.5]]
    assert px_from_unit(np.array([(0.25, 0.5)]), height=100, width=200).tolist() == [[50.0, 50.0]]


@given(point_lists, st.integers(1, 5000), st.integers(1, 5000))
def test_pixels_to_units_and_back_move_by_rounding_only(points, height, width):
    back = px_from_unit(unit_from_px(points, height, width), height, width)
    np.testing.assert_allclose(back, points, rtol=1e-15, atol=1e-300)


@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.just(2)), elements=coordinates))
def test_the_bounding_box_is_shapelys(points):
    assert bounding_box_px(points) == shapely.MultiPoint(points).bounds


def test_only_ok_and_empty_are_valid():
    assert {status.value for status in AnswerStatus if status.valid} == {"ok", "empty"}
    assert len(AnswerStatus) == 6


def test_an_answer_lists_the_rings_of_all_its_instances_in_order():
    first, second = instance_from_rings([RECTANGLE, RECTANGLE[:3]]), instance_from_rings([RECTANGLE + 10])
    answer = Answer(AnswerStatus.OK, (first, second))
    assert [len(ring) for ring in answer.rings_px] == [4, 3, 4]
    assert answer.rings_px[2][0].tolist() == [10, 10]
    assert answer.num_vertices == 11


def test_an_answer_made_from_no_ring_is_the_empty_one():
    assert answer_from_rings([]) == Answer(AnswerStatus.EMPTY)
    answer = answer_from_rings([RECTANGLE])
    assert answer.status is AnswerStatus.OK and len(answer.instances) == 1


def test_flat_answers_take_rings_of_any_kind_of_array_and_empty_ones() -> None:
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    flat = flat_answers([[square, []], [], [np.array(square, np.float32), np.zeros((0, 2))]])
    assert flat.vertices.dtype == np.float64 and flat.vertices.shape == (8, 2)
    assert flat.ring_offsets.tolist() == [0, 4, 4, 8, 8]
    assert flat.answer_offsets.tolist() == [0, 2, 2, 4] and flat.num_answers == 3
    assert flat.part(2, 3).ring_offsets.tolist() == [0, 4, 4]


@pytest.mark.parametrize("ring", [np.zeros((4, 3)), np.array([1.0, 2.0, 3.0]), np.zeros((2, 2, 2))])
def test_a_ring_that_is_not_n_by_2_is_refused_with_its_shape(ring: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"A ring has shape .*give \[N, 2\]"):
        flat_answers([[np.zeros((3, 2))], [ring]])
    with pytest.raises(ValueError, match="A ring has shape"):
        flat_answers([[ring]])
