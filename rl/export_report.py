"""What an export kept and why: report.json for programs, README.md (a data card) for people."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rl.export_formats import write_text
from rl.export_state import ExportState
from rl.json_text import json_text
from rl.pair_candidates import LEFT_OUT
from rl.pair_index import INDEX
from rl.pair_rule import PairRule
from rl.pair_runs import HeldOutSplit

_COUNTED = ["example_id", "image_sha256", "iou", "boundary_iou", "damage", "run", "licence"]


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
    """Answers left out, by reason (rl.pairs.LEFT_OUT)."""
    strata: list[list[int]]
    """[iou_strata][boundary_strata] pairs, from low to high IoU, from small to large boundary error."""
    mean_iou: float
    mean_boundary_iou: float
    damaged: dict[str, int]
    """Pairs with a synthetic coarse mask, by damage."""
    licences: dict[str, int]
    """Pairs by licence of the image."""
    held_out: list[HeldOutSplit]
    """What of other splits was barred, beside what the archives hold of them."""
    format: str
    shards: int


def export_report(folder: Path, rule: PairRule, format_name: str, state: ExportState) -> ExportReport:
    """Count what the index of an export holds."""
    assert state.selection is not None
    table = pq.read_table(folder / INDEX, columns=_COUNTED)
    iou, boundary_iou = table["iou"].to_numpy(), table["boundary_iou"].to_numpy()
    text = {name: table[name].to_pylist() for name in ("damage", "run", "licence")}
    return ExportReport(
        answers=state.selection.answers,
        pairs=len(table),
        examples=len(table["example_id"].unique()),
        images=len(table["image_sha256"].unique()),
        runs={name: text["run"].count(name) for name in state.runs},
        left_out=state.selection.left_out,
        strata=strata_counts(rule, iou, boundary_iou),
        mean_iou=float(iou.mean()),
        mean_boundary_iou=float(boundary_iou.mean()),
        damaged=dict(sorted(Counter(kind for kind in text["damage"] if kind is not None).items())),
        licences=dict(sorted(Counter(text["licence"]).items())),
        held_out=list(state.held_out),
        format=format_name,
        shards=len(state.shards),
    )


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
