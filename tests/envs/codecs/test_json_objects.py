"""Outlines in Qwen's JSON: what is written is what json.dumps writes and is read back, any other text has a status."""

import json
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codecs._lenient import bare_objects
from envs.codecs.json_objects import Codec
from envs.geometry.contours import mask_from_rings
from envs.polygons import AnswerStatus, bounding_box_px, px_from_unit, signed_area_px
from policies.grammar import Pieces, TokenGrammar

RING = "[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]"
TRIANGLE = f'[{{"polygon_2d": {RING}}}]'
FULL = (
    '[{"bbox_2d": [0.1, 0.1, 0.5, 0.4], "polygon_2d": [[[0.1, 0.1], [5e-1, 0.1], [0.5, 0.4]], [[0.2, 0.2], [0.3, 0.2], '
    r'[0.3, 0.3]]], "label": "a \"cup\" ] of {\u00e9\n"}, {"label": "", "polygon_2d": [[0.7, 0.2], [0.9, 0.2], '
    "[0.9, 0.6]]}]"
)
KINDS = ("unit", "thousandths", "resized_px")


def square(x0, y0, side):
    return np.array([(x0, y0), (x0 + side, y0), (x0 + side, y0 + side), (x0, y0 + side)], np.float64)


def halved(height, width):
    return max(1, height // 2), max(1, width // 2)


def bound(kind, **settings):
    return Codec(coordinates=kind, max_characters=10**6, **settings).seen_by("unit", halved)


def read(text, **settings):
    return Codec(**settings).read(text, 100, 200)


def test_a_square_with_its_box_is_written_in_the_three_kinds_of_numbers():
    written = {kind: bound(kind, boxes=True).encode([[square(20, 10, 50)]], 100, 200) for kind in KINDS}
    assert written == {
        "unit": '[{"bbox_2d": [0.1, 0.1, 0.35, 0.6], "polygon_2d": '
        "[[0.1, 0.1], [0.35, 0.1], [0.35, 0.6], [0.1, 0.6]]}]",
        "thousandths": '[{"bbox_2d": [100, 100, 350, 600], "polygon_2d": '
        "[[100, 100], [350, 100], [350, 600], [100, 600]]}]",
        "resized_px": '[{"bbox_2d": [10, 5, 35, 30], "polygon_2d": [[10, 5], [35, 5], [35, 30], [10, 30]]}]',
    }


def test_what_qwen_writes_of_a_box_and_a_label_is_read_beside_the_outline_in_pixels_of_the_photo():
    text = (
        "```json\n[\n\t"
        '{"bbox_2d": [10, 5, 35, 30], "label": "cup [left]", "polygon_2d": [[10, 5], [35, 5], [35, 30]]},\n\t'
        '{"polygon_2d": [[[60, 5], [80, 5], [80, 30]]], "label": "a } cup", "score": 0.5}\n]\n```'
    )
    answer = bound("resized_px", reading="lenient").read(text, 100, 200)
    assert (answer.status, answer.bare) == (AnswerStatus.OK, False)
    first, second = answer.instances
    assert (first.box_px, first.label, second.box_px) == ((20.0, 10.0, 70.0, 60.0), "cup [left]", None)
    assert first.rings_px[0].tolist() == [[20, 10], [70, 10], [70, 60]]
    assert (second.label, len(second.rings_px)) == ("a } cup", 1)


def test_a_hole_makes_the_outline_a_list_of_rings_and_keeps_its_direction():
    text = Codec().encode([[square(0, 0, 50), square(10, 10, 20)[::-1]], [square(60, 60, 30)]], 100, 100)
    first, second = json.loads(text)
    assert [len(ring) for ring in first["polygon_2d"]] == [4, 4]
    assert second["polygon_2d"] == [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9], [0.6, 0.9]]
    answer = Codec().read(text, 100, 100)
    assert [len(instance.rings_px) for instance in answer.instances] == [2, 1]
    assert [signed_area_px(ring) for ring in answer.rings_px] == pytest.approx([2500, -400, 900])
    assert mask_from_rings(answer.rings_px, 100, 100).sum() == 2500 - 400 + 900


def test_the_empty_answer_is_two_brackets():
    assert Codec().encode([], 100, 200) == "[]" == Codec().encode([[]], 100, 200)
    assert [read(text).status for text in ("[]", " [ ]\n")] == [AnswerStatus.EMPTY] * 2


