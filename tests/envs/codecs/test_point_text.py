"""Points as text: what is written is read back exactly, and any other text reads as a status."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.codecs.point_text import Codec
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.polygons import AnswerStatus, px_from_unit, signed_area_px

TRIANGLE = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]"


def square(x0, y0, side):
    return np.array([(x0, y0), (x0 + side, y0), (x0 + side, y0 + side), (x0, y0 + side)], np.float64)


def status(text, **settings):
    return Codec(**settings).read(text, 100, 200).status


def test_a_square_in_a_wide_image_is_written_as_simpleseg_does():
    text = Codec().encode([[square(20, 10, 50)]], height=100, width=200)
    assert text == "[[[0.1, 0.1], [0.35, 0.1], [0.35, 0.6], [0.1, 0.6]]]"
    assert json.loads(text)[0][2] == [0.35, 0.6]


def test_the_last_of_five_decimals_is_written_without_an_exponent():
    text = Codec(decimals=5).encode([[square(0.001, 0, 50)]], height=100, width=100)
    assert text.startswith("[[[0.00001, 0.0], [0.50001, 0.0]")


def test_x_is_scaled_by_width_and_y_by_height():
    answer = Codec().read(TRIANGLE, height=100, width=200)
    assert answer.status is AnswerStatus.OK
    assert answer.rings_px[0].tolist() == [[20.0, 10.0], [100.0, 10.0], [100.0, 40.0]]


def test_the_empty_answer_is_two_brackets():
    assert Codec().encode([], 100, 200) == "[]" == Codec().encode([[]], 100, 200)
    assert Codec().read(" [ ]\n", 100, 200).status is AnswerStatus.EMPTY


def test_two_instances_keep_their_own_rings_and_directions():
    ring_with_hole = [square(0, 0, 50), square(10, 10, 20)[::-1]]
    codec = Codec()
    text = codec.encode([ring_with_hole, [square(60, 60, 30)]], 100, 100)
    assert text.count(";") == 1
    answer = codec.read(text, 100, 100)
    assert [len(instance.rings_px) for instance in answer.instances] == [2, 1]
    assert [signed_area_px(ring) for ring in answer.rings_px] == pytest.approx([2500, -400, 900])
    assert mask_from_rings(answer.rings_px, 100, 100).sum() == 2500 - 400 + 900


GRID_RINGS = st.lists(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=12, unique=True)
    .map(np.array)
    .filter(lambda grid: signed_area_px(grid) != 0),
    min_size=1,
    max_size=3,
)


@given(instances=st.lists(GRID_RINGS, min_size=1, max_size=3), height=st.integers(1, 3000), width=st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_points_of_the_grid_come_back_to_the_last_bit(instances, height, width):
    codec = Codec()
    rings_px = [[px_from_unit(grid / 1000, height, width) for grid in rings] for rings in instances]
    text = codec.encode(rings_px, height, width)
    answer = codec.read(text, height, width)
    assert answer.status is AnswerStatus.OK
    for instance, rings in zip(answer.instances, rings_px, strict=True):
        assert [ring.tolist() for ring in instance.rings_px] == [ring.tolist() for ring in rings]
    assert codec.encode([instance.rings_px for instance in answer.instances], height, width) == text


@given(mask=arrays(np.bool_, (12, 16)).filter(lambda mask: mask.any()))
@settings(max_examples=60, deadline=None)
def test_masks_with_holes_and_diagonals_survive_the_text(mask):
    codec = Codec(max_rings=100)
    answer = codec.read(codec.encode([rings_from_mask(mask)], 12, 16), 12, 16)
    assert answer.status is AnswerStatus.OK
    np.testing.assert_array_equal(mask_from_rings(answer.rings_px, 12, 16), mask)


@given(corner=st.tuples(st.floats(0, 4095), st.floats(0, 4095)), side=st.floats(1e-6, 1.0))
@settings(max_examples=60, deadline=None)
def test_what_is_too_small_for_the_grid_is_written_as_the_cells_around_it(corner, side):
    codec = Codec(decimals=2)
    answer = codec.read(codec.encode([[square(*corner, side)]], 4096, 4096), 4096, 4096)
    assert answer.status is AnswerStatus.OK
    low, high = answer.rings_px[0].min(axis=0), answer.rings_px[0].max(axis=0)
    assert (low <= np.array(corner) + 1e-6).all() and (high >= np.array(corner) + side - 1e-6).all()
    assert (high - low <= 2 * 40.96 + 1e-6).all()


def test_a_hole_too_small_for_the_grid_is_left_out():
    text = Codec(decimals=1).encode([[square(0, 0, 100), square(50, 50, 3)[::-1]]], 100, 100)
    assert text == "[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "unparsable"),
        ("The mask is " + TRIANGLE, "unparsable"),
        (TRIANGLE + " is the mask.", "unparsable"),
        (TRIANGLE + TRIANGLE, "unparsable"),
        (TRIANGLE + "]", "unparsable"),
        ("[];" + TRIANGLE, "unparsable"),
        ("[" + TRIANGLE + "]", "unparsable"),
        ("[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]", "unparsable"),
        (TRIANGLE.replace("0.4", "0.4, 0.4"), "unparsable"),
        (TRIANGLE.replace("0.4", "NaN"), "unparsable"),
        (TRIANGLE.replace("0.4", "Infinity"), "unparsable"),
        (TRIANGLE.replace("0.4", "00.4"), "unparsable"),
        (TRIANGLE.replace("0.4", "٤"), "unparsable"),
        (TRIANGLE.replace("0.4", '"0.4"'), "unparsable"),
        (TRIANGLE.replace("0.4", "1.001"), "out_of_range"),
        (TRIANGLE.replace("0.4", "-0.4"), "out_of_range"),
        (TRIANGLE.replace("0.4", "1e999"), "out_of_range"),
        (TRIANGLE.replace("0.4", "9" * 9999), "out_of_range"),
        (TRIANGLE.replace("0.4", "4e-1"), "ok"),
        (TRIANGLE.replace(" ", ""), "ok"),
        (TRIANGLE.replace(" ", "\n\t "), "ok"),
        (TRIANGLE + ";" + TRIANGLE, "ok"),
        ("[[]]", "degenerate"),
        ("[[[0.1, 0.1]]]", "degenerate"),
        ("[[[0.1, 0.1], [0.5, 0.1]]]", "degenerate"),
        ("[[[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]]", "degenerate"),
        ("[[[0.1, 0.1], [0.5, 0.1], [0.1, 0.1], [0.5, 0.1]]]", "degenerate"),
        (TRIANGLE + ";[[[0.1, 0.1], [0.5, 0.1]]]", "degenerate"),
        ("[[[0.1, 0.1], [0.10001, 0.1], [0.10001, 0.10001]]]", "degenerate"),
        ("[[[]]]", "unparsable"),
        ("[" * 3, "truncated"),
        ("[" * 16384, "unparsable"),
        ("[" * 100_000, "out_of_range"),
        ("x" * 100_000, "out_of_range"),
    ],
)
def test_each_text_reads_as_its_status(text, expected):
    answer = Codec().read(text, 100, 200)
    assert answer.status == expected
    assert bool(answer.instances) == (expected == "ok")


def test_every_beginning_of_an_answer_is_truncated_and_says_so_without_the_flag():
    text = "[[[0.1, 0.1], [5e-1, 0.1], [0.5, 0.4]], [[0.2, 0.2], [0.3, 0.2], [0.3, 0.3]]]; " + TRIANGLE
    whole = text.index(";")
    assert status(text) is AnswerStatus.OK
    for length in range(1, len(text)):
        assert status(text[:length]) is (AnswerStatus.OK if length == whole else AnswerStatus.TRUNCATED), text[:length]


def test_a_text_that_the_length_limit_cut_is_truncated_whatever_it_says():
    for text in (TRIANGLE, "[]", "prose", ""):
        assert Codec().read(text, 100, 200, truncated=True).status is AnswerStatus.TRUNCATED


def test_one_more_than_a_limit_is_out_of_range():
    two = f"{TRIANGLE}; {TRIANGLE}"
    assert status(two, max_rings=2, max_vertices=6, max_characters=len(two)) is AnswerStatus.OK
    assert status(two, max_rings=1) is AnswerStatus.OUT_OF_RANGE
    assert status(two, max_vertices=5) is AnswerStatus.OUT_OF_RANGE
    assert status(two, max_characters=len(two) - 1) is AnswerStatus.OUT_OF_RANGE


def test_writing_more_than_a_limit_names_the_limit():
    rings = [square(0, 0, 10), square(20, 20, 10)]
    for settings_ in ({"max_rings": 1}, {"max_vertices": 7}, {"max_characters": 50}):
        with pytest.raises(ValueError, match=r"2 rings with 8 vertices in .* characters exceed .*simplify"):
            Codec(**settings_).encode([rings], 100, 100)


@pytest.mark.parametrize("wrong", [{"decimals": 0}, {"decimals": 6}, {"max_rings": 0}, {"max_vertices": 2}])
def test_settings_that_no_text_can_meet_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Codec(**wrong)


PIECES = st.sampled_from([*"[],;. -+eE0159", "[[[", "]]]", "0.5", "NaN", "Infinity", "1e400", "\x00", "\ud800", "½"])


@given(text=st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=60).map("".join)))
@settings(max_examples=300, deadline=None)
def test_any_text_reads_as_some_status(text):
    answer = Codec().read(text, 100, 200)
    assert bool(answer.instances) == (answer.status is AnswerStatus.OK)


@given(start=st.integers(0, 80), length=st.integers(0, 6), piece=st.one_of(PIECES, st.text(max_size=3)))
@settings(max_examples=300, deadline=None)
def test_an_answer_with_a_piece_replaced_reads_as_some_status(start, length, piece):
    valid = f"{TRIANGLE}; {TRIANGLE}"
    answer = Codec().read(valid[:start] + piece + valid[start + length :], 100, 200)
    assert bool(answer.instances) == (answer.status is AnswerStatus.OK)
    for ring in answer.rings_px:
        assert np.isfinite(ring).all() and (ring >= 0).all() and (ring <= [200, 100]).all()
