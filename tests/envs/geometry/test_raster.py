"""The raster rule: an exact slow loop, Shapely and pycocotools are the oracles."""

from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.spatial import Delaunay

from envs.geometry.raster import (
    fill,
    fill_as_pycocotools,
    fill_parts,
    importance,
    parts_hold_a_pixel,
    pycocotools_holds_a_pixel,
    trace,
)
from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.geometry.spans import clipped_ceil, spans_from_rings
from envs.polygons import Ring, flatten_rings, signed_area_px, split_rings

H, W = 7, 9
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
quarters = st.integers(-12, 48).map(lambda quarter: quarter / 4)
rings = st.lists(st.tuples(quarters, quarters), max_size=8).map(lambda points: np.array(points, float).reshape(-1, 2))
SQUARE = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 4.0], [1.0, 4.0]])


def filled(*shape: Ring, height: int = H, width: int = W) -> NDArray[np.bool_]:
    return fill(*flatten_rings(shape), height, width)


def winding_number(shape: list[Ring], x: Fraction, y: Fraction) -> int:
    """Turns of the edges at or left of (x, y), each edge owning its upper end and not its lower one; exact."""
    winding = 0
    for ring in shape:
        for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if not np.isfinite([start, end]).all():
                continue
            (x0, y0), (x1, y1) = ([Fraction(value) for value in point] for point in (start, end))
            if min(y0, y1) <= y < max(y0, y1) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                winding += 1 if y1 < y0 else -1
    return winding


def slow_fill(shape: list[Ring]) -> NDArray[np.bool_]:
    half = Fraction(1, 2)
    return np.array([[winding_number(shape, j + half, i + half) != 0 for j in range(W)] for i in range(H)])


def star(angles: list[float], radii: list[float]) -> Ring:
    """A simple polygon around (4.3, 3.6)."""
    turns = np.sort(np.array(angles))
    reach = np.array(radii[: len(turns)])
    return np.stack([4.3 + reach * np.cos(turns), 3.6 + reach * np.sin(turns)], axis=1)


@settings(deadline=None)
@given(masks)
def test_tracing_and_filling_gives_any_mask_back(mask: NDArray[np.bool_]) -> None:
    assert (fill(*trace(mask), *mask.shape) == mask).all()


@settings(deadline=None)
@given(masks)
def test_traced_rings_begin_at_their_topmost_leftmost_vertex_and_come_in_that_order(mask: NDArray[np.bool_]) -> None:
    firsts = []
    for ring in split_rings(*trace(mask)):
        order = [(y, x) for x, y in ring]
        assert order[0] == min(order)
        firsts.append(order[0])
    assert firsts == sorted(firsts)


@settings(deadline=None)
@given(masks)
def test_traced_rings_turn_at_every_vertex(mask: NDArray[np.bool_]) -> None:
    for ring in split_rings(*trace(mask)):
        vertical = np.roll(ring, -1, axis=0)[:, 0] == ring[:, 0]
        assert (vertical != np.roll(vertical, 1)).all()


@settings(deadline=None)
@given(masks)
def test_signed_areas_of_traced_rings_add_up_to_the_pixels(mask: NDArray[np.bool_]) -> None:
    assert sum(signed_area_px(ring) for ring in split_rings(*trace(mask))) == mask.sum()


def test_a_frame_is_traced_as_a_clockwise_ring_and_then_a_hole_the_other_way() -> None:
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    outer, hole = split_rings(*trace(mask))
    assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert hole.tolist() == [[1, 1], [1, 2], [2, 2], [2, 1]]


def test_pixels_that_touch_at_a_corner_are_two_rings() -> None:
    first, second = split_rings(*trace(np.eye(2, dtype=bool)))
    assert first.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert second.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_holes_that_touch_at_a_corner_are_one_ring() -> None:
    mask = np.ones((4, 4), bool)
    mask[1, 1] = mask[2, 2] = False
    assert len(split_rings(*trace(mask))) == 2