GRID_RINGS = st.lists(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=9, unique=True)
    .map(np.array)
    .filter(lambda grid: signed_area_px(grid) != 0),
    min_size=1,
    max_size=3,
)


@given(
    instances=st.lists(GRID_RINGS, max_size=3),
    kind=st.sampled_from(["unit", "thousandths"]),
    boxes=st.booleans(),
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
@settings(max_examples=60, deadline=None)
def test_grid_points_are_written_as_json_dumps_does_and_come_back_to_the_last_bit(instances, kind, boxes, size):
    codec = bound(kind, boxes=boxes, outline_key="Umriß")
    written = [[px_from_unit(grid / 1000, *size) for grid in rings] for rings in instances]
    text = codec.encode(written, *size)
    structure = []
    for rings in instances:
        numbers = [(ring if kind == "thousandths" else ring / 1000).tolist() for ring in rings]
        every = np.concatenate(numbers)
        box = {"bbox_2d": [*every.min(0).tolist(), *every.max(0).tolist()]} if boxes else {}
        structure.append(box | {"Umriß": numbers if len(numbers) > 1 else numbers[0]})
    if kind == "thousandths":
        structure = json.loads(re.sub(r"\.0\b", "", json.dumps(structure)))
    assert text == json.dumps(structure, ensure_ascii=False)
    answer = codec.read(text, *size)
    assert answer.status is (AnswerStatus.OK if instances else AnswerStatus.EMPTY)
    for instance, rings in zip(answer.instances, written, strict=True):
        assert [ring.tolist() for ring in instance.rings_px] == [ring.tolist() for ring in rings]
        assert instance.box_px == (bounding_box_px(instance.vertices_px) if boxes else None)


@given(
    kind=st.sampled_from(KINDS),
    size=st.tuples(st.integers(60, 4000), st.integers(60, 4000)),
    centre=st.tuples(st.floats(0.45, 0.55), st.floats(0.45, 0.55)),
    turn=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_round_trip_keeps_every_vertex_within_half_a_grid_step(kind, size, centre, turn):
    height, width = size
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False) + turn
    ring = (np.array(centre) + 0.4 * np.stack([np.cos(angles), np.sin(angles)], 1)) * [width, height]
    answer = bound(kind).read(bound(kind).encode([[ring]], height, width), height, width)
    assert answer.status is AnswerStatus.OK
    (found,) = answer.rings_px
    shown = halved(height, width)
    step = np.array([width / shown[1], height / shown[0]] if kind == "resized_px" else [width / 1000, height / 1000])
    assert (np.abs(found - ring) <= step / 2 + 1e-9).all()


def rings_of(said):
    rings = said["polygon_2d"]
    return rings if not rings or isinstance(rings[0][0], list) else [rings]


def said(*members):
    return "[{" + ", ".join(members) + "}]"


OUTLINE, BOX = f'"polygon_2d": {RING}', '"bbox_2d": [0.1, 0.1, 0.5, 0.4]'


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (TRIANGLE, "ok", "ok"),
        (FULL, "ok", "ok"),
        (TRIANGLE.replace(" ", ""), "ok", "ok"),
        (TRIANGLE.replace(" ", "\r\n\t "), "ok", "ok"),
        (said(BOX, '"label": "x"', OUTLINE), "ok", "ok"),
        (said(f'"polygon\\u005f2d": {RING}'), "ok", "ok"),
        (TRIANGLE[1:-1], "unparsable", "ok"),
        (f"It is {TRIANGLE}.", "unparsable", "ok"),
        (f"```json\n{TRIANGLE}\n```<|im_end|>", "unparsable", "ok"),
        (f"```json\n{TRIANGLE[1:-1]}\n```", "unparsable", "ok"),
        (said(OUTLINE, '"n": {"a": [1, "]", {}], "b": {"c": null}}', '"d": []'), "unparsable", "ok"),
        (said('"points": [true, -1e999, 7]', OUTLINE, '"points": 1'), "unparsable", "ok"),
        ("There is none: [].", "unparsable", "empty"),
        ("", "unparsable", "unparsable"),
        ("{}", "unparsable", "unparsable"),
        ("[{}]", "unparsable", "unparsable"),
        (said(BOX), "unparsable", "unparsable"),
        (said(BOX, '"label": "cup"'), "unparsable", "unparsable"),
        (TRIANGLE[:-1] + ", " + said(BOX)[1:], "unparsable", "unparsable"),
        (f"{TRIANGLE} or {TRIANGLE}", "unparsable", "unparsable"),
        (f"{TRIANGLE[1:-1]}, {TRIANGLE[1:-1]}", "unparsable", "unparsable"),
        (f"[{TRIANGLE}]", "unparsable", "unparsable"),
        (f"[{RING}]", "unparsable", "unparsable"),
        (TRIANGLE + "]", "unparsable", "unparsable"),
        (TRIANGLE[:-1] + ",]", "unparsable", "unparsable"),
        (TRIANGLE[:-2] + ",}]", "unparsable", "unparsable"),
        (said(OUTLINE, OUTLINE), "unparsable", "unparsable"),
        (said(OUTLINE, BOX, BOX), "unparsable", "unparsable"),
        (said(OUTLINE, '"label": null'), "unparsable", "unparsable"),
        (said(OUTLINE, '"label": "a\nb"'), "unparsable", "unparsable"),
        (said(OUTLINE, r'"label": "\x"'), "unparsable", "unparsable"),
        (said(OUTLINE, '"a": [}'), "unparsable", "unparsable"),
        (said(OUTLINE, '"a": {1: 2}'), "unparsable", "unparsable"),
        (said(OUTLINE, '"bbox_2d": [0.1, 0.1, 0.5]'), "unparsable", "unparsable"),
        (TRIANGLE.replace('"', "'"), "unparsable", "unparsable"),
        (TRIANGLE.replace("[[0.1", "[[[0.1"), "unparsable", "unparsable"),
        (TRIANGLE.replace("0.4", "0.4, 0.4"), "unparsable", "unparsable"),
        *[
            (TRIANGLE.replace("0.4", number), "unparsable", "unparsable")
            for number in ("NaN", "-Infinity", "true", "null", '"0.4"', "00.4", ".4", "4.", "+1", "٤", "[0.4]")
        ],
        *[
            (TRIANGLE.replace("0.4", number), "out_of_range", "out_of_range")
            for number in ("1.001", "-0.4", "1e999", "9" * 9999, "-1e-9")
        ],
        (said(OUTLINE, '"bbox_2d": [0.1, 0.1, 1.5, 0.4]'), "out_of_range", "out_of_range"),
        (said(OUTLINE, '"bbox_2d": [0.1, 0.1, 0.1, 0.4]'), "degenerate", "degenerate"),
        (said(OUTLINE, '"bbox_2d": [0.1, 0.4, 0.5, 0.1]'), "degenerate", "degenerate"),
        ('[{"polygon_2d": []}]', "degenerate", "degenerate"),
        ('[{"polygon_2d": [[]]}]', "degenerate", "degenerate"),
        ('[{"polygon_2d": [[], []]}]', "degenerate", "degenerate"),
        ('[{"polygon_2d": [[0.1, 0.1], [0.5, 0.1]]}]', "degenerate", "degenerate"),
        ('[{"polygon_2d": [[0.1, 0.1], [0.10001, 0.1], [0.10001, 0.10001]]}]', "degenerate", "degenerate"),
        ('[{"polygon_2d": [[[]]]}]', "unparsable", "unparsable"),
        ('[{"polygon_2d": [[0.1, 0.1], [[0.5, 0.1]]]}]', "unparsable", "unparsable"),
        ('[{"poly', "truncated", "truncated"),
        ('[{"other', "unparsable", "truncated"),
        ('[{"other": [{"a": tru', "unparsable", "truncated"),
        ('{"polygon_2d": [[0.1,', "unparsable", "truncated"),
        ('It is:\n```json\n[{"polygon_2d"', "unparsable", "truncated"),
        ("[" * 16384, "unparsable", "unparsable"),
        ("[" * 100_000, "out_of_range", "out_of_range"),
    ],
)
def test_each_text_reads_as_its_status(text, strict, lenient):
    for reading, expected in (("strict", strict), ("lenient", lenient)):
        answer = read(text, reading=reading)
        assert answer.status == expected, reading
        assert bool(answer.instances) == (expected == "ok")


