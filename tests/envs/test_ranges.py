"""Ranges of settings: bounds, names, and the path under which a mistake is told."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from envs.ranges import Limit, above, at_least, between, check_ranges, limit_of, one_of


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        (at_least(1), [1, 2, 10**9, None], [0, -3, math.inf, math.nan]),
        (above(0), [1e-9, 3.0], [0, 0.0, -1.0, math.inf, math.nan]),
        (above(0, infinite=True), [1e-9, math.inf], [0.0, -math.inf, math.nan]),
        (between(0, 1), [0, 1, 0.5], [-0.01, 1.01, math.nan]),
        (between(0, 1, open=True), [1, 0.01], [0]),
        (between(0, 1, open_high=True), [0, 0.99], [1]),
        (one_of("bce", "focal"), ["bce", None], ["BCE", ""]),
        (one_of(0, 1, 2, 3), [0, 3], [4, -1]),
    ],
)
def test_a_limit_holds_what_is_inside_it(limit: Limit, inside: list[float], outside: list[float]) -> None:
    assert [limit.holds(value) for value in inside] == [True] * len(inside)
    assert [limit.holds(value) for value in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        (at_least(1), 0, "a.b is 0; set it to 1 or more."),
        (above(0), 0.0, "a.b is 0.0; set it to more than 0."),
        (at_least(1, ", or to null for no limit."), 0, "a.b is 0; set it to 1 or more, or to null for no limit."),
        (between(0, 1), 2, "a.b is 2; set it to 0..1."),
        (between(0, 0.5, open_high=True), 0.5, "a.b is 0.5; set it to 0..0.5, 0.5 not included."),
        (between(0, 1, open=True, open_high=True), 1, "a.b is 1; set it to 0..1, 0 and 1 not included."),
        (one_of("bce", "focal"), "focl", "a.b is 'focl'; did you mean 'focal'? Set it to bce or focal."),
    ],
)
def test_a_mistake_says_path_value_and_what_to_do(limit: Limit, value: float, told: str) -> None:
    assert limit.told(value, "a.b") == told


@dataclass
class Inner:
    rank: Annotated[int, at_least(1)] = 1


@dataclass
class Outer:
    share: Annotated[float | None, between(0, 1)] = None
    inner: Inner = field(default_factory=Inner)
    stages: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (Outer(share=1.5), "share"),
        (Outer(inner=Inner(0)), "inner.rank"),
        (Outer(stages=[Inner(), Inner(0)]), r"stages\[1\].rank"),
        (Outer(by_name={"a": Inner(-2)}), "by_name.a.rank"),
    ],
)
def test_a_field_out_of_range_is_told_by_its_dotted_path(settings: Outer, path: str) -> None:
    with pytest.raises(ValueError, match=f"^{path} is "):
        check_ranges(settings)
    with pytest.raises(ValueError, match=f"^learner.{path} is "):
        check_ranges(settings, "learner")


@dataclass
class Later(Inner):
    rank: int = 4


def test_a_field_with_another_default_keeps_the_limit_that_it_inherits() -> None:
    check_ranges(Later())
    with pytest.raises(ValueError, match=r"^rank is 0; set it to 1 or more"):
        check_ranges(Later(0))


def test_what_is_in_range_or_has_no_limit_passes() -> None:
    check_ranges(Outer(share=0.5, stages=[Inner(3)]))
    check_ranges({"a": Inner()})
    assert limit_of(int) is None and limit_of(Annotated[int, "a note"]) is None
