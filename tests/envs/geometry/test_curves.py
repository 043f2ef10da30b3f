"""Curves by hand, against fontTools, and within the tolerance that flattening promises."""

import numpy as np
import pytest
import shapely
from fontTools.pens.areaPen import AreaPen
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.geometry.curves import Path, area_under, flattened, lines, num_points, point_at, signed_area
from envs.polygons import signed_area_px

POINTS = arrays(np.float64, st.tuples(st.integers(2, 4), st.just(2)), elements=st.integers(-50, 50).map(float))


def joined(pieces: list[np.ndarray]) -> Path:
    """Segments of which each begins where the one before it ended."""
    path = [pieces[0]]
    for piece in pieces[1:]:
        path.append(np.concatenate([path[-1][-1:], piece[1:]]))
    return path


PATHS = st.lists(POINTS, min_size=1, max_size=5).map(joined)


def test_a_parabola_encloses_two_thirds_of_its_triangle() -> None:
    path = [np.array([(0.0, 0.0), (3.0, 0.0), (3.0, 3.0)])]
    assert signed_area(path) == 3.0  # 2/3 of 4.5, clockwise on screen, where y runs down
    assert signed_area([path[0][::-1]]) == -3.0
    assert area_under(path[0]) == 60 * 3.0  # the line back to the origin has none


def test_a_cubic_whose_control_points_are_those_of_that_parabola_encloses_as_much() -> None:
    cubic = np.array([(0.0, 0.0), (2.0, 0.0), (3.0, 1.0), (3.0, 3.0)])  # each a third from the end to (3, 0)
    assert signed_area([cubic]) == pytest.approx(3.0)
    np.testing.assert_allclose(point_at(cubic, np.array([0.5])), [[2.25, 0.75]])  # (P0 + 2 P1 + P2) / 4


@given(PATHS)
def test_the_area_is_that_of_font_tools(path: Path) -> None:
    pen = AreaPen()
    pen.moveTo(tuple(path[0][0]))
    for segment in path:
        points = [tuple(point) for point in segment[1:]]
        (pen.lineTo, pen.qCurveTo, pen.curveTo)[len(points) - 1](*points)
    pen.closePath()
    assert signed_area(path) == pytest.approx(pen.value, abs=1e-6)


@given(PATHS, st.sampled_from([0.05, 0.5, 5.0]))
def test_no_point_of_a_curve_is_farther_from_the_polygon_than_the_tolerance(path: Path, tolerance: float) -> None:
    ring = flattened(path, tolerance)
    polygon = shapely.linestrings(np.concatenate([ring, path[-1][-1:]]) if len(ring) > 1 else np.repeat(ring, 2, 0))
    for segment in path:
        apart = shapely.distance(shapely.points(point_at(segment, np.linspace(0, 1, 101))), polygon)
        assert apart.max() <= tolerance + 1e-9


@given(PATHS)
def test_the_polygon_encloses_what_the_path_does_but_for_the_tolerance_along_it(path: Path) -> None:
    ring = flattened(path, 0.01)
    length = np.hypot(*np.diff(np.concatenate([ring, ring[:1]]), axis=0).T).sum()
    assert signed_area_px(ring) == pytest.approx(signed_area(path), abs=0.01 * length + 1e-9)


def test_lines_flatten_to_their_own_vertices_and_the_closing_one_is_not_said() -> None:
    triangle = np.array([(0.0, 0.0), (4.0, 0.0), (4.0, 3.0)])
    open_path = lines(triangle)
    closed = [*open_path, np.array([triangle[2], triangle[0]])]
    for path in (open_path, closed):
        np.testing.assert_array_equal(flattened(path, 0.1), triangle)
        assert num_points(path) == 3 and signed_area(path) == 6
    # A curve that ends where the path begins has to be said: 1 + 3 points.
    loop = [np.array([(0.0, 0.0), (9.0, 0.0), (0.0, 9.0), (0.0, 0.0)])]
    assert num_points(loop) == 4 and len(flattened(loop, 9.0)) == 4


def test_of_no_segment_nothing_is_left() -> None:
    assert flattened([], 0.1).shape == (0, 2) and signed_area([]) == 0 and num_points([]) == 0
