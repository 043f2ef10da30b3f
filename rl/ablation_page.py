"""ablation.html: the tables of an ablation with their intervals drawn, and curves by config."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.ablation import Ablation, PlannedRun
from rl.ablation_scores import (
    METRICS,
    RunScores,
    ablation_dict,
    cell,
    mean_curve,
    means,
    paired_differences,
    starting_point,
)
from rl.json_text import json_text
from rl.page import render_page, write_page
from rl.report import Chart
from rl.scores import Interval
from rl.settings import find_config

_CURVES = {
    "sampled/giou": ("gIoU of sampled answers", "gIoU"),
    "sampled/best_giou": ("gIoU of the best of each group", "gIoU"),
    "reward/group_std": ("Spread of the totals in a group", "standard deviation"),
    "answer/vertices": ("Vertices an answer", "vertices"),
    "answer/valid": ("Valid answers", "share"),
    "learner/clip_fraction": ("Clipped sequences", "share"),
}
"""Title and unit of the numbers of metrics.jsonl that are drawn."""


@dataclass(frozen=True)
class _Cell:
    """A number with its interval, as text and on an axis that goes from 0 (left) to 1 (right)."""

    text: str
    at: float
    low: float
    high: float
    """Ends of the interval; both `at` where a single seed gives none."""
    clear: bool
    """Whether the interval lies on one side of 0."""


@dataclass(frozen=True)
class _Row:
    """One reward config in a table."""

    name: str
    num_seeds: int
    cells: Sequence[_Cell]
    """By METRICS; none where no run is finished."""


def write_ablation(ablation: Ablation, scores: Sequence[RunScores], failed: Sequence[PlannedRun]) -> list[Path]:
    """Write ablation.json and ablation.html into the ablation's folder; the paths of both."""
    numbers, page = ablation.out / "ablation.json", ablation.out / "ablation.html"
    numbers.write_text(json_text(ablation_dict(ablation, scores, failed), indent=2) + "\n", encoding="utf-8")
    write_page(page, render(ablation, scores, failed))
    return [numbers, page]


def render(ablation: Ablation, scores: Sequence[RunScores], failed: Sequence[PlannedRun]) -> str:
    """The page as HTML text."""
    names = [path.stem for path in ablation.rewards]
    seeds = {name: {run.seed for run in scores if run.name == name} for name in names}
    charts = [
        Chart(title, unit, {name: mean_curve(scores, name, number) for name in names})
        for number, (title, unit) in _CURVES.items()
    ]
    facts = [(str(path), find_config(path).read_text(encoding="utf-8")) for path in ablation.rewards]
    schedule = "\n".join(f"{key}={value}" for key, value in ablation.schedule().items())
    return render_page(
        "ablation.html.j2",
        ablation=ablation,
        titles=METRICS,
        start={metric: cell(metric, _exact(value)) for metric, value in starting_point(scores).items()},
        means=_rows({name: means(scores, name) for name in names}, {name: len(seeds[name]) for name in names}, False),
        paired=_rows(
            {name: paired_differences(scores, name, names[0]) for name in names[1:]},
            {name: len(seeds[name] & seeds[names[0]]) for name in names},
            True,
        ),
        charts=[chart for chart in charts if chart.placed.curves],
        failed=[str(run.folder) for run in failed],
        facts=[*facts, ("set for the short run", schedule), ("overrides", " ".join(ablation.overrides) or "none")],
    )


def _exact(value: float) -> Interval:
    return Interval(value, math.nan, math.nan)


def _rows(intervals: dict[str, dict[str, Interval]], num_seeds: dict[str, int], signed: bool) -> list[_Row]:
    """Rows of a table; each column has an axis of its own, symmetric about 0 for differences (`signed`)."""
    return [
        _Row(
            name,
            num_seeds[name],
            [_cell(metric, mine[metric], _axis(metric, intervals, signed), signed) for metric in mine],
        )
        for name, mine in intervals.items()
    ]


def _axis(metric: str, intervals: dict[str, dict[str, Interval]], signed: bool) -> tuple[float, float]:
    """Ends of the axis that holds every value and interval of a metric."""
    values = [x for mine in intervals.values() if mine for x in vars(mine[metric]).values() if not math.isnan(x)]
    low, high = min(values), max(values)
    if signed:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    return (low, high) if high > low else (low - 1, high + 1)


def _cell(metric: str, interval: Interval, axis: tuple[float, float], signed: bool) -> _Cell:
    start, length = axis[0], axis[1] - axis[0]
    at = (interval.value - start) / length
    low, high = (at if math.isnan(x) else (x - start) / length for x in (interval.low, interval.high))
    clear = signed and (interval.low > 0 or interval.high < 0)
    return _Cell(cell(metric, interval, signed), at, low, high, clear)
