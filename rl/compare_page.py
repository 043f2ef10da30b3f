"""compare.html: reward configs over the same answers, in numbers and in pictures of the answers they disagree on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from envs.contours import rings_from_mask
from envs.example import Env, ImageRef, Truth
from envs.polygons import Answer
from rl.agreement import DirectionSums, Disagreement
from rl.compare_rewards import FEATURES, ComparedRewards
from rl.page import render_page, write_page
from rl.pictures import COLOURS, svg_overlay
from rl.settings import plugin_from_settings, read_mapping
from rollout.archive import RolloutArchive
from rollout.records import ANSWER_COLUMNS, answer_from_row, truth_from_row

_GREY = 128


@dataclass(frozen=True)
class _Asked:
    """An example of the archive, with its image."""

    phrase: str
    image: NDArray[np.uint8]
    """[H, W, 3]; plain grey where the image is not to be had any more."""
    found: bool
    """Whether it is the image."""
    truth: Truth


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
    write_page(path, render(found))


def render(found: ComparedRewards) -> str:
    """The page as HTML text."""
    shown = [
        answer
        for pair in found.pairs.values()
        for sums in (pair.first_only, pair.second_only)
        for answer in sums.largest
    ]
    answers = _answers(RolloutArchive(found.run / "archive"), shown)
    asked = _examples(found.run, {answer.example_id for answer in shown})
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
    shown: Disagreement, names: tuple[str, str], answers: Mapping[tuple[int, int, int], Answer], asked: _Asked
) -> _Picture:
    answer = answers[shown.step, shown.position, shown.index]
    outline = [ring for mask in asked.truth.masks for ring in rings_from_mask(mask)]
    title = f"Step {shown.step}, group {shown.position}, answer {shown.index}: “{asked.phrase}”"
    svg = svg_overlay(asked.image, answer.rings_px, COLOURS["rl"], title, outline=outline)
    note = f"{answer.num_vertices} vertices" if answer.rings_px else answer.status.replace("_", " ")
    note += "" if asked.found else ", image not found"
    sides = tuple(zip(names, shown.totals, shown.advantages, strict=True))
    return _Picture(Markup(svg), asked.phrase, note, sides)


def _answers(archive: RolloutArchive, shown: Iterable[Disagreement]) -> dict[tuple[int, int, int], Answer]:
    """The answers to show, by step, position and index."""
    wanted = {(answer.step, answer.position, answer.index) for answer in shown}
    columns, steps = ["step", "position", "index", *ANSWER_COLUMNS], {step for step, _, _ in wanted}
    found: dict[tuple[int, int, int], Answer] = {}
    for batch in archive.rollouts(columns, steps):
        keys = list(zip(*(batch.column(name).to_pylist() for name in columns[:3]), strict=True))
        found |= {key: answer_from_row(_row(batch, place)) for place, key in enumerate(keys) if key in wanted}
    return found


def _examples(run: Path, ids: set[str]) -> dict[str, _Asked]:
    """The examples of these ids, with their images."""
    if not ids:
        return {}
    plugin = plugin_from_settings("envs", "Env", read_mapping(run / "config.yaml")["env"], "env", ["split"])
    envs: dict[str, Env] = {}
    found = {}
    for batch in RolloutArchive(run / "archive").examples():
        places = [place for place, example_id in enumerate(batch.column("example_id").to_pylist()) if example_id in ids]
        for row in (_row(batch, place) for place in places):
            if row["split"] not in envs:
                envs[row["split"]] = plugin.build(split=row["split"])
            found[row["example_id"]] = _asked(row, envs[row["split"]])
    return found


def _row(batch: pa.RecordBatch, place: int) -> dict[str, Any]:
    return batch.slice(place, 1).to_pylist()[0]


def _asked(row: Mapping[str, Any], env: Env) -> _Asked:
    ref = ImageRef(*(row[key] for key in ("image_key", "image_sha256", "height", "width")))
    try:
        image, found = env.image(ref), True
    except (ValueError, OSError):  # the numbers and outlines are worth showing without it
        image, found = np.full((ref.height, ref.width, 3), _GREY, np.uint8), False
    return _Asked(row["prompt"], image, found, truth_from_row(row))
