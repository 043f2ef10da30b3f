"""Both codecs' automata over characters: what they accept reads as valid, what encode writes is accepted."""

import string
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codecs import json_objects, path_tokens, point_text, svg_path
from envs.codecs._numerals import Bounds, UnitNumerals, WholeNumerals
from envs.codecs._open_ring import OpenRing
from envs.codecs.base import AnswerGrammar, State
from envs.polygons import signed_area_px

CODECS = {
    "path tokens": path_tokens.Codec(),
    "path tokens on one cell": path_tokens.Codec(box_bins=1, path_bins=1, max_rings=2, max_vertices=7),
    "path tokens, 3 vertices": path_tokens.Codec(box_bins=3, path_bins=2, max_vertices=3),
    "path tokens, wide boxes": path_tokens.Codec(box_bins=1000, path_bins=12, max_vertices=9),
    "svg path": svg_path.Codec(),
    "svg path on one cell": svg_path.Codec(box_bins=1, path_bins=1, max_rings=2, max_vertices=9),
    "svg path, 3 points": svg_path.Codec(box_bins=3, path_bins=2, max_vertices=3),
    "svg path, 4 points": svg_path.Codec(box_bins=3, path_bins=2, max_vertices=4),
    "svg path, 6 points": svg_path.Codec(box_bins=2, path_bins=3, max_vertices=6),
    "svg path by centre": svg_path.Codec(boxes="centre", box_bins=3, size_bins=12, path_bins=2, max_vertices=4),
    "point text": point_text.Codec(),
    "point text of tenths": point_text.Codec(decimals=1, max_rings=2, max_vertices=7),
    "point text, 4 vertices": point_text.Codec(decimals=1, max_vertices=4),
    "point text of thousandths": point_text.Codec(coordinates="thousandths", max_rings=3, max_vertices=9),
    "point text of 90 characters": point_text.Codec(decimals=2, max_characters=90),
    "json objects": json_objects.Codec(),
    "json objects of tenths with boxes": json_objects.Codec(decimals=1, max_rings=2, max_vertices=7, boxes=True),
    "json objects, 4 vertices": json_objects.Codec(decimals=1, max_vertices=4, outline_key="2.0"),
    "json objects of thousandths": json_objects.Codec(coordinates="thousandths", max_rings=3, max_vertices=9),
    "json objects of 120 characters": json_objects.Codec(decimals=2, max_characters=120, boxes=True),
}


def accepts(grammar: AnswerGrammar, text: str) -> bool:
    state = grammar.advance(grammar.start, text)
    return state is not None and grammar.accepts(state)


def rest(grammar: AnswerGrammar, state: State) -> str:
    return grammar.joint.join(grammar.completion(state))


def walk(grammar: AnswerGrammar, choices: list[int]) -> list[tuple[str, State]]:
    """Text and state after each character of a random walk that `choices` lead, until the answer must end."""
    text, state = "", grammar.start
    visited = [(text, state)]
    for choice in choices:
        following = [(c, after) for c in grammar.alphabet if (after := grammar.advance(state, c)) is not None]
        if len(text) < 2 and choice % 20:  # else most walks would end as an empty answer at once
            following = [(c, after) for c, after in following if c not in "n]Z"] or following
        if not following:
            assert grammar.accepts(state)
            break
        character, state = following[choice % len(following)]
        text += character
        visited.append((text, state))
    return visited


def choices_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 10**6, length).tolist()