@pytest.mark.parametrize("reading", ["strict", "lenient"])
def test_every_beginning_of_an_answer_is_truncated(reading):
    assert read(FULL, reading=reading).status is AnswerStatus.OK
    for length in range(1, len(FULL)):
        assert read(FULL[:length], reading=reading).status is AnswerStatus.TRUNCATED, FULL[:length]


def test_a_text_that_the_length_limit_cut_is_truncated_whatever_it_says():
    for text in (TRIANGLE, "[]", "prose", ""):
        assert Codec().read(text, 100, 200, truncated=True).status is AnswerStatus.TRUNCATED


def test_half_a_surrogate_pair_in_a_label_becomes_a_question_mark_and_a_whole_one_its_character():
    for written in (r"\ud800", "\ud800"):
        assert read(said(OUTLINE, f'"label": "{written}!"')).instances[0].label == "?!"
    assert read(said(OUTLINE, r'"label": "\ud83c\udf4e"')).instances[0].label == "\U0001f34e"


@pytest.mark.parametrize(
    ("text", "bare"),
    [(FULL, True), (f"\n{FULL} ", True), ("[]", True), (f"{FULL}.", False), (TRIANGLE[1:-1], False), ("[].", False)],
)
def test_an_answer_is_bare_where_strict_reading_takes_it(text, bare):
    assert read(text, reading="lenient").bare is bare
    assert read(text).status.valid is bare


