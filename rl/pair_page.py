"""pairs.html: pairs of every stratum of IoU to look at, the coarse outline, the true one, and where they differ."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from envs.contours import rings_from_mask
from envs.polygons import Ring
from envs.rle import mask_from_rle
from rl.export_files import PairPictures
from rl.export_report import ExportReport, stratum_names
from rl.page import render_page, write_page
from rl.pair_candidates import LEFT_OUT
from rl.pair_index import INDEX, index_rows
from rl.pair_rule import PairRule
from rl.pictures import COLOURS, svg_overlay, svg_path, window_around

_MAX_SIDE_PX = 320
"""More pixels are not shown, so that the page stays small."""
MISSED, EXTRA, BOTH = "#4c6ef5", "#fa5252", "#868e96"
"""Colours of true pixels that the coarse mask lacks, of those it has too many, and of those that both have."""


@dataclass(frozen=True)
class _Shown:
    """A pair on the page."""

    prompt: str
    place: str
    """Where the answer is."""
    notes: str
    """Numbers, and how it was made."""
    figures: list[tuple[str, Markup]]
    """(title, SVG)."""


def write_pair_page(folder: Path, report: ExportReport, rule: PairRule, pictures: PairPictures, num_shown: int) -> None:
    """Write folder/pairs.html with the first `num_shown` pairs of each stratum of IoU, in the export's seeded order."""
    shown: list[list[_Shown]] = [[] for _ in range(rule.iou_strata)]
    for k in _sampled(folder, rule, num_shown):
        row = next(index_rows(folder / INDEX, k))
        shown[int(rule.iou_stratum(np.array([row["iou"]]))[0])].append(_shown(row, pictures))
    names = stratum_names(rule.min_iou, rule.max_iou, rule.iou_strata)
    page = render_page(
        "pair_page.html.j2",
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
    """Numbers of the first pairs of each stratum, one an example as far as it goes."""
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
    window = window_around(coarse | true)
    image, coarse, true = pictures.image(row)[window], coarse[window], true[window]
    scale = min(1.0, _MAX_SIDE_PX / max(coarse.shape))
    if scale < 1:
        height, width = (math.ceil(side * scale) for side in coarse.shape)
        image = np.asarray(Image.fromarray(image).resize((width, height)))
    coarse_rings, true_rings = _rings(coarse, scale), _rings(true, scale)
    figures = [
        ("coarse", svg_overlay(image, coarse_rings, COLOURS["rl"], "coarse mask, true outline dashed", true_rings)),
        ("true", svg_overlay(image, true_rings, COLOURS["truth"], "true mask")),
        ("difference", _difference(coarse, true, scale)),
    ]
    notes = f"IoU {row['iou']:.2f}, boundary {row['boundary_iou']:.2f}"
    notes += f", synthetic: {row['damage'].replace('_', ' ')}" if row["damage"] else ""
    place = f"{row['run']} {row['step']}/{row['position']}/{row['index']}"
    return _Shown(row["prompt"], place, notes, [(title, Markup(svg)) for title, svg in figures])


def _rings(mask: NDArray[np.bool_], scale: float) -> list[Ring]:
    return [np.round(ring * scale, 1) for ring in rings_from_mask(mask)]


def _difference(coarse: NDArray[np.bool_], true: NDArray[np.bool_], scale: float) -> str:
    height, width = (math.ceil(side * scale) for side in coarse.shape)
    parts = ((true & coarse, BOTH, 0.35), (true & ~coarse, MISSED, 1), (coarse & ~true, EXTRA, 1))
    paths = "".join(
        f'<path d="{svg_path(_rings(mask, scale))}" fill="{colour}" fill-opacity="{opacity}"/>'
        for mask, colour, opacity in parts
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" class="difference">'
        f"<title>blue: true but not drawn, red: drawn but not true, grey: both</title>{paths}</svg>"
    )
