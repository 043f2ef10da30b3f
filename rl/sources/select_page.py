"""A selection as a page: the funnel, mean against spread of every example, and a few of them with their answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray
from rich.console import Console

from envs.datasets.base import Env
from envs.example import ImageRef
from envs.geometry.contours import rings_from_mask
from envs.polygons import AnswerStatus
from rl.pages.charts import Scatter
from rl.pages.page import render_page, write_page
from rl.pages.pictures import COLOURS, svg_overlay
from rl.pages.progress import bar
from rl.sources.difficulty import Choice
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import ANSWER_COLUMNS, answer_from_row, truth_from_row

_MOST_DOTS = 1500
_KEPT_SHOWN, _DROPPED_SHOWN, _ANSWERS_SHOWN, _ANSWERS_READ = 6, 2, 4, 64
_GREY = 128


@dataclass(frozen=True)
class Shown:
    """An example of the page, as it was asked."""

    row: Mapping[str, Any]
    """Row of the examples table."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB; grey where it is not to be had any more."""
    numbers: str
    """What its answers came to, in words."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Rows of some answers."""

    @property
    def phrase(self) -> str:
        """What was asked."""
        return str(self.row["prompt"])

    @property
    def example_id(self) -> str:
        """Id of the example, and what its answers came to."""
        return f"{self.row['example_id']}: {self.numbers}"


@dataclass(frozen=True)
class Figure:
    """One answer over its image."""

    svg: Markup
    title: str
    note: str
    stage: str = "rl"
    """Stage whose colour the answer has."""


def write_selection_page(
    out: Path, choice: Choice, env: Env, runs: Sequence[Path], steps: range | None, console: Console
) -> None:
    """Write the page. Images come from `env`; the archives are read once more for the answers that are shown."""
    sections = _sections(choice)
    ids = [choice.difficulties.ids[place] for _, places in sections for place in places]
    shown = _shown(choice, env, runs, set(ids))
    _add_answers(shown, choice.thresholds.by, runs, steps, console)
    page = render_page(
        "select.html.j2",
        title=", ".join(run.name for run in runs),
        choice=choice,
        quantiles=choice.quantiles(),
        chart=_scatter(choice),
        num_dots=min(_MOST_DOTS, len(choice.difficulties.ids)),
        sections=[(name, [shown[choice.difficulties.ids[place]] for place in places]) for name, places in sections],
        figures=lambda one: _figures(one, choice.thresholds.by),
        colours=COLOURS,
    )
    write_page(out, page)


def _sections(choice: Choice) -> list[tuple[str, list[int]]]:
    """What is shown: some kept examples, then some that each stage dropped."""
    found = [("Kept", _spread_over(choice.kept, choice, _KEPT_SHOWN))]
    for stage in range(1, len(choice.stages)):
        dropped = choice.dropped_by(stage)
        if len(dropped):
            name = f"Dropped: not “{choice.stages[stage].name}”"
            found.append((name, _spread_over(dropped, choice, _DROPPED_SHOWN)))
    return found


def _spread_over(places: NDArray[np.int64], choice: Choice, most: int) -> list[int]:
    """At most so many of the examples, evenly spread over their means."""
    ordered = places[np.argsort(choice.difficulties.mean[places], kind="stable")]
    return [int(ordered[k]) for k in _evenly(len(ordered), most)]


def _evenly(num: int, most: int) -> list[int]:
    """At most `most` of the places 0 .. num - 1, the first and the last among them."""
    return sorted(set(np.linspace(0, num - 1, min(num, most)).round().astype(int).tolist()))


def _shown(choice: Choice, env: Env, runs: Sequence[Path], ids: set[str]) -> dict[str, Shown]:
    """The examples of these ids, as the archives hold them."""
    place_of = {name: place for place, name in enumerate(choice.difficulties.ids) if name in ids}
    shown: dict[str, Shown] = {}
    for run in runs:
        for batch in RolloutArchive(run / "archive").examples():
            for row in _rows_of(batch, ids):
                name = row["example_id"]
                if name not in shown:
                    shown[name] = Shown(row, _image(env, row), _numbers(choice, place_of[name]))
    return shown


