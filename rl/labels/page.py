"""Labels as a page: the funnel, curves of verification, distributions, and kept beside refused as pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from envs.geometry.contours import rings_from_mask
from envs.geometry.rle import mask_from_rle
from envs.images import View
from envs.plugin import Plugin
from envs.polygons import Ring
from rl.config.label import images_plugin
from rl.labels.report import LabelReport
from rl.pages.charts import Chart
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay
from rollout.label.images.base import Images
from rollout.label.judged import TRUE_IOU
from rollout.label.objects import read_objects

_FEWEST = 10
"""Objects of a point of a curve; the mean of fewer says nothing."""
_SHOWN = 14
"""Objects that are shown of each reason, evenly over all."""
_GREY = 128
_MOST_SIDE = 320
"""Longer side of a picture, pixels."""


@dataclass(frozen=True)
class Figure:
    """One object over its image."""

    svg: Markup
    title: str
    note: str
    stage: str


@dataclass(frozen=True)
class Section:
    """Objects with one fate."""

    title: str
    count: int
    figures: list[Figure]


def write_label_page(report: LabelReport, out: Path) -> None:
    """Write the page; images are read from where they lay, and are grey where they are not to be had any more."""
    before, after = report.before_and_after()
    page = render_page(
        "labels.html.j2",
        title=report.out.name,
        report=report,
        before=before,
        after=after,
        charts=list(_charts(report)),
        sections=_sections(report),
        facts=_facts(report),
        colours=COLOURS,
    )
    write_page(out, page)


def _charts(report: LabelReport) -> Iterator[Chart]:
    if report.is_judged:
        for name in report.verifiers:
            points = [one for one in report.curve(name) if one.objects >= _FEWEST]
            if points:
                percents = [round(100 * one.least) for one in points]
                curves = {
                    "mean IoU with the truth": (percents, [one.mean_iou for one in points]),
                    "share kept": (percents, [one.share for one in points]),
                }
                yield Chart(f"Labels by what {name} asks of them", "", curves, "least IoU with the verifier, percent")
    if report.kept:
        yield _distribution(
            "Size of the labels", [100 * share for share in report.shares()], "share of the image, percent"
        )
        yield _distribution("Words of the phrases", [float(words) for words in report.words()], "words")


def _distribution(title: str, values: Sequence[float], name: str) -> Chart:
    """How many values lie in each of up to 20 equal spans."""
    counts, edges = np.histogram(values, bins=min(20, max(1, round(max(values)))), range=(0, max(*values, 1.0)))
    middles = [int((low + high) / 2) for low, high in pairwise(edges)]
    return Chart(title, "labels", {"labels": (middles, [float(count) for count in counts])}, name)


def _sections(report: LabelReport) -> list[Section]:
    """Kept objects, then those of each reason, the most frequent reason of each stage first."""
    wanted: dict[tuple[str, str] | None, list[dict[str, Any]]] = {None: report.kept}
    for step in report.funnel():
        for reason in step.refused:
            of_reason = [row for row in report.objects if (row["stage"], row["reason"]) == (step.stage, reason)]
            wanted[step.stage, reason] = of_reason
    chosen = {key: [rows[k] for k in _evenly(len(rows), _SHOWN)] for key, rows in wanted.items()}
    places = {(row["image"], row["number"]) for rows in chosen.values() for row in rows}
    drawn = _drawn(report, places)
    sections = []
    for key, rows in chosen.items():
        if rows:
            title = "Kept" if key is None else f"Refused by {key[0]}: {key[1]}"
            figures = [_figure(row, *drawn[row["image"], row["number"]]) for row in rows]
            sections.append(Section(title, len(wanted[key]), figures))
    return sections


def _evenly(num: int, most: int) -> list[int]:
    return sorted(set(np.linspace(0, num - 1, min(num, most)).round().astype(int).tolist())) if num else []


def _drawn(
    report: LabelReport, places: set[tuple[int, int]]
) -> dict[tuple[int, int], tuple[NDArray[np.uint8], list[Ring], list[Ring]]]:
    """The image of each of these objects, the rings of its mask and of its box, in pixels of the picture."""
    found: dict[tuple[int, int], tuple[NDArray[np.uint8], list[Ring], list[Ring]]] = {}
    images = _source(report)
    held: dict[int, NDArray[np.uint8]] = {}
    for table in read_objects(report.out, ("image", "number", "mask", "box_px", "height", "width")):
        for row in table.to_pylist():
            place = (row["image"], row["number"])
            if place not in places:
                continue
            if row["image"] not in held:
                held = {row["image"]: _pixels(images, row)}  # rows come image by image
            found[place] = _shrunk(held[row["image"]], row)
    return found


def _source(report: LabelReport) -> Images | None:
    try:
        plugin: Plugin = images_plugin(report.provenance["images"])
        return cast(Images, plugin.build())
    except (ValueError, OSError):
        return None


def _pixels(images: Images | None, row: Mapping[str, Any]) -> NDArray[np.uint8]:
    grey = np.full((row["height"], row["width"], 3), _GREY, np.uint8)
    if images is None:
        return grey
    try:
        pixels = images.read(row["image"]).pixels
    except (ValueError, OSError, IndexError):  # the folder may have gone
        return grey
    return pixels if pixels.shape == grey.shape else grey


def _shrunk(pixels: NDArray[np.uint8], row: Mapping[str, Any]) -> tuple[NDArray[np.uint8], list[Ring], list[Ring]]:
    from PIL import Image

    height, width = pixels.shape[:2]
    view = View(min(_MOST_SIDE, max(height, width)))
    shown = view.pixels(Image.fromarray(pixels))
    scale = np.array([shown.shape[1] / width, shown.shape[0] / height])
    rings = [] if row["mask"] is None else rings_from_mask(mask_from_rle(row["mask"], height, width))
    x0, y0, x1, y1 = row["box_px"]
    box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return shown, [ring * scale for ring in rings], [box * scale]


def _figure(row: Mapping[str, Any], image: NDArray[np.uint8], rings: list[Ring], box: list[Ring]) -> Figure:
    asked = row["phrase"] or row["name"] or "(no name)"
    numbers = dict(row["numbers"])
    true = numbers.pop(TRUE_IOU, None)
    stage = "rl" if row["stage"] is None else "sft"
    title = f"“{asked}”"
    told = [f"true IoU {true:.2f}"] if true is not None else []
    told += [f"{key} {value:.2f}" for key, value in numbers.items() if key.endswith(("iou", "score", "votes"))]
    svg = svg_overlay(image, rings, COLOURS[stage], f"{title}, {', '.join(told)}", outline=box)
    return Figure(Markup(svg), title, ", ".join(told), stage)


def _facts(report: LabelReport) -> list[tuple[str, str]]:
    """How the labels were made."""
    provenance = report.provenance
    images = ", ".join(f"{key}: {value}" for key, value in provenance["images"].items())
    facts = [("images", images)]
    for entry in provenance["stages"]:
        told = "\n".join(f"{key}: {value}" for key, value in entry.items() if key != "name")
        facts.append((entry.get("called", entry["name"]), told or "as it is"))
    return [*facts, ("Polytrace", str(provenance["polytrace"]))]
