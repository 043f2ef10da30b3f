"""Settings that change over the steps of a run."""

import pytest

from envs.schedule import check_schedule, scheduled


def test_a_schedule_is_linear_between_its_points_and_constant_outside() -> None:
    schedule = [[10, 1.0], [20, 0.5], [40, 0.5]]
    assert [scheduled(schedule, step, 7.0) for step in (0, 10, 14, 20, 30, 99)] == [1.0, 1.0, 0.8, 0.5, 0.5, 0.5]
    assert scheduled([], 3, 7.0) == 7.0


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ([[0, 1.0], [0, 0.5]], r"a\[1\] is at step 0, after 0; let steps grow"),
        ([[0, 0.0]], r"a\[0\] is \[0, 0.0\]; give \[step, value\], the value finite and above 0"),
        ([[0, float("nan")]], "above 0"),
        ([[0]], r"give \[step, value\]"),
    ],
)
def test_what_is_no_schedule_is_refused_by_its_place(schedule: list[list[float]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_schedule("a", schedule, above_zero=True)
    if schedule == [[0, 0.0]]:
        check_schedule("a", schedule)  # where 0 is a value
