"""refiner.html: what a refiner is worth, how well it knows it, where errors come from, and masks before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from envs.polygons import Ring
from rl.pages.charts import Chart
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, close_up, svg_overlay
from rl.refiner.errors import KINDS, NOTES, TITLES, KindRow, SplitRow
from rl.refiner.scores import CLEARLY_WORSE_BY, WORSE_BY, MaskScores, RefinerSummary

CHOICE_TITLES = {"random": "Random", "best": "Best gain", "worst": "Worst change"}
RELIABILITY_PAIRS = {
    "Predicted IoU of the mask returned": ("refined_raw", "refined_calibrated"),
    "Predicted IoU of the coarse mask": ("coarse_raw", "coarse_calibrated"),
}
"""Title of a diagram -> what it shows before and after calibration, keys of RefinerSummary.reliability."""


@dataclass(frozen=True)
class BeforeAfter:
    """One mask before and after the refiner."""

    example_id: str
    phrase: str
    choice: str
    """Reason why it is shown, a key of CHOICE_TITLES."""
    image: NDArray[np.uint8]
    """RGB image [H, W, 3]."""
    coarse: NDArray[np.bool_]
    """Coarse mask [H, W]."""
    refined: NDArray[np.bool_]
    """Refined mask [H, W]."""
    true: NDArray[np.bool_]
    """True mask [H, W]."""
    coarse_iou: float
    refined_iou: float
    predicted_coarse_iou: float
    """Calibrated prediction for the coarse mask."""
    predicted_iou: float
    """Calibrated prediction for the refined mask."""
    taken: int
    """Pass that is returned; 0: the coarse mask as it came."""


@dataclass(frozen=True)
class RefinerPage:
    """Everything on the page."""

    title: str
    summary: RefinerSummary
    split: str
    """Description of the masks, for people."""
    by_kind: Sequence[Sequence[KindRow]]
    """Gains by kind of object, one list for each of rl.refiner.errors.KINDS."""
    errors: Mapping[str, SplitRow]
    """Scores by source of error, a key of rl.refiner.errors.TITLES; none leaves the table out."""
    baselines: Sequence[tuple[str, SplitRow]]
    """Scores of what is compared with the refiner, such as smoothing, by name."""
    pictures: Sequence[BeforeAfter]
    charts: Sequence[Chart]
    """Learning curves; charts without a recorded value are left out."""
    facts: Sequence[tuple[str, str]]
    """Facts about refiner and run, each (label, value); a value of several lines is shown folded."""


def choose_changes(scores: MaskScores, num_random: int = 6, num_each: int = 4, seed: int = 0) -> list[tuple[str, int]]:
    """Which masks to show, as (choice, index into scores): no mask twice, fewer where there are not enough.

    The random ones are drawn of all S masks by S and the seed alone, never by a score. Of the others, those with the
    highest gain in IoU and those with the lowest, ties by index; a best one did gain, a worst one did lose, so there
    may be none of either.
    """
    drawn = np.random.default_rng(seed).permutation(len(scores))[:num_random].tolist()
    others = np.setdiff1d(np.arange(len(scores)), drawn)
    gain = scores.gain_iou[others]
    ranked = others[np.argsort(gain, kind="stable")]
    num_worse, num_better = int((gain < -WORSE_BY).sum()), int((gain > WORSE_BY).sum())
    worst = ranked[: min(num_each, num_worse)].tolist()
    best = ranked[len(ranked) - min(num_each, num_better) :][::-1].tolist()
    chosen = {"random": drawn, "best": best, "worst": worst}
    return [(choice, index) for choice, indices in chosen.items() for index in indices]


@dataclass(frozen=True)
class _Figure:
    """One picture of a mask's row."""

    stage: str
    """Stage that drew it, a key of COLOURS."""
    title: str
    svg: Markup
    note: str


def _figures(row: BeforeAfter) -> list[_Figure]:
    image, (coarse, refined, true) = close_up(row.image, [row.coarse, row.refined, row.true])
    note = f"IoU {row.coarse_iou:.3f}, predicted {row.predicted_coarse_iou:.2f}"
    after = f"IoU {row.refined_iou:.3f}, predicted {row.predicted_iou:.2f}"
    kept = "as it came" if row.taken == 0 else f"pass {row.taken}"
    return [
        _Figure("rl", "coarse", _picture(image, coarse, "rl", f"coarse: “{row.phrase}”, {note}", true), note),
        _Figure(
            "refined",
            f"refined, {kept}",
            _picture(image, refined, "refined", f"refined: “{row.phrase}”, {after}", true),
            after,
        ),
        _Figure("truth", "truth", _picture(image, true, "truth", f"the truth for “{row.phrase}”"), ""),
    ]


def _picture(
    image: NDArray[np.uint8], rings: Sequence[Ring], stage: str, title: str, outline: Sequence[Ring] = ()
) -> Markup:
    return Markup(svg_overlay(image, rings, COLOURS[stage], title, outline))


def render(page: RefinerPage) -> str:
    """The page as HTML text."""
    groups = {choice: [row for row in page.pictures if row.choice == choice] for choice in CHOICE_TITLES}
    return render_page(
        "refiner.html.j2",
        page=page,
        summary=page.summary,
        kinds=[(kinds.title, rows) for kinds, rows in zip(KINDS, page.by_kind, strict=True) if rows],
        charts=page.charts,
        groups={choice: rows for choice, rows in groups.items() if rows},
        figures=_figures,
        split_titles=TITLES,
        split_notes=NOTES,
        choice_titles=CHOICE_TITLES,
        reliability_pairs=RELIABILITY_PAIRS,
        clearly=CLEARLY_WORSE_BY,
        colours=COLOURS,
    )


def write_refiner_page(path: Path, page: RefinerPage) -> None:
    """Write the page to `path`, whole or not at all; its folder is made where it is missing."""
    write_page(path, render(page))
