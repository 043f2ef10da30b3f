"""Boxes and points as text: released models' forms by hand, round trips within a grid step, any text a status."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.codecs import json_objects, path_tokens, point_text
from envs.codecs.base import PlaceCodec
from envs.polygons import Answer, AnswerStatus

H, W = 480, 640
POINT, JSON, PATH = (
    point_text.Codec(coordinates="unit"),
    json_objects.Codec(coordinates="thousandths"),
    path_tokens.Codec(),
)
CODECS: dict[str, PlaceCodec] = {
    "path tokens": PATH,
    "point text": POINT,
    "point text, lenient": point_text.Codec(coordinates="unit", reading="lenient"),
    "json": JSON,
    "json, lenient": json_objects.Codec(coordinates="thousandths", reading="lenient"),
}
STEP = {"path tokens": 64, "point text": 1000, "json": 1000}
BOX, DOT = np.array([(64.0, 48.0), (320.0, 240.0)]), np.array([(160.0, 120.0)])


def places(answer: Answer) -> list[list[float]]:
    return [[*(instance.box_px or instance.vertices_px[0])] for instance in answer.instances]


def test_a_box_and_a_point_are_written_as_each_form_has_them() -> None:
    assert POINT.encode_places([BOX], H, W) == "[0.1, 0.1, 0.5, 0.5]"  # SimpleSeg's grammar
    assert POINT.encode_places([DOT, DOT], H, W) == "[0.25, 0.25]; [0.25, 0.25]"
    assert json.loads(JSON.encode_places([BOX], H, W)) == [{"bbox_2d": [100, 100, 500, 500]}]  # that of Qwen
    assert json.loads(JSON.encode_places([DOT, DOT], H, W)) == [{"point_2d": [250, 250]}] * 2
    assert PATH.encode_places([BOX], H, W) == "6 6 32 32"  # 6.4 steps outwards
    assert [codec.encode_places([], H, W) for codec in (POINT, JSON, PATH)] == ["[]", "[]", "none"]


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("asked", ["box", "point"])
def test_what_is_written_reads_back_and_nothing_else_does(name: str, asked: str) -> None:
    codec, place = CODECS[name], BOX if asked == "box" else DOT
    text = codec.encode_places([place, place], H, W)
    found = codec.read_places(text, asked, H, W)
    assert (found.status, found.bare, len(found.instances)) == (AnswerStatus.OK, True, 2)
    step = np.array([W, H]) / STEP[name.removesuffix(", lenient")]
    assert (np.abs(np.array(places(found)[0]).reshape(-1, 2) - place) <= step + 1e-9).all()
    other = "point" if asked == "box" else "box"
    assert codec.read_places(text, other, H, W).status is AnswerStatus.UNPARSABLE
    assert codec.read_places(text, asked, H, W, truncated=True).status is AnswerStatus.TRUNCATED
    assert codec.read_places(codec.encode_places([], H, W), asked, H, W).status is AnswerStatus.EMPTY


def test_a_box_is_a_rectangle_in_pixels_and_a_point_fills_nothing() -> None:
    (box,) = POINT.read_places("[0.1, 0.1, 0.5, 0.5]", "box", H, W).instances
    assert box.box_px == (64, 48, 320, 240)
    assert box.vertices_px.tolist() == [[64, 48], [320, 48], [320, 240], [64, 240]]
    (dot,) = POINT.read_places("[0.25, 0.25]", "point", H, W).instances
    assert (dot.vertices_px.tolist(), dot.box_px) == ([[160, 120]], None)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[0.5, 0.1, 0.1, 0.5]", AnswerStatus.DEGENERATE),
        ("[0.1, 0.1, 0.1, 0.5]", AnswerStatus.DEGENERATE),
        ("[0.1, 0.1, 1.5, 0.5]", AnswerStatus.OUT_OF_RANGE),
        ("[0.1, 0.1, 1e999, 0.5]", AnswerStatus.OUT_OF_RANGE),
        ("; ".join(["[0.1, 0.1, 0.5, 0.5]"] * 17), AnswerStatus.OUT_OF_RANGE),
        ("[0.1 0.1, 0.5, 0.5, 0.5]", AnswerStatus.UNPARSABLE),
        ("[[0.1, 0.1, 0.5, 0.5]]", AnswerStatus.UNPARSABLE),
        ("It is at [0.1, 0.1, 0.5, 0.5].", AnswerStatus.UNPARSABLE),
        (f"[{'1' * 4000}", AnswerStatus.UNPARSABLE),
    ],
)
def test_point_text_reads_boxes_strictly(text: str, status: AnswerStatus) -> None:
    assert POINT.read_places(text, "box", H, W).status is status


def test_lenient_reading_takes_a_sentence_and_a_fence_off_and_says_so() -> None:
    said = CODECS["point text, lenient"].read_places("It is at [0.1, 0.1, 0.5, 0.5].", "box", H, W)
    assert (said.status, said.bare) == (AnswerStatus.OK, False)
    fenced = '```json\n[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "cup [blue]"}\n]\n```'
    found = CODECS["json, lenient"].read_places(fenced, "box", H, W)
    assert (found.status, found.bare, found.instances[0].label) == (AnswerStatus.OK, False, "cup [blue]")
    assert JSON.read_places(fenced, "box", H, W).status is AnswerStatus.UNPARSABLE


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [100, 100, 500]}]',
        '[{"bbox_2d": [100, 100, 500, true]}]',
        '[{"bbox_2d": [100, 100, 500, NaN]}]',
        '[{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]}]',
        '[{"bbox_2d": [1, 2, 3, 4], "label": 7}]',
        '[{"point_2d": [1, 2]}]',
        "[" * 5000,
        '{"bbox_2d": [1, 2, 3, 4]}',
    ],
)
def test_what_is_no_list_of_boxes_is_unparsable_json(text: str) -> None:
    assert JSON.read_places(text, "box", H, W).status is AnswerStatus.UNPARSABLE


@given(st.text(alphabet='[]{};:,. 0123456789eE+-"`bpoxint_2dlae\n', max_size=60), st.sampled_from(["box", "point"]))
def test_any_text_has_a_status(text: str, asked: str) -> None:
    for name in ("path tokens", "point text", "json"):
        strict = CODECS[name].read_places(text, asked, H, W)
        assert isinstance(strict.status, AnswerStatus)
        lenient = CODECS.get(f"{name}, lenient")
        if lenient is not None and strict.status.valid:
            assert lenient.read_places(text, asked, H, W).status is strict.status


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5))
def test_boxes_of_any_size_read_back_around_themselves(corners: list[tuple[float, ...]]) -> None:
    boxes = [np.sort(np.array(each).reshape(2, 2), axis=0) * (W, H) for each in corners]
    for codec, bins in ((PATH, 64), (POINT, 1000), (JSON, 1000)):
        found = codec.read_places(codec.encode_places(boxes[:4], H, W), "box", H, W)
        assert found.status is AnswerStatus.OK
        for instance, box in zip(found.instances, boxes, strict=False):
            read, step = np.array(instance.box_px).reshape(2, 2), np.array([W, H]) / bins
            assert (read[0] <= box[0] + 1e-6).all() and (read[1] >= box[1] - 1e-6).all()
            assert (read[1] - read[0] <= box[1] - box[0] + 2 * step + 1e-6).all()