CHOICES = st.builds(choices_of, st.integers(0, 150), st.integers(0, 10**6))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@given(choices=CHOICES)
@settings(max_examples=100)
def test_a_random_walk_reads_as_valid_wherever_it_may_end_and_after_its_completion_everywhere(codec, choices):
    grammar = codec.grammar()
    for text, state in walk(grammar, choices):
        if grammar.accepts(state):
            assert codec.read(text, 100, 200).status.valid, text
        whole = text + rest(grammar, state)
        assert accepts(grammar, whole), whole
        assert codec.read(whole, 100, 200).status.valid, whole


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@given(choices=CHOICES)
@settings(max_examples=40)
def test_a_completion_begun_goes_on_as_its_own_rest_and_is_never_longer_than_the_longest(codec, choices):
    grammar = codec.grammar()
    longest = len(grammar.joint.join(grammar.longest))
    for _, state in walk(grammar, choices)[::5]:
        words = grammar.completion(state)
        text = grammar.joint.join(words)
        assert len(text) <= longest and len(words) <= len(grammar.longest)
        for k in range(len(text) + 1):
            assert rest(grammar, grammar.advance(state, text[:k])) == text[k:]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@given(choices=CHOICES, num_characters=st.integers(1, 6))
@settings(max_examples=40)
def test_a_condensed_state_allows_what_the_whole_one_does_or_says_that_it_is_not_sure(codec, choices, num_characters):
    grammar = codec.grammar()
    for _, state in walk(grammar, choices)[::4]:
        condensed = grammar.condensed(state, num_characters)
        if condensed is None:
            continue
        for text in walk_texts(grammar, condensed, num_characters):
            whole, less = grammar.advance(state, text), grammar.advance(condensed, text)
            if less is None or less.sure:
                assert (whole is None) == (less is None), (state, text)


def walk_texts(grammar: AnswerGrammar, state: State, num: int) -> list[str]:
    """Every third text of up to two characters, and longer ones along the completion of a few."""
    short = ["".join(pair) for pair in product(grammar.alphabet, repeat=2)][::3] + list(grammar.alphabet)
    long = [" 0 0 M", " 1 0 ;", "0 0 0 ", "]]", "], [0", "0.0]]", "]; [[[", "1.0, 0"]
    return [text for text in short + long if len(text) <= num]


def rings(bins: int, num: int, seed: int) -> list[np.ndarray]:
    """Clockwise rings [N, 2] in pixels of an image of 100 x 200, none of them without area."""
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, bins + 1, (rng.integers(3, 9), 2)) * [200, 100] / bins for _ in range(num)]
    return [ring if signed_area_px(ring) > 0 else ring[::-1] for ring in made if signed_area_px(ring)]


@given(num=st.integers(0, 4), seed=st.integers(0, 10**6), split=st.booleans())
@settings(max_examples=100)
def test_every_text_that_encode_writes_is_accepted(num, seed, split):
    for codec, bins in ((path_tokens.Codec(), 64), (point_text.Codec(), 1000), (point_text.Codec(decimals=1), 10)):
        written = rings(bins, num, seed)
        instances = [[ring] for ring in written] if split else [written]
        assert accepts(codec.grammar(), codec.encode(instances, 100, 200))
    text = point_text.Codec().encode([rings(1000, num, seed)], 100, 200)
    exact = point_text.Codec(max_characters=len(text))
    assert accepts(exact.grammar(), text)
    assert len(text) == 2 or not accepts(point_text.Codec(max_characters=len(text) - 1).grammar(), text)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("none", True),
        ("0 0 64 64 0 0 32 0 32 32", True),
        ("0 0 64 64 0 0 32 0 32 32 ; 1 1 2 2 0 0 32 0 32 32 M 0 0 1 0 1 1", True),
        ("0 0 64 64 0 0 32 0", False),
        ("0 0 64 64 0 0 16 16 32 32", False),
        ("0 0 64 64 0 0 32 0 32 33", False),
        ("007 0 64 64 0 0 32 0 32 32", False),
        ("0 0 64 64 0 0 32 0 32 32 ; none", False),
    ],
)
def test_path_tokens_accepts_triangles_with_an_area_and_whole_numbers_without_leading_zeros(text, accepted):
    assert accepts(path_tokens.Codec().grammar(), text) == accepted


