"""report.html: what a run reached, one self-contained page of numbers, curves and pictures, no network, no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from envs.polygons import AnswerStatus, Ring
from rl.evaluation.missing import FAULTS, Missing
from rl.evaluation.scores import METRIC_TITLES, STAGE_TITLES, Interval, SceneScore, StageScores
from rl.pages.charts import Chart
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay

PAIR_TITLES = {
    "rl_minus_sft": "RL over SFT",
    "rl_minus_control": "RL over SFT, as long",
    "refined_minus_rl": "refiner over RL",
}
CHOICE_TITLES = {"random": "Random", "best": "Best", "median": "Median", "worst": "Worst"}


@dataclass(frozen=True)
class Drawn:
    """What one stage drew for one scene."""

    rings_px: Sequence[Ring]
    """Pixel rings, each [N, 2]; none for an empty or unreadable answer. A mask enters as its traced rings."""
    iou: float
    status: AnswerStatus


@dataclass(frozen=True)
class SceneRow:
    """One held-out scene, as every stage answered it."""

    example_id: str
    phrase: str
    choice: str
    """Why it is shown, a key of CHOICE_TITLES."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    truth_rings_px: Sequence[Ring]
    drawn: Mapping[str, Drawn]
    """By stage, a key of STAGE_TITLES, in the order of the page."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    stages: Mapping[str, StageScores]
    """By stage, a key of STAGE_TITLES, in the order of the page."""
    paired: Mapping[str, Interval]
    """gIoU differences over the same scenes, by a key of PAIR_TITLES."""
    missing: Mapping[str, Missing]
    """Where the missing IoU lies, by the stages that draw; none where that is not known."""
    num_scenes: int
    """Number of scenes behind `stages` and `paired`."""
    split: str
    """Which split they are from, for people."""
    scenes: Sequence[SceneRow]
    charts: Sequence[Chart]
    """Charts without a recorded value are left out of the page."""
    facts: Sequence[tuple[str, str]]
    """(label, value) about the run; a value of several lines is shown folded."""


def choose_scenes(
    scores: Sequence[SceneScore], num_random: int = 6, num_each: int = 4, seed: int = 0
) -> list[tuple[str, int]]:
    """Which scenes to show, as (choice, index into scores): no scene twice, fewer where there are not enough.

    scores: of the last stage, which the page says. The random scenes depend on the number of scenes and the seed alone,
    never on a score. The rest is ranked by IoU, ties by id: the `num_each` best, worst, and nearest to the median rank.
    """
    drawn = np.random.default_rng(seed).permutation(len(scores))[:num_random].tolist()
    others = set(range(len(scores))) - set(drawn)
    ranked = sorted(others, key=lambda index: (scores[index].iou, scores[index].example_id))
    best = ranked[len(ranked) - min(num_each, len(ranked)) :][::-1]
    ranked = ranked[: len(ranked) - len(best)]
    worst = ranked[:num_each]
    between = ranked[len(worst) :]
    # The best were as many as the worst, so the middle of what is left is the median of all ranked scenes.
    start = max(0, (len(between) - num_each) // 2)
    chosen = {"random": drawn, "best": best, "median": between[start : start + num_each], "worst": worst}
    return [(choice, index) for choice, indices in chosen.items() for index in indices]


@dataclass(frozen=True)
class _Figure:
    """One picture of a scene's row."""

    stage: str
    title: str
    svg: Markup
    note: str


def _figures(row: SceneRow) -> list[_Figure]:
    truth_title = f"The truth for “{row.phrase}”" if row.truth_rings_px else f"Nothing here is “{row.phrase}”"
    truth_svg = svg_overlay(row.image, row.truth_rings_px, COLOURS["truth"], truth_title)
    figures = [_Figure("truth", "truth", Markup(truth_svg), "" if row.truth_rings_px else "nothing")]
    for stage, drawn in row.drawn.items():
        stage_title = STAGE_TITLES.get(stage, stage)
        title = f"{stage_title}: “{row.phrase}”, IoU {drawn.iou:.3f}, answer {drawn.status}"
        colour = COLOURS.get(stage, COLOURS["sft"])
        svg = svg_overlay(row.image, drawn.rings_px, colour, title, outline=row.truth_rings_px)
        note = "" if drawn.status is AnswerStatus.OK else drawn.status.replace("_", " ")
        figures.append(_Figure(stage, stage_title, Markup(svg), f"IoU {drawn.iou:.2f}" + (f", {note}" if note else "")))
    return figures


def render(report: Report) -> str:
    """The page as HTML text."""
    groups = {choice: [row for row in report.scenes if row.choice == choice] for choice in CHOICE_TITLES}
    return render_page(
        "report.html.j2",
        report=report,
        charts=report.charts,
        groups={choice: rows for choice, rows in groups.items() if rows},
        figures=_figures,
        colours=COLOURS,
        stage_titles=STAGE_TITLES,
        metric_titles=METRIC_TITLES,
        pair_titles=PAIR_TITLES,
        faults=FAULTS,
        choice_titles=CHOICE_TITLES,
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page to `path`, whole or not at all; its folder is made where it is missing."""
    write_page(path, render(report))