def test_an_empty_mask_has_no_ring() -> None:
    vertices, offsets = trace(np.zeros((3, 4), bool))
    assert len(vertices) == 0 and offsets.tolist() == [0]


@settings(deadline=None)
@given(st.lists(rings, max_size=3))
def test_filling_equals_the_slow_winding_number_also_on_centres_edges_and_outside(shape: list[Ring]) -> None:
    assert (filled(*shape) == slow_fill(shape)).all()


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 6.28), min_size=3, max_size=10, unique=True),
    st.lists(st.floats(0.5, 7), min_size=10, max_size=10),
)
def test_filling_a_simple_polygon_equals_shapely_wherever_a_centre_is_clear_of_the_edge(
    angles: list[float], radii: list[float]
) -> None:
    ring = star(angles, radii)
    polygon = shapely.Polygon(ring)
    y, x = np.mgrid[:H, :W] + 0.5
    clear = shapely.distance(shapely.points(x, y), polygon.exterior) > 1e-9
    if polygon.is_valid:
        assert (filled(ring)[clear] == shapely.contains_xy(polygon, x, y)[clear]).all()


def test_left_and_top_edges_through_centres_are_in_and_right_and_bottom_ones_out() -> None:
    ring = np.array([[1.5, 2.5], [4.5, 2.5], [4.5, 5.5], [1.5, 5.5]])
    assert np.argwhere(filled(ring)).min(axis=0).tolist() == [2, 1]
    assert np.argwhere(filled(ring)).max(axis=0).tolist() == [4, 3]
    assert filled(ring).sum() == 9


@pytest.mark.parametrize("size", [7, 49, 93, 107])
def test_centres_on_a_diagonal_left_edge_are_all_in(size: int) -> None:
    triangle = np.array([[0.0, 0.0], [size, 0.0], [size, size]])
    assert filled(triangle, height=size, width=size).diagonal().all()
    assert (filled(triangle, height=size, width=size) == np.triu(np.ones((size, size), bool))).all()


def test_every_centre_on_a_left_edge_between_integer_points_is_in() -> None:
    for run in range(1, 60):
        for rise in range(1, 60):
            mask = filled(np.array([[0.0, 0.0], [60.0, 0.0], [60.0, rise], [run, rise]]), height=rise, width=60)
            # The edge from (0, 0) to (run, rise) is at x = run (2i + 1) / (2 rise) on the centre line of row i.
            twice_x = [Fraction(run * (2 * i + 1), rise) for i in range(rise)]
            on_edge = [(i, int(x) // 2) for i, x in enumerate(twice_x) if x % 2 == 1]
            assert all(mask[i, j] and not mask[i, :j].any() for i, j in on_edge)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2 * W), st.integers(0, 2 * H)), max_size=12))
def test_a_triangulation_covers_every_pixel_exactly_once(half_points: list[tuple[int, int]]) -> None:
    corners = [(0, 0), (2 * W, 0), (0, 2 * H), (2 * W, 2 * H)]
    points = np.unique(np.array(corners + half_points), axis=0) / 2
    counts = sum(filled(points[triangle]).astype(int) for triangle in Delaunay(points).simplices)
    assert (counts == 1).all()


def test_overlapping_parts_of_one_direction_unite_and_the_other_direction_cuts_a_hole() -> None:
    inner = SQUARE / 3 + 5 / 3
    assert filled(SQUARE, inner).sum() == 9
    assert filled(SQUARE, inner[::-1]).sum() == 8
    assert filled(SQUARE, SQUARE[::-1]).sum() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_edges_with_a_non_finite_end_are_skipped_and_other_rings_still_fill(bad: float) -> None:
    broken = np.array([[5.0, 1.0], [8.0, 1.0], [8.0, bad], [bad, 6.0], [5.0, 6.0]])
    assert (filled(SQUARE, broken)[:, :5] == filled(SQUARE)[:, :5]).all()
    assert not filled(broken)[:, 8:].any()