def test_keys_that_are_passed_over_are_something_taken_off():
    text = said('"score": 1', OUTLINE)
    assert bare_objects(text) == text
    assert (read(text, reading="lenient").status, read(text, reading="lenient").bare) == (AnswerStatus.OK, False)


SIGNS = [*'[]{},:". -e01\\\x00\ud800½', "[[", "]]", "0.5", '"polygon_2d": ', '"bbox_2d": ', '"label": "', RING]
STRAY = ["NaN", "Infinity", "true", "null", "1e999", "\\u12", "```", "```json", "</s>", '"a": ', TRIANGLE]
PIECES = st.sampled_from([*SIGNS, *STRAY])


@given(text=st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join)))
@settings(max_examples=300, deadline=500)
def test_any_text_has_a_status_and_what_strict_reads_lenient_reads_alike(text):
    strict, lenient = read(text), read(text, reading="lenient")
    for answer in (strict, lenient):
        assert bool(answer.instances) == (answer.status is AnswerStatus.OK)
    if strict.status.valid:
        assert (strict.status, [str(each) for each in strict.instances], True) == (
            lenient.status,
            [str(each) for each in lenient.instances],
            lenient.bare,
        )


@given(
    whole=st.sampled_from([TRIANGLE, FULL]),
    start=st.integers(0, 260),
    length=st.integers(0, 9),
    piece=st.one_of(PIECES, st.text(max_size=3)),
)
@settings(max_examples=500, deadline=500)
def test_what_reads_as_ok_is_json_of_the_same_numbers_and_labels(whole, start, length, piece):
    text = whole[:start] + piece + whole[start + length :]
    answer = read(text)
    if answer.status is not AnswerStatus.OK:
        return
    for instance, said_ in zip(answer.instances, json.loads(text), strict=True):
        assert set(said_) <= {"polygon_2d", "bbox_2d", "label"}
        rings = [px_from_unit(np.array(ring), 100, 200).tolist() for ring in rings_of(said_)]
        assert [ring.tolist() for ring in instance.rings_px] == rings
        assert (instance.box_px is None) == ("bbox_2d" not in said_)
        assert instance.label == (said_["label"].encode("utf-8", "replace").decode() if "label" in said_ else None)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": ' + "[" * 16000,
        '[{"a": ' + '{"a":' * 3000,
        '[{"a": "' + "\\" * 16000,
        '[{"polygon_2d": [[' + "9" * 16000,
        '[{"polygon_2d": [[1.' + "0" * 8000 + "e" + "1" * 8000 + ".",
        "[]" * 8000,
        "```json" + "\n" * 16000,
        '"' * 16000,
        '[{"polygon_2d": ' + "[[0,0]," * 2300,
    ],
)
def test_no_text_within_the_limit_takes_long(text):
    begun = time.perf_counter()
    for reading in ("strict", "lenient"):
        assert not read(text[:16384], reading=reading).status.valid
    assert time.perf_counter() - begun < 1


