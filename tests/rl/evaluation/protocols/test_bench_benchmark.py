"""The bench of scoring measures what it says: both give the same scores where they fill the same pixels."""

import json

import pytest

from rl.bench.scoring.benchmark import OUTLINES, SENTENCES, Case, as_json, cases, measure, table


def test_scores_are_equal_on_pixel_edges_and_near_on_other_outlines() -> None:
    near, equal = (measure(Case(outline, 3, 12)) for outline in OUTLINES)
    assert equal.difference == 0.0 and 0.0 <= near.difference < 0.1
    found = json.loads(json.dumps(as_json([near, equal])))
    assert found["ratio"]["script"] == pytest.approx(near.ratio) and len(found["cases"]) == 2
    assert found["ratio"]["script_processor_time"] == near.processor_ratio > 0
    assert table([near, equal]).row_count == 2


def test_every_outline_is_measured_with_and_without_sentences_about_one_object() -> None:
    assert {(case.outline, case.sentences, case.boundary) for case in cases(quick=True)} == {
        (outline, sentences, boundary) for outline in OUTLINES for sentences in SENTENCES for boundary in (False, True)
    }