def test_a_square_of_1e300_covers_the_whole_image() -> None:
    assert filled((SQUARE - 2.5) * 1e300).all()


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(2)), elements=st.floats(width=64)))
def test_spans_of_any_floats_stay_within_the_image_sorted_and_apart(ring: Ring) -> None:
    starts, bounds = spans_from_rings(ring, np.array([0, len(ring)]), H, W)
    assert starts[0] == 0 and starts[-1] == len(bounds)
    for i in range(H):
        row = bounds[starts[i] : starts[i + 1]]
        assert len(row) % 2 == 0
        assert (np.diff(row) > 0).all() and ((row >= 0) & (row <= W)).all()


def test_edges_whose_coordinates_overflow_when_subtracted_break_nothing() -> None:
    ring = np.array([[1e308, -1e308], [1e308, 1e308], [-1e308, 1e308]])
    assert filled(ring).shape == (H, W)


def test_clipped_ceil_takes_any_float() -> None:
    assert [clipped_ceil(v, 5) for v in (-np.inf, -1.5, 0.0, 0.1, 4.0, 4.1, 5.0, 1e300, np.inf)] == [
        *(0, 0, 0, 1, 4, 5, 5, 5, 5)
    ]
    assert clipped_ceil(np.nan, 5) == 0


def slow_importance(ring: Ring) -> list[int]:
    """Visvalingam and Whyatt by search, without a heap."""
    alive, rank = list(range(len(ring))), [0] * len(ring)

    def area(k: int) -> float:
        at = alive.index(k)
        (ax, ay), (bx, by), (cx, cy) = ring[alive[at - 1]], ring[k], ring[alive[(at + 1) % len(alive)]]
        return abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2

    areas = [area(k) for k in alive]
    while alive:
        k = min(alive, key=lambda vertex: (areas[vertex], vertex))
        at, rank[k] = alive.index(k), len(alive)
        around = {alive[at - 1], alive[(at + 1) % len(alive)]} - {k}
        alive.remove(k)
        for n in around:
            areas[n] = max(areas[k], area(n))
    return rank


@settings(deadline=None)
@given(rings)
def test_importance_equals_a_search_for_the_smallest_triangle(ring: Ring) -> None:
    rank = importance(ring)
    assert rank.tolist() == slow_importance(ring)
    assert all((rank <= n).sum() == n for n in range(len(ring) + 1))


def test_simplifying_a_square_with_points_on_its_sides_keeps_the_square() -> None:
    ring = np.array([[0, 0], [2, 0], [4, 0], [4, 1], [4, 4], [1, 4], [0, 4], [0, 3.0]])
    assert ring[importance(ring) <= 4].tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]


@settings(deadline=None)
@given(masks)
def test_rle_equals_pycocotools_both_ways(mask: NDArray[np.bool_]) -> None:
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert rle_from_mask(mask) == theirs["counts"].decode()
    assert (mask_from_rle(theirs["counts"].decode(), *mask.shape) == mask).all()
    ours = {"counts": rle_from_mask(mask).encode(), "size": list(mask.shape)}
    assert (coco_mask.decode(ours).astype(bool) == mask).all()


def test_rle_of_a_large_mask_equals_pycocotools() -> None:
    mask = np.zeros((900, 1100), bool)
    mask[3:800, 20:1000] = mask[500, 1050] = True
    assert rle_from_mask(mask) == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def test_uncompressed_runs_are_read_column_by_column() -> None:
    assert mask_from_rle([1, 2, 3], 2, 3).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("counts", ["", "zzz", "1", "o" * 40, [1, 2], [-1, 7], [2**62] * 4 + [6], [7]])
