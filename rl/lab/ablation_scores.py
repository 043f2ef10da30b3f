"""What came out of an ablation: scores of each run, means over seeds with t-intervals, differences paired by seed.

The intervals are Student's 95 % t-intervals over seeds: they say how far another set of seeds may lead, and nothing
about other scenes. A difference is taken between runs of equal seed, which ask for the same scenes in the same order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import t as student_t

from rl.evaluation.scores import CONFIDENCE, Interval
from rl.lab.ablation import Ablation, PlannedRun
from rl.run.metrics import Curve, read_curves

METRICS = {"giou": "gIoU", "boundary_iou": "boundary IoU", "valid": "valid", "vertices": "vertices"}
"""Titles of the scores by their keys in ablation.json; the first three of greedy answers, the last of sampled ones."""
_LAST_SHARE = 6
"""Vertices are averaged over the last sixth of the steps."""


@dataclass(frozen=True)
class RunScores:
    """One finished run."""

    name: str
    """Name of the reward config."""
    seed: int
    before: Mapping[str, float]
    """By a key of METRICS: the checkpoint that the run began with (greedy), and the answers of its first step."""
    after: Mapping[str, float]
    """Greedy scores at the end of the run; vertices over its last steps."""
    curves: Mapping[str, Curve]
    """Everything in metrics.jsonl."""


def read_scores(run: PlannedRun) -> RunScores:
    """Read a finished run's metrics.jsonl."""
    curves = read_curves(run.folder)
    vertices = curves["answer/vertices"][1]
    last = vertices[-max(1, len(vertices) // _LAST_SHARE) :]
    greedy = {metric: curves[f"greedy/{metric}"][1] for metric in METRICS if metric != "vertices"}
    before = {metric: values[0] for metric, values in greedy.items()} | {"vertices": vertices[0]}
    after = {metric: values[-1] for metric, values in greedy.items()} | {"vertices": float(np.mean(last))}
    return RunScores(run.name, run.config.seed, before, after, curves)


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of n values and its 95 % t-interval, mean +- t(n - 1) * s / sqrt(n); NaN bounds for a single value."""
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, num - 1) * np.std(values, ddof=1) / math.sqrt(num))
    return Interval(mean, mean - half, mean + half)


def means(scores: Sequence[RunScores], name: str) -> dict[str, Interval]:
    """Mean over seeds of each score at the end of the runs of one config; empty where none is finished."""
    mine = [run.after for run in scores if run.name == name]
    return {metric: t_interval([after[metric] for after in mine]) for metric in METRICS} if mine else {}


def paired_differences(scores: Sequence[RunScores], name: str, first: str) -> dict[str, Interval]:
    """Mean over seeds of the score of `name` less that of `first` at the same seed; empty without a common seed."""
    mine = {run.seed: run.after for run in scores if run.name == name}
    other = {run.seed: run.after for run in scores if run.name == first}
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        return {}
    return {metric: t_interval([mine[seed][metric] - other[seed][metric] for seed in seeds]) for metric in METRICS}


def mean_curve(scores: Sequence[RunScores], name: str, number: str) -> Curve:
    """Mean over the seeds of one config of a number in metrics.jsonl, at the steps that all of them recorded."""
    mine = [dict(zip(*run.curves[number], strict=True)) for run in scores if run.name == name and number in run.curves]
    steps = sorted(set.intersection(*(set(values) for values in mine))) if mine else []
    return steps, [float(np.mean([values[step] for values in mine])) for step in steps]


def starting_point(scores: Sequence[RunScores]) -> dict[str, float]:
    """Scores of the checkpoint that every run began with; the mean over all runs, whose first samples differ."""
    return {metric: float(np.mean([run.before[metric] for run in scores])) for metric in METRICS} if scores else {}


def cell(metric: str, interval: Interval, signed: bool = False) -> str:
    """An interval as "0.702 ± 0.012", one decimal for vertices; without the part after the mean for a single seed."""
    digits, sign = 1 if metric == "vertices" else 3, "+" if signed else ""
    half = interval.high - interval.value
    mean = f"{interval.value:{sign}.{digits}f}"
    return mean if math.isnan(half) else f"{mean} ± {half:.{digits}f}"


def ablation_tables(names: Sequence[str], scores: Sequence[RunScores]) -> list[Table]:
    """Two tables: means by config, then paired differences from the first of `names` where there are several."""
    if not scores:
        return []
    table = _table("At the end of the runs: mean over seeds ± half of the 95 % t-interval")
    start = {metric: Interval(value, math.nan, math.nan) for metric, value in starting_point(scores).items()}
    table.add_row("before RL", "", *(cell(metric, value) for metric, value in start.items()))
    for name in names:
        num = sum(run.name == name for run in scores)
        table.add_row(name, str(num), *(cell(metric, value) for metric, value in means(scores, name).items()))
    paired = _table(f"Less {names[0]}, paired by seed")
    for name in names[1:]:
        common = {run.seed for run in scores if run.name == name} & {r.seed for r in scores if r.name == names[0]}
        differences = paired_differences(scores, name, names[0])
        paired.add_row(name, str(len(common)), *(cell(metric, value, True) for metric, value in differences.items()))
    return [table, paired] if len(names) > 1 else [table]


def _table(title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("rewards")
    for heading in ("seeds", *METRICS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _interval_dict(interval: Interval) -> dict[str, float | None]:
    bounds = {"low": interval.low, "high": interval.high}
    return {"value": interval.value} | {key: None if math.isnan(x) else x for key, x in bounds.items()}


def ablation_dict(ablation: Ablation, scores: Sequence[RunScores], failed: Sequence[PlannedRun]) -> dict[str, object]:
    """What ablation.json holds; `low` and `high` are null where one seed gives no interval."""
    first = ablation.rewards[0].stem
    configs: dict[str, object] = {}
    for path in ablation.rewards:
        name = path.stem
        paired = paired_differences(scores, name, first) if name != first else {}
        configs[name] = {
            "path": str(path),
            "runs": {str(run.seed): dict(run.after) for run in scores if run.name == name},
            "means": {metric: _interval_dict(value) for metric, value in means(scores, name).items()},
            f"minus_{first}": {metric: _interval_dict(value) for metric, value in paired.items()},
        }
    return {
        "base": str(ablation.base),
        "steps": ablation.steps,
        "seeds": ablation.seeds,
        "overrides": list(ablation.overrides),
        "schedule": ablation.schedule(),
        "before": starting_point(scores),
        "configs": configs,
        "failed": [str(run.folder) for run in failed],
        "version": version("polytrace"),
    }
