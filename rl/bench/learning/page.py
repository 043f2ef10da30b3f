"""learning.html and learning.json: what the same seconds came to, as tables and curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from rl.bench.learning.arms import RL, Training, Wanted, step_seconds
from rl.bench.learning.scores import Scored, arms_of, as_json, difference, numbers
from rl.bench.learning.trainings import Trained
from rl.evaluation.scores import Interval
from rl.pages.charts import Chart
from rl.pages.json_text import json_text
from rl.pages.page import render_page, write_page
from rl.run.metrics import read_curves

_GIOU = ("greedy/giou", "sft/validation_greedy_giou")
"""Greedy gIoU on validation, as `train` and as `sft` call it."""


@dataclass(frozen=True)
class _Pair:
    title: str
    interval: Interval
    seeds: Sequence[float]


def write(wanted: Wanted, trained: Sequence[Trained], scored: Sequence[Scored], left_out: Sequence[str]) -> list[Path]:
    """Write both files into the folder of the bench; their paths."""
    report, page = wanted.out / "learning.json", wanted.out / "learning.html"
    report.write_text(json_text(as_json(scored, left_out), indent=2) + "\n", encoding="utf-8")
    write_page(page, render(wanted, trained, scored, left_out))
    return [report, page]


def render(wanted: Wanted, trained: Sequence[Trained], scored: Sequence[Scored], left_out: Sequence[str]) -> str:
    """The page as HTML text."""
    config, arms = wanted.base(0), arms_of(scored)
    curves = {one.arm.title: curve_of(one.training) for one in trained if one.seed == 0}
    others = [arm for arm in arms if arm.name != RL.name]
    return render_page(
        "learning.html.j2",
        config=str(wanted.config),
        seeds=wanted.seeds,
        split=config.evaluation.final_split,
        num_scenes=len(scored[0].greedy),
        left_out=left_out,
        rows={arm.title: numbers(scored, arm) for arm in arms},
        pairs=[_Pair(arm.title, *difference(scored, RL.name, arm.name)) for arm in others],
        charts=[Chart("gIoU", "gIoU", curves, x_label="seconds")],
        facts=[("overrides", " ".join(wanted.overrides) or "none")]
        + [(str(one.training.folder), (one.training.folder / "asked.yaml").read_text()) for one in trained],
    )


def curve_of(training: Training) -> tuple[list[int], list[float]]:
    """(seconds of steps, greedy gIoU on validation) of its evaluations."""
    passed = [0.0, *accumulate(step_seconds(training.folder))]
    found = read_curves(training.folder)
    steps, values = next((found[name] for name in _GIOU if name in found), ([], []))
    return [round(passed[min(step, len(passed) - 1)]) for step in steps], list(values)
