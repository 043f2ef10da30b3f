"""What released models write around an answer is taken off, and a model that hedges is not read."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.codecs._lenient import bare_answer
from envs.codecs.point_text import Codec
from envs.polygons import AnswerStatus

POLYGON = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]"
TWO = "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]], [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]]"
STRICT, LENIENT = Codec(coordinates="unit"), Codec(coordinates="unit", reading="lenient")
AROUND = [
    "{a}.",
    "{a}",
    "It is {a}.",
    "Sure, you can find it at {a}.",
    "The polygon of the cup on the left: {a}.",
    "```json\n{a}\n```",
    "```\n{a}\n```",
    "{a}</s>",
    "{a}.<|im_end|>\n",
    "Here it is: {a} I hope that this helps!",
]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("answer", [POLYGON, TWO])
def test_one_list_with_a_sentence_about_it_reads_as_the_list_alone(around: str, answer: str) -> None:
    text, bare = around.format(a=answer), STRICT.read(answer, 480, 640)
    found = LENIENT.read(text, 480, 640)
    assert found.status is AnswerStatus.OK
    assert [ring.tolist() for ring in found.rings_px] == [ring.tolist() for ring in bare.rings_px]
    assert (STRICT.read(text, 480, 640).status is AnswerStatus.OK) is (text.strip() == answer)
    assert (bare.bare, found.bare) == (True, text.strip() == answer)


def test_a_list_of_two_levels_is_one_polygon_and_one_of_boxes_or_numbers_is_none() -> None:
    two_levels = "[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]"
    assert bare_answer(f"At {two_levels}.") == f"[{two_levels}]"
    assert LENIENT.read(f"At {two_levels}.", 480, 640).status is AnswerStatus.OK
    both = LENIENT.read(f"{two_levels}; {POLYGON}", 480, 640)
    assert len(both.instances) == 2
    for text in ("[0.1, 0.1, 0.5, 0.4]", "[0.1, 0.1]", '[{"bbox_2d": [1, 2, 3, 4]}]'):
        assert LENIENT.read(text, 480, 640).status is AnswerStatus.UNPARSABLE
    assert LENIENT.read("There is none: [].", 480, 640).status is AnswerStatus.EMPTY


@pytest.mark.parametrize(
    "text",
    [
        f"{POLYGON} or {POLYGON}",
        f"{POLYGON}, {POLYGON}",
        f"[1] The cup: {POLYGON}",
        f"{POLYGON} {{}}",
        f"{'long ' * 50}{POLYGON}",
        f"```json\n{POLYGON}\n``` or ```json\n{POLYGON}\n```",
        POLYGON[:-1],
        "]" + POLYGON + "[",
        POLYGON + "]",
        POLYGON + " or rather 0.6, 0.6]",
        f"(0.1, 0.1), (0.5, 0.1), (0.9, 0.9) or rather {POLYGON}",
        f"[]{'x' * 3000}]",
        "no outline at all",
        "",
    ],
)
def test_two_answers_stray_brackets_and_long_prose_are_not_read(text: str) -> None:
    assert not LENIENT.read(text, 480, 640).status.valid


@given(st.text(alphabet="[]{};,. 0123456789eE+-`</s>ab\n", max_size=80))
def test_any_text_has_a_status_and_what_strict_reads_lenient_reads_alike(text: str) -> None:
    strict, lenient = STRICT.read(text, 100, 200), LENIENT.read(text, 100, 200)
    assert strict.bare
    if strict.status.valid:
        assert (lenient.status, lenient.bare) == (strict.status, True)
    elif lenient.status.valid:
        assert not lenient.bare
        assert [ring.tolist() for ring in lenient.rings_px] == [ring.tolist() for ring in strict.rings_px]


@pytest.mark.parametrize(
    "text",
    [
        "```json" + "\n" * 8000 + "x",
        "```" + " " * 16000,
        f"```json\n{POLYGON}" + " " * 16000 + "x",
        "[" * 16000,
        "[]" * 8000,
    ],
)
def test_no_text_within_the_limit_takes_long(text: str) -> None:
    begun = time.perf_counter()
    LENIENT.read(text[:16384], 480, 640)
    assert time.perf_counter() - begun < 1
