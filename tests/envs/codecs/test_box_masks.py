"""Boxes with a mark for a mask, in words and in JSON: what is written, what is read, and that no text is too odd."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codecs import box_masks, json_masks
from envs.geometry.contours import mask_from_rings
from envs.polygons import AnswerStatus, Ring

WORDS = box_masks.Codec(box_bins=64, max_masks=3)
JSON = json_masks.Codec(coordinates="thousandths", max_rings=3)
MASK = "<|mask_start|><|mask|><|mask_end|>"


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def test_a_box_is_the_smallest_of_the_grid_around_all_rings_of_an_instance() -> None:
    parts = [rectangle(10, 20, 14, 24), rectangle(33, 21, 35, 51)]
    assert WORDS.encode([parts, [rectangle(0, 0, 128, 64)]], 64, 128) == "5 20 18 51 <|mask|> ; 0 0 64 64 <|mask|>"
    assert WORDS.encode([], 64, 64) == "none" and WORDS.encode([[]], 64, 64) == "none"
    said = json.loads(JSON.encode([parts], 64, 128))
    assert said == [{"bbox_2d": [78, 312, 274, 797], "label": "object", "mask": MASK}]
    assert JSON.encode([], 64, 64) == "[]"


def test_a_text_alone_reads_as_its_boxes() -> None:
    answer = WORDS.read("8 16 24 32 <|mask|> ; 0 0 1 1 <|mask|>", 128, 64)
    assert [instance.box_px for instance in answer.instances] == [(8.0, 32.0, 24.0, 64.0), (0.0, 0.0, 1.0, 2.0)]
    assert mask_from_rings(answer.instances[0].rings_px, 128, 64).sum() == 16 * 32
    text = f'[{{"label": "left cup", "mask": "{MASK}", "bbox_2d": [125, 250, 375, 500]}}]'
    [instance] = JSON.read(text, 128, 64).instances
    assert instance.box_px == (8.0, 32.0, 24.0, 64.0) and instance.label == "left cup"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("none", "empty"),
        ("", "unparsable"),
        ("8 16 24 32", "unparsable"),  # a box without a mask
        ("<|mask|>", "unparsable"),  # a mask without a box
        ("8 16 24 <|mask|>", "unparsable"),
        ("8 16 24 32 <|mask|> <|mask|>", "unparsable"),
        ("8 16 24 32 <|mask|> ;", "unparsable"),
        ("8 16 24 65 <|mask|>", "out_of_range"),
        ("24 16 8 32 <|mask|>", "degenerate"),  # inverted
        ("8 16 8 32 <|mask|>", "degenerate"),  # no area
        (" ; ".join(["1 1 2 2 <|mask|>"] * 4), "out_of_range"),
    ],
)
def test_words_that_are_no_answer_get_a_status(text: str, status: str) -> None:
    assert WORDS.read(text, 64, 64).status == status
    assert WORDS.read(text, 64, 64, truncated=True).status is AnswerStatus.TRUNCATED


def one(**changed: object) -> str:
    held: dict[str, object] = {"bbox_2d": [1, 2, 3, 4], "mask": MASK} | changed
    return json.dumps([{key: value for key, value in held.items() if value is not None}])


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (one(), "ok"),
        ("[]", "empty"),
        (one(mask=None), "unparsable"),
        (one(bbox_2d=None), "unparsable"),
        (one(mask="<|mask|>"), "unparsable"),
        (one(bbox_2d=[1, 2, 3]), "unparsable"),
        (one(bbox_2d=[True, 2, 3, 4]), "unparsable"),
        (one(bbox_2d=["1", 2, 3, 4]), "unparsable"),
        (one(label=7), "unparsable"),
        (one(score=0.5), "unparsable"),
        (one().replace('"mask"', '"bbox_2d"'), "unparsable"),
        ('{"bbox_2d": [1, 2, 3, 4]}', "unparsable"),
        (one()[:-3], "unparsable"),
        ("[" * 10_000, "unparsable"),
        (one(bbox_2d=[1, 2, 10**400, 4]), "out_of_range"),
        (one(bbox_2d=[1, 2, 3, 4]).replace("3, 4", "3, NaN"), "unparsable"),
        (one(bbox_2d=[1, 2, 3, 1001]), "out_of_range"),
        (one(bbox_2d=[3, 2, 1, 4]), "degenerate"),
        ("x" * 20_000, "out_of_range"),
        ("[" + ", ".join([one()[1:-1]] * 4) + "]", "out_of_range"),
    ],
)
def test_json_that_is_no_answer_gets_a_status(text: str, status: str) -> None:
    assert JSON.read(text, 64, 64).status == status


def test_lenient_reading_takes_a_fence_and_other_keys() -> None:
    lenient = json_masks.Codec(coordinates="thousandths", reading="lenient")
    for text in (f"Here it is:\n```json\n{one()}\n```", one(score=0.5)):
        answer = lenient.read(text, 64, 64)
        assert answer.status is AnswerStatus.OK and not (answer.bare and "json" in text)
        assert JSON.read(text, 64, 64).status is AnswerStatus.UNPARSABLE


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 63)] * 4), max_size=3), st.integers(1, 200), st.integers(1, 200))
def test_what_is_written_is_read_as_boxes_around_what_was_meant(boxes: list[tuple[int, ...]], h: int, w: int) -> None:
    scale = np.array([w, h, w, h]) / 64
    meant = [np.array([min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1]) * scale for a, b, c, d in boxes]
    for codec, step in ((WORDS, 1 / 64), (JSON, 1 / 1000)):
        answer = codec.read(codec.encode([[rectangle(*box)] for box in meant], h, w), h, w)
        assert answer.status is (AnswerStatus.OK if boxes else AnswerStatus.EMPTY)
        for found, box in zip(answer.instances, meant, strict=True):
            assert found.box_px is not None
            outside = np.abs(np.array(found.box_px) - box) / np.array([w, h, w, h])
            assert outside.max() <= step + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='[]{}"0123456789,.: -<|>maskbox_2dlel;\\u', max_size=80))
def test_any_text_reads_as_some_status(text: str) -> None:
    for codec in (WORDS, JSON):
        assert codec.read(text, 32, 32).status in AnswerStatus
        assert all(0 <= place.begin < place.end <= len(text) for place in codec.text_places(text))
        codec.box_text(text)


def test_places_of_boxes_are_found_and_a_box_stage_ends_behind_the_first() -> None:
    text = "8 16 24 32 <|mask|> ; 0 0 1 1 <|mask|>"
    assert [text[place.begin : place.end] for place in WORDS.text_places(text)] == ["8 16 24 32", "0 0 1 1"]
    assert WORDS.box_text(text) == "8 16 24 32" and JSON.box_text(one()) == '[{"bbox_2d": [1, 2, 3, 4]'
    [place] = JSON.text_places(one())
    assert one()[place.begin : place.end] == "[1, 2, 3, 4]" and place.vertex is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: box_masks.Codec(mask_token="two words"), "codec.mask_token is 'two words'"),
        (lambda: box_masks.Codec(mask_token="7"), "codec.mask_token is '7'"),
        (lambda: box_masks.Codec(box_bins=0), "box_bins is 0"),
        (lambda: json_masks.Codec(mask_end="<|mask|>"), "give three different tokens"),
        (lambda: json_masks.Codec(mask_token='"'), "give three different tokens"),
        (lambda: WORDS.encode([[rectangle(0, 0, 9, 9)]] * 4, 64, 64), "4 boxes exceed the codec's max_masks 3"),
    ],
)
def test_settings_and_outlines_that_cannot_be_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
