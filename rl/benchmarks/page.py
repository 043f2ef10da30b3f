"""benchmark.html: the tables of a benchmark, scores by kind of object, where errors come from, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from envs.datasets.shards import Env
from envs.geometry.contours import rings_from_mask
from envs.geometry.rle import mask_from_rle
from rl.benchmarks.answers import AnswerFiles
from rl.benchmarks.judge import SetScores
from rl.benchmarks.tables import ScoreTable, percent
from rl.evaluation.scores import Interval
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay

_PICTURES = 24
_LONGEST_SIDE = 512
"""Pixels of the longer side of pictures on the page."""


@dataclass(frozen=True)
class Shot:
    """One answered example."""

    phrase: str
    example_id: str
    iou: float
    status: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """One data set under one protocol, a column for each model."""

    table: ScoreTable
    models: Sequence[str]
    kinds: Sequence[tuple[str, str, int, Sequence[str]]]
    """(what is told apart, kind, examples, mean IoU by model)."""
    errors: Sequence[tuple[str, Sequence[str]]]
    """(what is taken away, mean IoU by model)."""
    unreadable: Sequence[str]
    """A sentence for each model of which answers could not be read."""

    @property
    def scores(self) -> list[tuple[str, list[str]]]:
        """(title, cells by model)."""
        measured = [row for row in self.table.rows if row.measured]
        return [(title, [row.cells[k] for row in measured]) for k, title in enumerate(self.table.titles)]


def _section(table: ScoreTable, found: Sequence[SetScores]) -> Section:
    of = [one for one in found if (one.data, one.protocol) == (table.data, table.protocol)]
    kinds = [
        (kind.title, kind.name, kind.count, [percent(one.kinds[k].iou) for one in of])
        for k, kind in enumerate(of[0].kinds)
    ]
    words = list(dict.fromkeys(each for one in of for each in one.errors or {}))
    errors = [(each, [_cell((one.errors or {}).get(each)) for one in of]) for each in words]
    unreadable = [
        f"{one.unreadable:,} of {len(one.judged):,} answers of {one.model} could not be read and count as empty."
        for one in of
        if one.unreadable
    ]
    return Section(table, [one.model for one in of], kinds, errors, unreadable)


def _cell(interval: Interval | None) -> str:
    return "" if interval is None else percent(interval)


def write_benchmark_page(
    out: Path,
    found: Sequence[SetScores],
    tables: Sequence[ScoreTable],
    env: Env,
    answers: Mapping[str, AnswerFiles],
) -> None:
    """Write the page; pictures are of the first data set `env`, spread from the worst to the best answer of each model.

    answers: by model, to the first data set.
    """
    shots = {}
    for model, files in answers.items():
        scores = next(one for one in found if one.model == model)
        shots[model] = _shots(env, list(files.rows()), scores)
    sections = [_section(table, found) for table in tables]
    page = render_page("benchmark.html.j2", sections=sections, shots=shots, colours=COLOURS)
    write_page(out, page)


def _shots(env: Env, rows: Sequence[Mapping[str, Any]], scores: SetScores) -> list[Shot]:
    """Answers at equal steps from the worst to the best IoU."""
    ious = {one.example_id: one.iou for one in scores.judged}
    asked = [k for k, row in enumerate(rows) if row["example_id"] in ious]
    ranked = sorted(asked, key=lambda k: (ious[rows[k]["example_id"]], k))
    places = np.unique(np.linspace(0, len(ranked) - 1, min(_PICTURES, len(ranked))).round().astype(int))
    return [_shot(env, ranked[place], rows[ranked[place]], ious) for place in places]


def _shot(env: Env, index: int, row: Mapping[str, Any], ious: Mapping[str, float]) -> Shot:
    example = env[index]
    image = env.image(example.image)
    step = max(1, -(-max(image.shape[:2]) // _LONGEST_SIDE))
    height, width = row["height"], row["width"]
    truth = [ring / step for counts in row["masks"] for ring in rings_from_mask(mask_from_rle(counts, height, width))]
    drawn = rings_from_mask(mask_from_rle(row["refined"] or row["mask"], height, width))
    title = f"“{row['phrase']}”, IoU {ious[row['example_id']]:.3f}"
    picture = svg_overlay(
        np.ascontiguousarray(image[::step, ::step]),
        truth,
        COLOURS["truth"],
        title,
        outline=[ring / step for ring in drawn],
    )
    return Shot(row["phrase"], row["example_id"], ious[row["example_id"]], row["status"], Markup(picture))
