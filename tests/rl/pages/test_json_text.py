"""JSON by the letter: whatever is handed out, a strict reader takes it."""

import json
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.lab.score import Rescored, Sums, as_dict
from rl.pages.json_text import json_text


def strict(text: str) -> object:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


NUMBERS = st.floats() | st.decimals(-(10**38), 10**38) | st.integers(-(2**200), 2**200)
PLAIN = NUMBERS | st.none() | st.booleans() | st.text() | st.binary() | st.dates() | st.times() | st.timedeltas()
KEYS = st.text() | NUMBERS | st.dates() | st.binary() | st.booleans() | st.none() | st.tuples(st.integers())
NESTED = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner))


@settings(max_examples=60, deadline=None)
@given(NESTED)
def test_every_value_comes_out_as_json_that_a_strict_reader_takes(value: object) -> None:
    strict(json_text(value))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_json_can_hold_is_held_as_it_is(value: object) -> None:
    assert json_text(value, indent=2) == json.dumps(value, indent=2) and strict(json_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            [math.nan, math.inf, -math.inf, np.float64("nan"), Decimal("sNaN"), Decimal("-Infinity")],
            "[" + "null, " * 5 + "null]",
        ),
        ({"a": {"b": [{"c": (math.nan, 0.5)}]}}, '{"a": {"b": [{"c": [null, 0.5]}]}}'),
        ({1: 2, None: 3, date(2026, 1, 2): 4, b"ab": 5}, '{"1": 2, "None": 3, "2026-01-02": 4, "6162": 5}'),
        ([Decimal("3.00"), Decimal("1.5"), 2**127], f"[3, 1.5, {2**127}]"),
        ([b"ab", UUID(int=1)], '["6162", "00000000-0000-0000-0000-000000000001"]'),
        (
            [datetime(2026, 1, 2, 3), time(4, 5), timedelta(days=3)],
            '["2026-01-02 03:00:00", "04:05:00", "3 days, 0:00:00"]',
        ),
    ],
)
def test_what_json_has_no_word_for_is_null_a_number_or_text(value: object, text: str) -> None:
    assert json_text(value) == text


def test_an_object_that_is_not_known_is_an_error_and_not_some_text() -> None:
    with pytest.raises(TypeError, match="int64 is not JSON serializable"):
        json_text({"a": np.int64(1)})


def test_a_term_that_never_applies_has_no_mean_in_the_numbers_of_a_rescoring() -> None:
    never = Sums()
    never.add(np.array([np.nan, np.nan]), None)
    said = strict(json_text(as_dict(Rescored({"box_iou": never, "total": Sums()}, answers=2))))
    assert said["terms"]["box_iou"] == {
        "mean": None, "std": None, "does_not_apply": 2, "archived_mean": None, "differing": 0
    }  # fmt: skip
