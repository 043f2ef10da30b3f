"""Settings that change over the steps of a run: [[step, value], ...], linear between these steps, constant outside."""

from collections.abc import Sequence
from math import isfinite, nextafter

import numpy as np


def scheduled(schedule: Sequence[Sequence[float]], step: float, otherwise: float) -> float:
    """Value of a schedule at `step`; `otherwise` of one without points."""
    points = np.array(schedule, np.float64).reshape(-1, 2)
    return float(np.interp(step, points[:, 0], points[:, 1])) if schedule else otherwise


def check_schedule(
    where: str, schedule: Sequence[Sequence[float]], highest: float = float("inf"), above_zero: bool = False
) -> None:
    """Raise ValueError, naming the setting, for what is no schedule of values from 0 to `highest` at growing steps.

    above_zero: 0 is no value either.
    """
    lowest = nextafter(0.0, 1.0) if above_zero else 0.0
    allowed = "finite and above 0" if above_zero else f"from 0 to {highest:g}"
    for i, point in enumerate(schedule):
        if len(point) != 2 or not all(isfinite(number) for number in point) or not lowest <= point[1] <= highest:
            raise ValueError(f"{where}[{i}] is {point}; give [step, value], the value {allowed}.")
        if i and point[0] <= schedule[i - 1][0]:
            raise ValueError(f"{where}[{i}] is at step {point[0]:g}, after {schedule[i - 1][0]:g}; let steps grow.")
