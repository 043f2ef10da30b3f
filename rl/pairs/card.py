"""What an export kept and why: report.json and attribution.csv for programs, README.md and pairs.html for people."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from numpy.typing import NDArray

from envs.geometry.rle import mask_from_rle
from envs.geometry.vector import svg_path
from envs.polygons import Ring
from rl.config.pairs import PairRule
from rl.pages.json_text import json_text
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, close_up, svg_overlay
from rl.pairs.formats import PairPictures, write_text
from rl.pairs.index import INDEX, HeldOutSplit, index_rows
from rl.pairs.shortlist import LEFT_OUT


@dataclass(frozen=True)
class ExportReport:
    """What became of the answers of the runs."""

    answers: int
    """Answers read."""
    pairs: int
    examples: int
    images: int
    runs: dict[str, int]
    """Pairs by run."""
    left_out: dict[str, int]
    """Answers left out, by reason (rl.pairs.shortlist.LEFT_OUT)."""
    strata: list[list[int]]
    """Pairs by stratum, [iou_strata][boundary_strata], from low to high IoU, from small to large boundary error."""
    mean_iou: float
    mean_boundary_iou: float
    damaged: dict[str, int]
    """Pairs with a synthetic coarse mask, by damage."""
    licences: dict[str, int]
    """Pairs by licence of the image."""
    held_out: list[HeldOutSplit]
    """Splits that the pairs were kept apart from, beside what the archives hold of them."""
    format: str
    shards: int


def strata_counts(rule: PairRule, iou: NDArray[np.float64], boundary_iou: NDArray[np.float64]) -> list[list[int]]:
    """Pairs by stratum of IoU and of boundary error."""
    counts = np.zeros((rule.iou_strata, rule.boundary_strata), np.int64)
    np.add.at(counts, (rule.iou_stratum(iou), rule.boundary_stratum(boundary_iou)), 1)
    return [[int(num) for num in row] for row in counts]


def stratum_names(low: float, high: float, parts: int) -> list[str]:
    """How to call equal parts of low..high."""
    edges = np.linspace(low, high, parts + 1)
    return [f"{a:.2f} to {b:.2f}" for a, b in pairwise(edges)]


def write_report(folder: Path, report: ExportReport, rule: PairRule) -> None:
    """Write report.json, attribution.csv and README.md."""
    table = (
        pq.read_table(folder / INDEX, columns=["licence", "source"])
        .group_by(["licence", "source"])
        .aggregate([([], "count_all")])
    )
    sources = sorted(zip(*(table[name].to_pylist() for name in ("licence", "source", "count_all")), strict=True))
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("licence", "source", "pairs"), *sources])
    write_text(folder / "report.json", json_text(asdict(report), indent=2) + "\n")
    write_text(folder / "attribution.csv", lines.getvalue())
    write_text(folder / "README.md", _data_card(report, rule, sources))


_SOURCES_SHOWN = 40
_LAYOUTS = {
    "parquet": "`data/train-*.parquet`: a row a pair, `image`, `coarse_mask`, `true_mask`, `ignore_mask` as pictures",
    "webdataset": "`pairs-*.tar`: `KEY.image.png`, `KEY.coarse.png`, `KEY.true.png`, `KEY.json` a pair",
    "coco": "`annotations.json`: `segmentation` is the true mask, `coarse_segmentation` the coarse one; `images/`",
    "png": "`pairs.csv`: paths of image, coarse and true mask of each pair, and what is known of it",
}
_FRONT_MATTER = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
"""


_READING = """\
A pair is an outline that a policy drew beside the true mask. Masks are 0 and 255; pixels of the ignore mask count
neither way. `run`, `step`, `position` and `index` find the answer in its archive, also where a damaged true mask took
its place. `box_px` is (x0, y0, x1, y1) around the outline. `iou` is of coarse and true mask, `boundary_iou` of their
boundary bands.
"""


def _data_card(report: ExportReport, rule: PairRule, sources: Sequence[tuple[str, str, int]]) -> str:
    iou_names = stratum_names(rule.min_iou, rule.max_iou, rule.iou_strata)
    error_names = stratum_names(0, 1, rule.boundary_strata)
    made = f", {sum(report.damaged.values())} of them synthetic (column `damage`)" if report.damaged else ""
    return f"""{_FRONT_MATTER if report.format == "parquet" else ""}# Coarse and true masks

{report.pairs} pairs from {report.examples} training examples over {report.images} images{made}, chosen from \
{report.answers} answers ({", ".join(report.runs)}). [pairs.html](pairs.html) shows some of them.

- {_LAYOUTS[report.format]}
- `pairs.parquet`: all pairs without pictures: masks as COCO compressed RLE of height x width pixels, images by key and
  by the SHA-256 of their pixels
- `report.json`: the numbers below

{_READING}
Chosen by `{rule}`.

## Licences of the images

Whoever passes the images on names their sources and keeps to their licences; `attribution.csv` has all {len(sources)}.

{_table(["licence", "source", "pairs"], _most(sources))}
## Pairs by IoU and boundary error

Mean IoU {report.mean_iou:.3f}, mean Boundary IoU {report.mean_boundary_iou:.3f}.

{_table(["IoU", *(f"error {name}" for name in error_names)], _strata_rows(iou_names, report.strata))}
{_damage_section(report.damaged)}## Answers left out

{_table(["reason", "answers"], ((text, report.left_out[reason]) for reason, text in LEFT_OUT.items()))}
## Kept apart from

No pair has the id or the image of an example of these, nor of any example of another split in the archives.

{_table(["run", "split", "examples compared", "of"], ((s.run, s.split, s.examples, s.of) for s in report.held_out))}"""