def _rows_of(batch: pa.RecordBatch, ids: set[str]) -> Iterator[dict[str, Any]]:
    """The rows of these examples; only they become Python objects."""
    yield from batch.filter(pc.is_in(batch["example_id"], value_set=pa.array(sorted(ids), pa.string()))).to_pylist()


def _image(env: Env, row: Mapping[str, Any]) -> NDArray[np.uint8]:
    ref = ImageRef(row["image_key"], row["image_sha256"], row["height"], row["width"])
    try:
        return env.image(ref)
    except (ValueError, OSError):  # of a dropped example: nothing depends on it, and numbers are worth showing
        return np.full((ref.height, ref.width, 3), _GREY, np.uint8)


def _numbers(choice: Choice, place: int) -> str:
    found = choice.difficulties
    told = f"mean {found.mean[place]:.3f}, spread {found.spread[place]:.3f}, {found.answers[place]:,} answers"
    unreadable = found.unreadable[place]
    return f"{told}, {unreadable:.0%} unreadable" if unreadable else told


def _add_answers(
    shown: Mapping[str, Shown], by: str, runs: Sequence[Path], steps: range | None, console: Console
) -> None:
    """Give each example a few of its answers, evenly from the worst to the best of the first ones."""
    columns = [*dict.fromkeys(["example_id", "iou", by, *ANSWER_COLUMNS])]
    for run in runs:
        archive = RolloutArchive(run / "archive")
        for batch in bar(archive.rollouts(columns, steps), f"pictures of {run.name}", console):
            for row in _rows_of(batch, set(shown)):
                if len(held := shown[row["example_id"]].answers) < _ANSWERS_READ:
                    held.append(row)
    for one in shown.values():
        ordered = sorted(one.answers, key=lambda row: row[by] or 0.0)
        one.answers[:] = [ordered[k] for k in _evenly(len(ordered), _ANSWERS_SHOWN)]


def _figures(one: Shown, by: str) -> list[Figure]:
    truth = [ring for mask in truth_from_row(one.row).masks for ring in rings_from_mask(mask)]
    figures = []
    for row in one.answers:
        readable = AnswerStatus(row["status"]).valid
        title = f"IoU {row['iou'] if readable else 0.0:.3f}"
        other = "" if by == "iou" or row[by] is None else f"{by.removeprefix('reward_')} {row[by]:.3f}"
        note = ", ".join(part for part in (other, "" if row["status"] == "ok" else row["status"]) if part)
        svg = svg_overlay(
            one.image, answer_from_row(row).rings_px, COLOURS["rl"], f"“{one.phrase}”, {title}", outline=truth
        )
        figures.append(Figure(Markup(svg), title, note.replace("_", " ")))
    return figures


def _scatter(choice: Choice) -> Scatter:
    """Mean and spread of the examples, of a seeded sample where they are many; drawn last is what is kept."""
    found, asked = choice.difficulties, choice.thresholds
    drawn = np.sort(np.random.default_rng(0).permutation(len(found.ids))[:_MOST_DOTS])
    kept = choice.stages[-1].kept
    dots = {
        name: [(float(found.mean[k]), float(found.spread[k]), f"{found.ids[k]}: {_numbers(choice, k)}") for k in which]
        for name, which in (("dropped", drawn[~kept[drawn]]), ("kept", drawn[kept[drawn]]))
    }
    return Scatter(
        title="Every dot an example",
        x_label=f"mean {asked.number} of its answers",
        y_label="spread",
        dots=dots,
        x_lines=(asked.min_mean, asked.max_mean),
        y_lines=(asked.min_spread,),
    )
