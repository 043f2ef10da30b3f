"""Boxes by centre and size, against numbers by hand, and as what an SVG path lies in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.codecs import _centre_box
from envs.codecs.svg_path import Codec
from envs.geometry.contours import mask_from_rings
from envs.polygons import AnswerStatus

MOONDREAM = (1023, 1023)


def test_numbers_by_hand() -> None:
    # 0.25 to 0.75 of 200 x 100: the centre is half, 511.5 of 1023; half a side is 2 ** -1, nine tenths of the octaves.
    box = np.array([(50.0, 25.0), (150.0, 75.0)])
    assert _centre_box.place_numbers(box, (1024, 1000), 100, 200) == [512, 512, 900, 900]
    assert _centre_box.place_px([512, 512, 900, 900], (1024, 1000), 100, 200).ravel().tolist() == [50, 25, 150, 75]
    assert _centre_box.place_numbers(np.array([(200.0, 0.0)]), MOONDREAM, 100, 200) == [1023, 0]
    assert _centre_box.place_px([1023, 0], MOONDREAM, 100, 200).tolist() == [[200, 0]]
    # The smallest size is a 1024th of a side, whatever is less than it.
    assert _centre_box.size_number(1e-9, 1023) == 0 and _centre_box.size_share(0, 1023) == 1 / 1024
    # A box over an edge is what of it lies in the image.
    assert _centre_box.box_px([0, 0, 900, 900], (1000, 1000), 100, 200) == (0.0, 0.0, 50.0, 25.0)


def test_an_object_over_a_whole_side_loses_half_a_step_where_no_number_is_the_middle() -> None:
    whole = np.array([(0.0, 0.0), (2000.0, 0.0), (2000.0, 1500.0), (0.0, 1500.0)])
    x0, y0, x1, y1 = _centre_box.box_px(_centre_box.box_around(whole, MOONDREAM, 1500, 2000), MOONDREAM, 1500, 2000)
    lost = (x0 + 2000 - x1) / 2000, (y0 + 1500 - y1) / 1500
    assert lost == pytest.approx((1 / 2046, 1 / 2046))
    even = _centre_box.box_px(_centre_box.box_around(whole, (1024, 1023), 1500, 2000), (1024, 1023), 1500, 2000)
    assert even == (0.0, 0.0, 2000.0, 1500.0)


@given(
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    sides=st.tuples(st.floats(0.002, 1), st.floats(0.002, 1)),
    steps=st.sampled_from([(63, 63), (64, 64), (1023, 1023), (1024, 1023), (7, 40)]),
)
def test_a_box_holds_what_it_is_drawn_around_and_is_hardly_larger(corner, sides, steps) -> None:
    height, width = 300, 400
    low, high = np.array(corner), np.minimum(np.array(corner) + sides, 1.0)
    place = np.stack([low, high]) * (width, height)
    numbers = _centre_box.box_around(place, steps, height, width)
    assert all(0 <= number <= steps[k > 1] for k, number in enumerate(numbers))
    box = np.array(_centre_box.box_px(numbers, steps, height, width)).reshape(2, 2) / (width, height)
    held = (box[0] <= low + 1e-9) & (box[1] >= high - 1e-9)
    # A side that is nearly whole may lose half a step; all else is held.
    assert (held | (high - low > 1 - 1 / steps[0])).all()
    # The centre is off by a step at most, the size by the ratio of two neighbours.
    most = (high - low + 2 / steps[0]) * 2 ** (10 / steps[1])
    assert (box[1] - box[0] <= np.maximum(most, 1 / 1024) + 1e-9).all()


def test_a_path_in_such_a_box_reads_back_as_it_was_written() -> None:
    codec = Codec(boxes="centre", box_bins=1023, max_vertices=16, curves=False)
    ring = np.array([(30.0, 12.0), (70.0, 20.0), (64.0, 55.0), (22.0, 48.0)])
    text = codec.encode([[ring]], 80, 120)
    answer = codec.read(text, 80, 120)
    assert answer.status is AnswerStatus.OK and len(text.split()) == 4 + 1 + 8 + 1
    (instance,) = answer.instances
    np.testing.assert_allclose(np.sort(instance.vertices_px, axis=0), np.sort(ring, axis=0), atol=0.06)
    assert (mask_from_rings([instance.vertices_px], 80, 120) != mask_from_rings([ring], 80, 120)).sum() <= 4
    # Two corners would be degenerate here: the second before the first.
    assert codec.read("900 900 500 500 M 0 0 960 0 960 960 Z", 80, 120).status is AnswerStatus.OK
    for text, status in (
        ("1024 0 500 500 M 0 0 960 0 960 960 Z", AnswerStatus.OUT_OF_RANGE),
        ("5 5 500 M 0 0 960 0 960 960 Z", AnswerStatus.UNPARSABLE),
    ):
        assert codec.read(text, 80, 120).status is status
    longer = Codec(boxes="centre", box_bins=1023, size_bins=2000)
    assert longer.read("1023 0 2000 500 M 0 0 960 0 960 960 Z", 80, 120).status is AnswerStatus.OK
    assert longer.read("1024 0 2000 500 M 0 0 960 0 960 960 Z", 80, 120).status is AnswerStatus.OUT_OF_RANGE


def test_points_and_boxes_as_answers_are_said_likewise() -> None:
    codec = Codec(boxes="centre", box_bins=1024, size_bins=1000)
    box, point = np.array([(50.0, 25.0), (150.0, 75.0)]), np.array([(100.0, 50.0)])
    assert codec.encode_places([box], 100, 200) == "512 512 900 900"
    assert codec.encode_places([point, point], 100, 200) == "512 512 ; 512 512"
    (instance,) = codec.read_places("512 512 900 900", "box", 100, 200).instances
    assert instance.box_px == (50.0, 25.0, 150.0, 75.0)
    assert codec.read_places("512 512 1001 0", "box", 100, 200).status is AnswerStatus.OUT_OF_RANGE
    assert codec.read_places("512", "point", 100, 200).status is AnswerStatus.UNPARSABLE
