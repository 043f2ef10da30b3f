"""`polytrace data points`: how near outlines of few points come to the masks of a config's data, and what they cost.

The best that a model could write with so many points, in three ways: outlines traced and simplified, as supervised
answers are by default (codec `path_tokens`); polygons whose points are chosen by the area that each wins; and paths
whose points may bend lines to curves too (codec `svg_path`). Nothing is trained and no policy is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from envs.codecs import path_tokens, svg_path
from envs.codecs._boxed_codec import BoxedCodec
from envs.codecs.base import AnswerCodec
from envs.datasets.base import Env
from envs.example import Example
from envs.geometry.contours import largest_rings, rings_from_mask, simplify
from envs.polygons import Ring
from rl.config.plugins import codec_plugin
from rl.data import DataConfig
from rl.evaluation.scores import Interval, mean_interval, score_answer
from rl.pages.charts import Chart
from rl.pages.page import render_page, write_page
from rl.pages.progress import bar

WAYS = {"simplified": "simplified polygon", "chosen": "chosen polygon", "curved": "lines and curves"}
"""Ways to write an outline, and what they are called."""
_LEAST_SHARE = 0.02
"""Rings of less than this share of an instance's largest one are not drawn."""
_BOX_BINS, _PATH_BINS = 1000, 960
"""Grids where the config's codec has none."""


@dataclass(frozen=True)
class Reached:
    """What one way of writing comes to with a number of points."""

    way: str
    """Key of WAYS."""
    points: int
    """Most points of an answer, of all its rings."""
    words: float
    """Mean words of the text, one token each for a vocabulary with numbers: the box's four, letters and numbers."""
    iou: Interval
    """Mean IoU with the true masks, and its 95 % interval over examples."""
    boundary_iou: Interval
    """Mean Boundary IoU, the same."""


@dataclass(frozen=True)
class Measured:
    """What was looked at, and what each way came to."""

    split: str
    examples: int
    """Examples that all rows are of."""
    left_out: int
    """Examples of more instances than the fewest points hold: they are in no row, so that rows can be compared."""
    box_bins: int
    path_bins: int
    """Steps of the grids that points are written on."""
    reached: list[Reached]
    """By points, then by way."""


def measure(
    config: DataConfig, split: str, limit: int, seed: int, budgets: Sequence[int], console: Console
) -> Measured:
    """Write up to `limit` examples of a split, drawn by `seed`, in every way with every number of points.

    Raises ValueError for a split without an example that has a mask and as many points as it needs, and as the env
    does.
    """
    env: Env = config.plugin.build(split=split)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(env))[:limit]).tolist()
    examples = [env[index] for index in drawn]
    shown = [example for example in examples if len(example.truth.masks)]
    if not shown:
        raise ValueError(
            f"of {len(examples)} examples of the split {split} none has a mask; name another by --split, or raise "
            "--limit."
        )
    held = [example for example in shown if 3 * len(example.truth.masks) <= min(budgets)]
    if not held:
        raise ValueError(
            f"all {len(shown)} examples with a mask have more than {min(budgets) // 3} instances, of three points or "
            f"more each; give more than {min(budgets)} points by --points."
        )
    codec: AnswerCodec = codec_plugin(config.codec).build()
    grid = (codec.box_bins, codec.path_bins) if isinstance(codec, BoxedCodec) else (_BOX_BINS, _PATH_BINS)
    rows: dict[tuple[int, str], list[tuple[float, float, float]]] = {(n, way): [] for n in budgets for way in WAYS}
    for example in bar(held, f"writing {split}", console):
        for points in budgets:
            instances = _rings(example, points)
            for way in WAYS:
                rows[points, way].append(_reached(example, instances, _codec(way, grid, points), way, points))
    reached = [_summary(way, points, found) for (points, way), found in rows.items()]
    return Measured(split, len(held), len(shown) - len(held), *grid, reached)


def _rings(example: Example, points: int) -> list[list[Ring]]:
    """The largest traced rings of each instance, as many as the points hold."""
    masks = example.truth.masks
    each = points // (3 * len(masks))
    return [largest_rings(rings_from_mask(mask), each, _LEAST_SHARE) for mask in masks if mask.any()]


def _codec(way: str, grid: tuple[int, int], points: int) -> AnswerCodec:
    box_bins, path_bins = grid
    if way == "simplified":
        return path_tokens.Codec(box_bins, path_bins, max_rings=points, max_vertices=points)
    return svg_path.Codec(
        box_bins, path_bins, max_rings=points, max_vertices=points, least_share=0.0, curves=way == "curved"
    )


def _reached(
    example: Example, instances: Sequence[Sequence[Ring]], codec: AnswerCodec, way: str, points: int
) -> tuple[float, float, float]:
    """(words, IoU, Boundary IoU) of an example written so."""
    height, width = example.image.height, example.image.width
    if way == "simplified":
        fewer = simplify([ring for rings in instances for ring in rings], points)
        ends = [0, *accumulate(map(len, instances))]
        instances = [fewer[first:end] for first, end in pairwise(ends)]
    text = codec.encode(instances, height, width)
    score = score_answer(codec.read(text, height, width), example.truth, example.id)
    return float(len(text.split())), score.iou, score.boundary_iou


def _summary(way: str, points: int, rows: Sequence[tuple[float, float, float]]) -> Reached:
    words, iou, boundary_iou = np.array(rows).T
    return Reached(way, points, float(words.mean()), mean_interval(iou), mean_interval(boundary_iou))


def table(found: Measured) -> Table:
    """A row for each number of points."""
    made = Table("points", *WAYS.values(), title="Mean IoU and Boundary IoU, words of text")
    for column in made.columns:
        column.justify = "right"
    for points in _budgets(found):
        made.add_row(str(points), *(_cell(one) for one in found.reached if one.points == points))
    made.caption = told(found)
    return made


def told(found: Measured) -> str:
    """What all rows are of."""
    rest = f", {found.left_out} of more instances than the fewest points hold left out" if found.left_out else ""
    return (
        f"{found.examples:,} examples of the split {found.split}{rest}; boxes on a grid of {found.box_bins}, paths of "
        f"{found.path_bins}"
    )


def _budgets(found: Measured) -> list[int]:
    return list(dict.fromkeys(one.points for one in found.reached))


def _cell(one: Reached) -> str:
    return f"{one.iou.value:.3f}, {one.boundary_iou.value:.3f}, {one.words:.0f}"


def write_points_page(out: Path, title: str, found: Measured) -> None:
    """Write tables and curves over words as a page."""
    reached = found.reached
    iou, boundary_iou = [one.iou.value for one in reached], [one.boundary_iou.value for one in reached]
    page = render_page(
        "points.html.j2",
        title=title,
        told=told(found),
        ways=WAYS,
        rows={number: [one for one in reached if one.points == number] for number in _budgets(found)},
        charts=[
            Chart("IoU", "mean IoU", _curves(reached, iou), x_label="words of text"),
            Chart("Boundary IoU", "mean Boundary IoU", _curves(reached, boundary_iou), x_label="words of text"),
        ],
    )
    write_page(out, page)


def _curves(found: Sequence[Reached], scores: Sequence[float]) -> Mapping[str, tuple[list[int], list[float]]]:
    """A score of each row over whole words, by way."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for one, score in sorted(zip(found, scores, strict=True), key=lambda pair: pair[0].words):
        words, values = curves.setdefault(WAYS[one.way], ([], []))
        words.append(round(one.words))
        values.append(score)
    return curves