@pytest.mark.parametrize("text", ["64", "8 0 8", "8 0 9 0", "00", "none ;", "²", "0 0 1 1 33", "0 0 1 1 M", " "])
def test_path_tokens_refuses_at_the_first_character_after_which_nothing_valid_can_come(text):
    grammar = path_tokens.Codec().grammar()
    assert grammar.advance(grammar.start, text) is None
    assert grammar.advance(grammar.start, text[:-1]) is not None


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("[]", True),
        ("[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]", True),
        (
            "[[[0.10,0.1],[0.5,0.100],[1.0,0.4]]];[[[0.1,0.1],[0.5,0.1],[0.5,0.4]],[[0.0,0.1],[0.5,0.1],[0.5,0.4]]]",
            True,
        ),
        ("[[[0.1, 0.1], [0.5, 0.1]]]", False),
        ("[[[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]]", False),
        ("[[[1.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]", False),
        ("[[[1.001, 0.1], [0.5, 0.1], [0.5, 0.4]]]", False),
        ("[[[5e-1, 0.1], [0.5, 0.1], [0.5, 0.4]]]", False),
        ("[[[0.1,  0.1], [0.5, 0.1], [0.5, 0.4]]]", False),
        ("[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]];[]", False),
    ],
)
def test_point_text_accepts_one_space_and_the_digits_of_its_grid(text, accepted):
    assert accepts(point_text.Codec().grammar(), text) == accepted


def test_the_last_vertex_of_a_full_answer_cannot_take_the_area_away():
    grammar = path_tokens.Codec(max_vertices=4).grammar()
    begun = "0 0 64 64 0 0 10 0 10 10 "
    allowed = {
        (x, y): grammar.advance(grammar.start, f"{begun}{x} {y} ") is not None for x in range(33) for y in range(33)
    }
    for (x, y), may in allowed.items():
        area = signed_area_px(np.array([(0, 0), (10, 0), (10, 10), (x, y)]))
        assert may == (area != 0)
    assert 0 < sum(not may for may in allowed.values()) < 40


RING_POINTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=6)


@given(points=RING_POINTS, after=st.integers(0, 3))
@settings(max_examples=300)
def test_bounds_of_the_next_vertex_are_those_found_by_trying_all(points, after):
    ring = OpenRing()
    for point in points:
        ring = ring.add(*point)
    good = {(x, y) for x in range(3) for y in range(3) if ring.add(x, y).needed <= after}
    for x in range(3):
        assert (ring.x_bounds(after, 2).least(x, x) is not None) == any((x, y) in good for y in range(3))
        for y in range(3) if any((x, y) in good for y in range(3)) else []:
            assert (ring.y_bounds(x, after, 2).least(y, y) is not None) == ((x, y) in good)
    area = signed_area_px(np.array(points)) if len(points) >= 3 else 0.0
    assert (ring.needed == 0) == (area != 0)


@pytest.mark.parametrize("numerals", [WholeNumerals(123), UnitNumerals(2)], ids=["whole", "unit"])
@given(low=st.integers(0, 100), high=st.integers(0, 123), without=st.one_of(st.none(), st.integers(0, 100)))
@settings(max_examples=100)
def test_a_word_fits_where_some_number_within_the_bounds_begins_with_it_and_its_rest_is_the_shortest(
    numerals, low, high, without
):
    bounds = Bounds(low, min(high, numerals.bins), without)
    if isinstance(numerals, WholeNumerals):
        texts = [str(value) for value in range(124)]
    else:
        low, bounds = 0, Bounds(0, 100, without)
        texts = [f"0.{d}" for d in string.digits] + [f"0.{d:02d}" for d in range(100)] + ["1.0", "1.00"]
    good = [text for text in texts if bounds.least(numerals.value(text), numerals.value(text)) is not None]
    words = {text[:k] for text in texts for k in range(len(text) + 1)} | {"00", "1.1", ".", "0..", "2", "0.123", "999"}
    for word in sorted(word for word in words if set(word) <= set(numerals.characters)):
        matching = [text for text in good if text.startswith(word)]
        assert numerals.fits(word, bounds) == bool(matching), word
        if matching:
            assert numerals.complete(word, bounds) == (word in good), word
            shortest = min(matching, key=lambda text: (len(text), text))
            assert word + numerals.rest(word, bounds) == shortest
