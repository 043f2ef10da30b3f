"""OpenCV's way of drawing polygons: golden pixels by hand, and OpenCV itself where it is installed."""

import numpy as np
import pytest

from envs.readers._drawn import IGNORED, TARGET, DrawnShape, cut_to_pixels, drawn_polygon, flat_corners


def drawn(points, height=6, width=6):
    mask = drawn_polygon(cut_to_pixels(points), height, width)
    return ["".join("#" if on else "." for on in row) for row in mask]


def test_a_triangle_has_its_outline_and_what_it_encloses():
    assert drawn([(0, 0), (4, 0), (0, 4)]) == ["#####.", "####..", "###...", "##....", "#.....", "......"]


def test_fractions_are_cut_off():
    assert drawn([(0.9, 0.9), (4.99, 0.5), (-0.9, 4.7)]) == drawn([(0, 0), (4, 0), (0, 4)])


def test_a_line_steps_aside_once_it_is_more_than_half_a_pixel_away():
    assert drawn([(0, 0), (4, 2)], 3, 5) == ["##...", "..##.", "....#"]
    assert drawn([(4, 2), (0, 0)], 3, 5) == ["##...", "..##.", "....#"]


def test_one_point_is_one_pixel_and_none_outside():
    assert drawn([(1, 1)], 3, 3) == ["...", ".#.", "..."]
    assert drawn([(3, 1)], 3, 3) == ["...", "...", "..."]


def test_what_lies_outside_of_the_photo_is_cut_off():
    assert drawn([(-2, -2), (2, -2), (2, 2), (-2, 2)], 4, 4) == ["###.", "###.", "###.", "...."]
    assert drawn([(-2, -2), (9, -2), (9, 9), (-2, 9)], 2, 2) == ["##", "##"]


def test_a_ring_that_crosses_itself_encloses_by_turns():
    twice = [(0, 0), (8, 0), (8, 8), (0, 8), (0, 0), (2, 2), (6, 2), (6, 6), (2, 6), (2, 2)]
    mask = drawn_polygon(np.array(twice), 9, 9)
    assert mask[4, 1] and not mask[4, 4] and mask[2, 2] and mask[0].all()


def shapes(kinds, *polygons, shown):
    corners, offsets = flat_corners(cut_to_pixels(points) for points in polygons)
    return DrawnShape(corners, offsets, kinds, shown)


def box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def test_the_smaller_of_two_shapes_lies_above_whatever_comes_first():
    for order in (1, -1):
        polygons = [box(0, 0, 9, 9), box(2, 2, 4, 4)][::order]
        kinds = (IGNORED, TARGET)[::order]
        assert shapes(kinds, *polygons, shown=TARGET).mask(10, 10).sum() == 9
        assert shapes(kinds, *polygons, shown=IGNORED).mask(10, 10).sum() == 100 - 9


def test_of_two_shapes_that_are_as_large_the_first_lies_above():
    both = shapes((IGNORED, TARGET), box(1, 1, 3, 3), box(1, 1, 3, 3), shown=IGNORED)
    assert both.mask(6, 6).sum() == 9


@pytest.mark.parametrize("reach", [(0.0, 0.999), (0.0, 1.05), (-0.3, 1.3)])
def test_random_polygons_are_those_of_opencv_to_the_last_pixel(reach):
    # Versions 4.8 to 4.10 fill otherwise; those before and after agree with each other inside of a photo.
    cv2 = pytest.importorskip("cv2", minversion="4.12")
    rng = np.random.default_rng(0)
    for _ in range(600):
        height, width = map(int, rng.integers(1, 70, 2))
        points = rng.uniform(*reach, (int(rng.integers(1, 12)), 2)) * [width, height]
        expected = np.zeros((height, width), np.uint8)
        cv2.polylines(expected, points[None].astype(np.int32), True, 1, 1)
        cv2.fillPoly(expected, points[None].astype(np.int32), 1)
        np.testing.assert_array_equal(drawn_polygon(cut_to_pixels(points.tolist()), height, width), expected > 0)