def test_runs_that_do_not_cover_the_mask_are_refused_with_their_numbers(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match=r"RLE covers -?\d+ pixels.*2 x 3 = 6"):
        mask_from_rle(counts, 2, 3)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_any_ascii_text_is_a_mask_or_a_value_error(counts: str) -> None:
    try:
        mask = mask_from_rle(counts, 3, 4)
    except ValueError:
        return
    assert mask.shape == (3, 4)


def theirs(parts, height, width):
    """Union of polygon parts [[x, y, x, y, ...], ...] by pycocotools."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).astype(bool)


def by(rule, parts, height, width):
    return rule(*flatten_rings([np.reshape(part, (-1, 2)) for part in parts]), height, width)


RING_WITH_BRIDGE = [2, 2, 18, 2, 18, 18, 2, 18, 2, 2, 6, 6, 14, 6, 14, 14, 6, 14, 6, 6]
LOOP = [2, 2, 12, 2, 12, 14, 16, 14, 16, 10, 2, 10]
STAR = [10, 1, 15.3, 17.3, 1.4, 7.2, 18.6, 7.2, 4.7, 17.3]


@pytest.mark.parametrize(
    ("parts", "non_zero", "pixels"),
    [([RING_WITH_BRIDGE], 256, 192), ([LOOP, [11, 9, 18, 9, 18, 16, 11, 16]], 112, 128), ([STAR], 92, 65)],
)
def test_a_self_crossing_annotation_has_the_pixels_of_pycocotools(parts, non_zero, pixels):
    drawn = by(fill_as_pycocotools, parts, 20, 20)
    np.testing.assert_array_equal(drawn, theirs(parts, 20, 20))
    assert drawn.sum() == pixels and by(fill, parts, 20, 20).sum() == non_zero
    assert abs(int(by(fill_parts, parts, 20, 20).sum()) - pixels) <= 1


coordinates = st.one_of(st.integers(-12, 40), st.integers(-60, 200).map(lambda n: n / 5), st.floats(-12, 40, width=32))
polygon_parts = st.lists(coordinates, min_size=6, max_size=16).map(
    lambda xs: [float(x) for x in xs[: len(xs) // 2 * 2]]
)


@settings(max_examples=300)
@given(st.lists(polygon_parts, min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 30))
def test_any_polygons_have_the_pixels_of_pycocotools(parts, height, width):
    np.testing.assert_array_equal(by(fill_as_pycocotools, parts, height, width), theirs(parts, height, width))


@given(st.lists(rings, min_size=1, max_size=3))
def test_a_part_is_what_its_edges_go_round_an_odd_number_of_times(shape):
    centres = [[(Fraction(2 * j + 1, 2), Fraction(2 * i + 1, 2)) for j in range(W)] for i in range(H)]
    inside = [[any(winding_number([ring], *centre) % 2 for ring in shape) for centre in row] for row in centres]
    np.testing.assert_array_equal(fill_parts(*flatten_rings(shape), H, W), inside)


def test_whether_parts_hold_a_pixel_is_found_without_a_mask():
    rng, empty = np.random.default_rng(3), 0
    for _ in range(2000):
        rings = [
            rng.uniform(-2, 8, 2) + rng.uniform(-0.8, 0.8, (rng.integers(3, 7), 2)) for _ in range(rng.integers(3))
        ]
        flat = *flatten_rings([np.round(ring, 1) for ring in rings]), 6, 7
        assert parts_hold_a_pixel(*flat) == fill_parts(*flat).any()
        assert pycocotools_holds_a_pixel(*flat) == fill_as_pycocotools(*flat).any()
        empty += not fill_parts(*flat).any()
    assert 1000 < empty < 1900
    twice = np.array([(1.0, 1), (4, 1), (4, 4), (1, 4)])
    flat = *flatten_rings([np.concatenate([twice, twice])]), 6, 7  # even-odd, the second round takes the first away
    assert not parts_hold_a_pixel(*flat)
    assert not pycocotools_holds_a_pixel(*flat)
