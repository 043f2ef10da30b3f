"""compare.html, reward configs over the same answers in numbers and pictures; and ablation.html, runs under several."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from envs.geometry.contours import rings_from_mask
from envs.polygons import Answer
from rl.browse.examples import Asked, asked_examples
from rl.config.load import find_config
from rl.evaluation.scores import Interval
from rl.lab.ablation import Ablation, PlannedRun
from rl.lab.ablation_scores import (
    METRICS,
    RunScores,
    ablation_dict,
    cell,
    mean_curve,
    means,
    paired_differences,
    starting_point,
)
from rl.lab.compare import FEATURES, ComparedRewards, DirectionSums, Disagreement
from rl.pages.charts import Chart
from rl.pages.json_text import json_text
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import ANSWER_COLUMNS, answer_from_row


@dataclass(frozen=True)
class _Picture:
    """An answer that two configs disagree on."""

    svg: Markup
    phrase: str
    note: str
    sides: tuple[tuple[str, float, float], ...]
    """(config, total, advantage), the one that reinforces first."""


@dataclass(frozen=True)
class _Direction:
    """What a first config reinforces and a second one punishes."""

    first: str
    second: str
    sums: DirectionSums
    pictures: list[_Picture]


@dataclass(frozen=True)
class _Pair:
    """Both directions of two configs."""

    title: str
    agreement: float
    same_best: float
    directions: list[_Direction]


def write_comparison(path: Path, found: ComparedRewards) -> None:
    """Write the page to `path`; reads the answers that it shows from the archive, and their images by the run's Env."""
    write_page(path, render_comparison(found))


def render_comparison(found: ComparedRewards) -> str:
    """The page as HTML text."""
    shown = [
        answer
        for pair in found.pairs.values()
        for sums in (pair.first_only, pair.second_only)
        for answer in sums.largest
    ]
    answers = _answers(RolloutArchive(found.run / "archive"), shown)
    asked = asked_examples(found.run, {answer.example_id for answer in shown})
    pairs = []
    for (i, k), pair in found.pairs.items():
        directions = []
        for first, second, sums in ((i, k, pair.first_only), (k, i, pair.second_only)):
            names = (found.names[first], found.names[second])
            pictures = [_picture(answer, names, answers, asked[answer.example_id]) for answer in sums.largest]
            directions.append(_Direction(*names, sums, pictures))
        title = f"{found.names[i]} and {found.names[k]}"
        pairs.append(_Pair(title, pair.agreement.mean, pair.same_best.mean, directions))
    configs = dict(zip(found.names, found.configs, strict=True))
    return render_page("compare.html.j2", found=found, configs=configs, features=FEATURES, pairs=pairs)


def _picture(
    shown: Disagreement, names: tuple[str, str], answers: Mapping[tuple[int, int, int], Answer], asked: Asked
) -> _Picture:
    answer = answers[shown.step, shown.position, shown.index]
    outline = [ring for mask in asked.truth.masks for ring in rings_from_mask(mask)]
    title = f"Step {shown.step}, group {shown.position}, answer {shown.index}: “{asked.phrase}”"
    svg = svg_overlay(asked.image, answer.rings_px, COLOURS["rl"], title, outline=outline)
    note = f"{answer.num_vertices} vertices" if answer.rings_px else answer.status.replace("_", " ")
    note += ", image not found" if asked.problem else ""
    sides = tuple(zip(names, shown.totals, shown.advantages, strict=True))
    return _Picture(Markup(svg), asked.phrase, note, sides)


def _answers(archive: RolloutArchive, shown: Iterable[Disagreement]) -> dict[tuple[int, int, int], Answer]:
    """The answers to show, by step, position and index."""
    wanted = {(answer.step, answer.position, answer.index) for answer in shown}
    columns, steps = ["step", "position", "index", *ANSWER_COLUMNS], {step for step, _, _ in wanted}
    found: dict[tuple[int, int, int], Answer] = {}
    for batch in archive.rollouts(columns, steps):
        keys = list(zip(*(batch.column(name).to_pylist() for name in columns[:3]), strict=True))
        found |= {
            key: answer_from_row(batch.slice(place, 1).to_pylist()[0])
            for place, key in enumerate(keys)
            if key in wanted
        }
    return found


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
    write_page(page, render_ablation(ablation, scores, failed))
    return [numbers, page]


def render_ablation(ablation: Ablation, scores: Sequence[RunScores], failed: Sequence[PlannedRun]) -> str:
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
        charts=charts,
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
    values = [x for mine in intervals.values() if mine for x in mine[metric].numbers if not math.isnan(x)]
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
