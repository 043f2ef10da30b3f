"""compare.html: reward configs over the same answers, in numbers and in pictures of the answers they disagree on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from envs.contours import rings_from_mask
from envs.polygons import Answer
from rl.agreement import DirectionSums, Disagreement
from rl.asked import Asked, asked_examples
from rl.compare_rewards import FEATURES, ComparedRewards
from rl.page import render_page, write_page
from rl.pictures import COLOURS, svg_overlay
from rollout.archive import RolloutArchive
from rollout.records import ANSWER_COLUMNS, answer_from_row


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
    asked = asked_examples(found.run, {answer.example_id for answer in shown})
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
    shown: Disagreement, names: tuple[str, str], answers: Mapping[tuple[int, int, int], Answer], asked: Asked
) -> _Picture:
    answer = answers[shown.step, shown.position, shown.index]
    outline = [ring for mask in asked.truth.masks for ring in rings_from_mask(mask)]
    title = f"Step {shown.step}, group {shown.position}, answer {shown.index}: “{asked.phrase}”"
    svg = svg_overlay(asked.image, answer.rings_px, COLOURS["rl"], title, outline=outline)
    note = f"{answer.num_vertices} vertices" if answer.rings_px else answer.status.replace("_", " ")
    note += ", image not found" if asked.problem else ""
    sides = tuple(zip(names, shown.totals, shown.advantages, strict=True))
    return _Picture(Markup(svg), asked.phrase, note, sides)


def _answers(archive: RolloutArchive, shown: Iterable[Disagreement]) -> dict[tuple[int, int, int], Answer]:
    """The answers to show, by step, position and index."""
    wanted = {(answer.step, answer.position, answer.index) for answer in shown}
    columns, steps = ["step", "position", "index", *ANSWER_COLUMNS], {step for step, _, _ in wanted}
    found: dict[tuple[int, int, int], Answer] = {}
    for batch in archive.rollouts(columns, steps):
        keys = list(zip(*(batch.column(name).to_pylist() for name in columns[:3]), strict=True))
        found |= {
            key: answer_from_row(batch.slice(place, 1).to_pylist()[0])
            for place, key in enumerate(keys)
            if key in wanted
        }
    return found