def _most(sources: Sequence[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """The sources of the most pairs, as many as a page can hold."""
    return sorted(sources, key=lambda source: -source[2])[:_SOURCES_SHOWN]


def _strata_rows(names: Sequence[str], strata: Sequence[Sequence[int]]) -> list[list[object]]:
    return [[name, *row] for name, row in zip(names, strata, strict=True)]


def _damage_section(made: Mapping[str, int]) -> str:
    return f"## Synthetic coarse masks\n\n{_table(['damage', 'pairs'], made.items())}\n" if made else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    rows = list(rows)
    rules = ["---" if not rows or isinstance(cell, str) else "---:" for cell in (rows[0] if rows else head)]
    ruled = [head, rules, *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |\n" for row in ruled)


MISSED, EXTRA, BOTH = "#4c6ef5", "#fa5252", "#868e96"
"""Colours of true pixels that the coarse mask lacks, of those it has too many, and of those that both have."""


@dataclass(frozen=True)
class _Shown:
    """A pair on the page."""

    prompt: str
    place: str
    """Place of the answer in its archive."""
    notes: str
    """Scores, and how the coarse mask was made."""
    figures: list[tuple[str, Markup]]
    """Pictures, each (title, SVG)."""


def write_pair_page(folder: Path, report: ExportReport, rule: PairRule, pictures: PairPictures, num_shown: int) -> None:
    """Write folder/pairs.html with the first `num_shown` pairs of each stratum of IoU, in the export's seeded order."""
    shown: list[list[_Shown]] = [[] for _ in range(rule.iou_strata)]
    for k in _sampled(folder, rule, num_shown):
        row = next(index_rows(folder / INDEX, k))
        shown[int(rule.iou_stratum(np.array([row["iou"]]))[0])].append(_shown(row, pictures))
    names = stratum_names(rule.min_iou, rule.max_iou, rule.iou_strata)
    page = render_page(
        "pairs.html.j2",
        report=report,
        strata=[(name, sum(row), pairs) for name, row, pairs in zip(names, report.strata, shown, strict=True)],
        error_names=stratum_names(0, 1, rule.boundary_strata),
        reasons=[(text, report.left_out[reason]) for reason, text in LEFT_OUT.items() if report.left_out[reason]],
        rule=rule,
        missed=MISSED,
        extra=EXTRA,
        both=BOTH,
    )
    write_page(folder / "pairs.html", page)


def _sampled(folder: Path, rule: PairRule, num_shown: int) -> list[int]:
    """Numbers of the first pairs of each stratum, one per example as far as it goes."""
    table = pq.read_table(folder / INDEX, columns=["iou", "example_id"])
    strata, examples = rule.iou_stratum(table["iou"].to_numpy()), table["example_id"]
    chosen: list[int] = []
    for stratum in range(rule.iou_strata):
        mine = np.flatnonzero(strata == stratum).tolist()
        fresh = {examples[k]: k for k in reversed(mine[: 16 * num_shown])}
        again = sorted(set(mine) - set(fresh.values()))
        chosen += (sorted(fresh.values()) + again)[:num_shown]
    return chosen


def _shown(row: Mapping[str, Any], pictures: PairPictures) -> _Shown:
    size = row["height"], row["width"]
    coarse, true = mask_from_rle(row["coarse_rle"], *size), mask_from_rle(row["true_rle"], *size)
    masks = [coarse, true, true & coarse, true & ~coarse, coarse & ~true]
    image, (coarse_rings, true_rings, *parts) = close_up(pictures.image(row), masks)
    figures = [
        ("coarse", svg_overlay(image, coarse_rings, COLOURS["rl"], "coarse mask, true outline dashed", true_rings)),
        ("true", svg_overlay(image, true_rings, COLOURS["truth"], "true mask")),
        ("difference", _difference(parts, *image.shape[:2])),
    ]
    notes = f"IoU {row['iou']:.2f}, boundary {row['boundary_iou']:.2f}"
    notes += f", synthetic: {row['damage'].replace('_', ' ')}" if row["damage"] else ""
    place = f"{row['run']} {row['step']}/{row['position']}/{row['index']}"
    return _Shown(row["prompt"], place, notes, [(title, Markup(svg)) for title, svg in figures])


def _difference(parts: Sequence[Sequence[Ring]], height: int, width: int) -> str:
    """An <svg> of the rings of what both masks have, what the coarse one misses, and what it has too many."""
    paths = "".join(
        f'<path d="{svg_path(rings)}" fill="{colour}" fill-opacity="{opacity}"/>'
        for rings, colour, opacity in zip(parts, (BOTH, MISSED, EXTRA), (0.35, 1, 1), strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" class="difference">'
        f"<title>blue: true but not drawn, red: drawn but not true, grey: both</title>{paths}</svg>"
    )