def test_one_more_than_a_limit_is_out_of_range_and_not_written():
    two = Codec().encode([[square(0, 0, 10)], [square(20, 20, 10)]], 100, 200)
    assert read(two, max_rings=2, max_vertices=8, max_characters=len(two)).status is AnswerStatus.OK
    for limit in ({"max_rings": 1}, {"max_vertices": 7}, {"max_characters": len(two) - 1}):
        assert read(two, **limit).status is AnswerStatus.OUT_OF_RANGE
        with pytest.raises(ValueError, match=r"2 rings with 8 vertices in .* characters exceed .*simplify"):
            Codec(**limit).encode([[square(0, 0, 10)], [square(20, 20, 10)]], 100, 200)


@pytest.mark.parametrize("key", ["", 'a"b', "a\\b", "a\nb", "\ud800", "bbox_2d", "label"])
def test_a_key_that_cannot_name_the_rings_is_refused(key):
    with pytest.raises(ValueError, match=r"codec.outline_key is .*; give the rings a key without quotes"):
        Codec(outline_key=key)


def test_family_coordinates_are_those_of_the_policy():
    assert (
        Codec()
        .seen_by("thousandths", halved)
        .encode([[square(0, 0, 50)]], 100, 100)
        .startswith('[{"polygon_2d": [[0, 0], [500, 0]')
    )
    with pytest.raises(ValueError, match=r"coordinates is resized_px .* sampling.grammar to false"):
        Codec().seen_by("resized_px", halved).grammar()


WRITTEN = st.builds(
    lambda instances, kind, boxes: (
        bound(kind, boxes=boxes, max_rings=12, max_vertices=80),
        [[px_from_unit(grid / 1000, 100, 200) for grid in rings] for rings in instances],
    ),
    st.lists(GRID_RINGS, max_size=3),
    st.sampled_from(["unit", "thousandths"]),
    st.booleans(),
)


@given(written=WRITTEN)
@settings(max_examples=40, deadline=None)
def test_texts_are_made_of_the_signs_and_each_beginning_has_a_short_end_under_the_grammar(written):
    codec, instances = written
    text, grammar = codec.encode(instances, 100, 200), codec.grammar()
    pieces = "|".join(re.escape(sign) for sign in sorted(codec.signs, key=len, reverse=True))
    assert "".join(re.findall(pieces, text)) == text
    assert not set(text) - set(grammar.alphabet)
    state = grammar.start
    for k, character in enumerate(text):
        ended = text[:k] + "".join(grammar.completion(state))
        assert codec.read(ended, 100, 200).status.valid, ended
        state = grammar.advance(state, character)
        assert state is not None, text[: k + 1]
    assert grammar.accepts(state)


@pytest.mark.parametrize(
    "text",
    ['{"', '[{"label', '[{"polygon_2d": [[0.1, 0.1], [0.2, 0.1]]', f"[{{{OUTLINE}, ", "[[", "[{}", '[{"poly_', "[]]"],
)
def test_the_grammar_refuses_what_encode_does_not_write(text):
    assert Codec().grammar().advance(Codec().grammar().start, text) is None


@pytest.mark.parametrize("boxes", [False, True])
def test_all_of_60_answers_sampled_under_the_grammar_within_120_tokens_are_valid(boxes):
    codec, rng = Codec(decimals=2, boxes=boxes, max_rings=4, max_vertices=14), np.random.default_rng(0)
    text = codec.encode([[square(0, 0, 50), square(10, 10, 20)[::-1]], [square(60, 60, 30)]], 100, 100)
    cuts = [sorted(rng.integers(0, len(text), 2)) for _ in range(200)]
    texts = {*codec.grammar().alphabet, *(text[first : first + min(9, end - first)] for first, end in cuts)} - {""}
    pieces = Pieces(dict(enumerate(sorted(texts))), spaced=False)
    grammar, statuses = TokenGrammar(codec.grammar(), pieces, len(texts), len(texts) + 1), []
    for _ in range(60):
        progress, answer = grammar.start(120), ""
        while progress.state is not None:
            token = int(rng.choice(np.flatnonzero(grammar.allowed([grammar.mask(progress)])[0].numpy())))
            progress, answer = grammar.advance(progress, token), answer + pieces.texts.get(token, "")
        statuses.append(codec.read(answer, 100, 100).status)
    assert set(statuses) <= {AnswerStatus.OK, AnswerStatus.EMPTY} and statuses.count(AnswerStatus.OK) >= 10
