"""Names in Grounding DINO's text, against numbers by hand."""

import numpy as np
import pytest

from policies.labellers.phrases import asked_text, named, plain_text, texts_that_fit

# [start] car . red car . carpet . [end]
SPANS = [slice(1, 2), slice(3, 5), slice(6, 7)]


def sureness(*rows: list[float]) -> np.ndarray:
    return np.array([[0, car, 0, red, of_red, 0, carpet, 0, 0] for car, red, of_red, carpet in rows])


def test_a_name_is_lower_case_without_what_would_divide_the_text() -> None:
    assert plain_text(" St. Bernard?\n dog ") == "st bernard dog"
    assert plain_text("...") == ""


def test_each_name_ends_with_a_separator_and_knows_its_tokens() -> None:
    tokens, spans = asked_text([[7], [8, 7], [9]], start=1, separator=2, end=3)
    assert tokens == [1, 7, 2, 8, 7, 2, 9, 2, 3] and spans == SPANS
    assert asked_text([], 1, 2, 3) == ([1, 3], [])


def test_names_are_spread_over_texts_that_the_model_reads_whole() -> None:
    assert texts_that_fit([1, 2, 1], most=9) == [slice(0, 3)]
    assert texts_that_fit([1, 2, 1], most=8) == [slice(0, 2), slice(2, 3)]
    assert texts_that_fit([5, 1, 1], most=8) == [slice(0, 1), slice(1, 3)]
    assert texts_that_fit([], most=8) == []


def test_names_that_share_words_are_told_apart_by_where_their_tokens_stand() -> None:
    seen = sureness([0.6, 0.1, 0.5, 0], [0.6, 0.5, 0.8, 0], [0.3, 0.2, 0.1, 0.7], [0.4, 0.3, 0.5, 0])
    places, scores = named(seen, SPANS, threshold=0.25, text_threshold=0.25)
    # Covered, car and red car: 0.6 and (0 + 0.5) / 2; 0.6 and (0.5 + 0.8) / 2; carpet 0.7; 0.4 and (0.3 + 0.5) / 2.
    assert places.tolist() == [0, 1, 2, 0] and scores == pytest.approx([0.6, 0.8, 0.7, 0.4])


def test_a_phrase_across_two_names_goes_to_the_one_it_covers_best_and_one_of_none_is_dropped() -> None:
    seen = sureness([0.5, 0.9, 0.2, 0], [0.2, 0.2, 0.2, 0.2])
    assert named(seen, SPANS, 0.3, 0.25)[0].tolist() == [0, -1]  # car covers 0.5, red car (0.9 + 0) / 2
    seen[1, 2] = 0.99  # sure of a separator alone
    places, scores = named(seen, SPANS, 0.3, 0.25)
    assert places.tolist() == [0, -1] and scores.tolist() == [0.5, 0]
    assert named(seen, SPANS, 0.3, 0.95)[0].tolist() == [-1, -1]  # no token reaches the phrase
    assert named(seen, SPANS, 0.6, 0.25)[0].tolist() == [1, -1]  # car alone is not sure enough
    assert named(seen[:0], SPANS, 0.3, 0.25)[0].shape == (0,)
