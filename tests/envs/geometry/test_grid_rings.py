"""Shapes written on coarse grids: whatever fills a pixel is read back as an answer that fills one of its pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.codecs import path_tokens, point_text
from envs.codecs.base import AnswerCodec
from envs.geometry.contours import mask_from_rings, outline, rings_from_mask
from envs.geometry.grid_rings import rounded, worth_writing
from envs.polygons import AnswerStatus, Ring

ROOM = {"max_rings": 400, "max_vertices": 4000}
TENTHS = point_text.Codec(decimals=1, max_characters=10**6, **ROOM)


def square(x0: float, y0: float, side: float) -> Ring:
    return np.array([(x0, y0), (x0 + side, y0), (x0 + side, y0 + side), (x0, y0 + side)], np.float64)


def filled(codec: AnswerCodec, instances: list[list[Ring]], height: int = 64, width: int = 64) -> np.ndarray:
    """The mask [height, width] that a reader makes of what `codec` writes."""
    answer = codec.read(codec.encode(instances, height, width), height, width)
    assert answer.status is (AnswerStatus.OK if instances else AnswerStatus.EMPTY)
    return mask_from_rings(answer.rings_px, height, width)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        (TENTHS, "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]]"),
        (path_tokens.Codec(path_bins=4), "6 6 58 58 0 0 4 0 4 4 0 4"),
        (path_tokens.Codec(path_bins=1), "6 6 58 58 0 0 1 0 1 1 0 1"),
    ],
)
def test_a_hole_that_rounding_makes_as_large_as_its_ring_is_left_out(codec, text):
    frame = [square(6.4, 6.4, 51.2), square(7.5, 7.5, 48)[::-1]]
    assert mask_from_rings(frame, 64, 64).sum() == 400
    assert codec.encode([frame], 64, 64) == text
    assert filled(codec, [frame]).sum() == 52 * 52


@pytest.mark.parametrize(("side", "kept"), [(38.4, True), (41.6, True), (8.0, True), (3.0, False)])
def test_a_hole_stays_where_the_pixels_are_nearer_with_it(side, kept):
    # On tenths of 64 px these holes have sides of 0.6, 0.7, 0.1 and 0.
    shape = [square(0, 0, 64), square(12.8, 12.8, side)[::-1]]
    assert TENTHS.encode([shape], 64, 64).count("], [[") == kept


def test_a_hole_that_rounding_moves_across_the_edge_of_its_ring_goes_or_stays_by_the_pixels():
    # Steps are 32 px wide. Beyond the ring a hole is filled, so it draws the other half of its square.
    hole, ring, other = square(2, 2, 15)[::-1], square(0, 0, 32)[[0, 1, 3]], square(0, 0, 32)[[1, 2, 3]]
    for side, kept in ((47.0, True), (35.0, False)):
        corner = np.array([(0, 0), (side, 0), (0, side)])
        true, whole, half = (mask_from_rings(rings, 320, 320) for rings in ([corner, hole], [ring], [other]))
        nearer = (true & half).sum() / (true | half).sum() > (true & whole).sum() / (true | whole).sum()
        assert nearer == kept == (TENTHS.encode([[corner, hole]], 320, 320).count("], [[") == 1)


def test_two_specks_that_round_to_one_ring_are_written_once_and_what_is_said_twice_stays():
    specks = [square(10, 10, 6), square(11, 11, 5)]
    assert TENTHS.encode([specks], 64, 64).count("], [[") == 0
    assert TENTHS.encode([[square(0, 0, 32)] * 2], 64, 64).count("], [[") == 1


def test_a_ring_that_rounding_turns_over_is_left_out_beside_others_and_kept_where_it_is_all():
    rings = [square(8, 8, 8), square(0, 0, 64)]
    assert worth_writing(rings, [rings[0][::-1], rings[1]], 64, 64) == [1]
    assert worth_writing(rings[:1], [rings[0][::-1]], 64, 64) == [0]


@pytest.mark.parametrize("codec", [point_text.Codec(decimals=1, max_vertices=3), path_tokens.Codec(1, 1, 1, 3)])
def test_a_triangle_too_small_for_the_grid_takes_three_vertices_as_it_came(codec):
    triangle = np.array([(8, 40), (12, 40), (12, 44)], np.float64)
    drawn = filled(codec, [[triangle]])
    assert (drawn & mask_from_rings([triangle], 64, 64)).any()


def test_an_instance_without_a_vertex_is_none():
    nothing = np.zeros((0, 2))
    assert TENTHS.encode([[nothing], []], 64, 64) == "[]"
    assert path_tokens.Codec().encode([[nothing]], 64, 64) == "none"
    assert TENTHS.encode([[nothing, square(0, 0, 64)]], 64, 64) == TENTHS.encode([[square(0, 0, 64)]], 64, 64)


CODECS = st.one_of(
    st.builds(lambda decimals: point_text.Codec(decimals, max_characters=10**6, **ROOM), st.integers(1, 4)),
    st.builds(lambda box, path: path_tokens.Codec(box, path, **ROOM), st.integers(1, 70), st.integers(1, 40)),
)
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([640, 1021]))
UNITS = st.integers(-2, 34).map(lambda k: k / 32)
POINTS = st.lists(st.tuples(UNITS, UNITS), min_size=3, max_size=8).map(lambda points: np.array(points, np.float64))


@given(instances=st.lists(st.lists(POINTS, min_size=1, max_size=3), max_size=3), codec=CODECS, h=SIDES, w=SIDES)
@settings(max_examples=200, deadline=None)
def test_shapes_with_a_pixel_are_read_back_as_ok_with_one_of_their_pixels(instances, codec, h, w):
    shapes = [[ring * [w, h] for ring in rings] for rings in instances]
    for rings in shapes:
        mask = mask_from_rings(rings, h, w)
        drawn = filled(codec, [rings], h, w)
        assert (drawn & mask).any() or not mask.any()
    filled(codec, shapes, h, w)


MASKS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda size: st.lists(arrays(np.bool_, size), min_size=1, max_size=3)
)


@given(masks=MASKS, codec=CODECS, budget=st.integers(12, 40))
@settings(max_examples=100, deadline=None)
def test_outlines_of_masks_are_read_back_with_one_of_their_pixels_each_and_all_together(masks, codec, budget):
    h, w = masks[0].shape
    for outlines in ([rings_from_mask(mask) for mask in masks], [outline(mask, budget) for mask in masks]):
        drawn = [(rings, mask_from_rings(rings, h, w)) for rings in outlines if rings]
        for rings, shape in drawn:
            assert (filled(codec, [rings], h, w) & shape).any() or not shape.any()
        shapes = [shape for _, shape in drawn]
        assert filled(codec, [rings for rings, _ in drawn], h, w).any() or not np.any(shapes)


@given(mask=arrays(np.bool_, (12, 12)).filter(lambda mask: mask.any()), bins=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_no_fewer_pixels_are_right_than_with_every_hole_or_with_none(mask, bins):
    rings = rings_from_mask(mask)
    extent = (0.0, 0.0, 12.0, 12.0)
    read_px = [rounded(ring, bins, extent) * (12.0 / bins) for ring in rings]
    kept = worth_writing(rings, read_px, 12, 12)

    def iou(rings_px: list[Ring]) -> float:
        drawn = mask_from_rings(rings_px, 12, 12)
        return (drawn & mask).sum() / (drawn | mask).sum()

    assert iou([read_px[k] for k in kept]) >= iou([ring for ring in read_px if len(ring)])
