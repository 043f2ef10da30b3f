"""representations.html: the table, what differs, and the same scenes as every kind of answer draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.geometry.contours import rings_from_mask
from envs.polygons import Ring
from rl.bench.representations.report import Row, lines, plus_minus
from rl.bench.representations.scores import Scored
from rl.bench.representations.trainings import RL, RL_REFINED
from rl.bench.representations.wanted import Wanted
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay
from rl.run.parts import run_parts

_TRUTH = "truth"


@dataclass(frozen=True)
class _Figure:
    stage: str
    """Key of COLOURS."""
    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class _Picture:
    """One question, as all answered it."""

    phrase: str
    example_id: str
    figures: list[_Figure]


def write(wanted: Wanted, found: Sequence[Row], scored: Sequence[Scored]) -> Path:
    """Write the page into the folder of the bench; its path."""
    path = wanted.out / "representations.html"
    write_page(path, render(wanted, found, scored))
    return path


def render(wanted: Wanted, found: Sequence[Row], scored: Sequence[Scored]) -> str:
    """The page as HTML text."""
    first = scored[0].stage.config
    return render_page(
        "representations.html.j2",
        num_scenes=len(scored[0].scores),
        split=first.evaluation.final_split,
        seeds=len({one.stage.seed for one in scored}),
        sft_seconds=wanted.sft_seconds,
        rl_seconds=wanted.rl_seconds,
        rows=found,
        lines=lines(found),
        plus_minus=plus_minus,
        pictures=_pictures(scored),
        figures=_figures_of,
        colours=COLOURS,
        facts=[
            ("overrides", " ".join(wanted.overrides) or "none"),
            *((of.name, f"{of.sft}, {of.rl}") for of in wanted.representations),
        ],
    )


def _figures_of(picture: _Picture) -> list[_Figure]:
    return picture.figures


def _pictures(scored: Sequence[Scored]) -> list[_Picture]:
    last = [one for one in scored if one.stage.seed == scored[0].stage.seed and one.stage.stage in (RL, RL_REFINED)]
    config = scored[0].stage.config
    env: Env = run_parts(config).env.build(split=config.evaluation.final_split)
    made = []
    for k in range(len(last[0].drawn) if last else 0):
        example = env[k]
        image, truth = env.image(example.image), rings_from_mask(example.truth.union)
        figures = [_figure(image, _TRUTH, "truth", truth, [], "" if truth else "nothing")]
        for one in last:
            kind = "refined" if one.stage.stage == RL_REFINED else "rl"
            title = one.stage.representation.name.replace("_", " ") + (", refined" if kind == "refined" else "")
            figures.append(_figure(image, kind, title, one.drawn[k], truth, f"IoU {one.scores[k].iou:.2f}"))
        made.append(_Picture(example.prompt.told, example.id, figures))
    return made


def _figure(  # what is drawn, and what is said of it
    image: NDArray[np.uint8], stage: str, title: str, rings: Sequence[Ring], outline: Sequence[Ring], note: str
) -> _Figure:
    svg = svg_overlay(image, rings, COLOURS[stage], f"{title}{': ' if note else ''}{note}", outline=outline)
    return _Figure(stage, title, Markup(svg), note)
