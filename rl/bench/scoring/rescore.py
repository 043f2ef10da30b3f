"""`polytrace bench rescore`: archived answers rescored per second, of archives made for it, masks decoded each time."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.raster import fill
from envs.polygons import answer_from_rings
from policies.families.base import Response
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.bench.outlines import smooth
from rl.config.load import find_config
from rl.config.rewards import load_rewards
from rl.lab.score import rescore_run
from rl.run.steps import group_terms, with_totals
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout

BARS = {(64, 64): 50_000.0, (480, 640): 10_000.0}
"""Answers a second of one core that we mean to reach, by height and width of the images."""
_STEPS, _GROUPS, _ANSWERS = 40, 32, 8
_VERTICES = {(64, 64): 12, (480, 640): 32}


@dataclass(frozen=True)
class Rescoring:
    """One archive rescored."""

    height: int
    width: int
    vertices: int
    """Vertices of each answer."""
    answers: int
    per_second: float
    """Median of the rounds."""
    identical: bool
    """Whether the archived rewards came out again, to the last bit."""


def write_archive(run: Path, height: int, width: int) -> None:
    """In the folder `run`, an archive of random answers under the rewards of the config `demo`, and its config.yaml."""
    rng, parts = np.random.default_rng(0), load_rewards(Path("tiny"))
    scorer, shaper, archive = Scorer(parts.recipes), parts.shaper(), RolloutArchive(run / "archive")
    for step in range(_STEPS):
        groups = [_group(rng, scorer, step, position, height, width) for position in range(_GROUPS)]
        archive.append(step, with_totals(groups, shaper.totals(step, group_terms(groups))))
    (run / "config.yaml").write_text(find_config(Path("tiny")).read_text())


def _group(rng: np.random.Generator, scorer: Scorer, step: int, position: int, height: int, width: int) -> Group:
    num = _VERTICES[height, width]
    mask = fill(smooth(rng, 40, height, width), np.array([0, 40]), height, width)
    answers = [answer_from_rings([smooth(rng, num, height, width)]) for _ in range(_ANSWERS)]
    example = _example(f"bench/{step}/{position}", mask)
    compared = compare(answers, Target.from_truth(example.truth))
    response = Response(np.arange(2 * num + 5), np.zeros(2 * num + 5, np.float32), "stop")
    columns = scorer.columns(compared)
    terms = [{name: column[k] for name, column in columns.items()} for k in range(_ANSWERS)]
    rollouts = tuple(
        Rollout(k, response, "", one.answer, one.intersection_px, one.answer_area_px, one.iou, terms[k], step, k)
        for k, one in enumerate(compared)
    )
    return Group("bench", step, position, example, np.arange(70), "0" * 64, 1.0, rollouts)


def _example(name: str, mask: NDArray[np.bool_]) -> Example:
    image = ImageRef(name, "0" * 64, *mask.shape)
    return Example(name, image, Prompt.of_text("the thing"), Truth(mask[None]), "train", "drawn for a bench", "CC0-1.0")


def bench(rounds: int = 5) -> list[Rescoring]:
    """Make and rescore an archive of each size."""
    found = []
    for height, width in BARS:
        with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
            write_archive(Path(folder), height, width)
            once = [rescore_run(Path(folder), None, None, Console(quiet=True)) for _ in range(rounds)]
        speed = float(np.median([one.answers / one.seconds for one in once]))
        identical = all(one.identical for one in once)
        found.append(Rescoring(height, width, _VERTICES[height, width], once[0].answers, speed, identical))
    return found


def table(found: list[Rescoring]) -> Table:
    """A row a size."""
    made = Table(title="Archived answers rescored per second, one core", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("pixels", "vertices", "answers", "a second", "bar", "to the last bit"):
        made.add_column(column, justify="right")
    for one in found:
        size, bar = f"{one.height}x{one.width}", BARS[one.height, one.width]
        speeds = f"{one.per_second:,.0f}", f"{bar:,.0f}"
        made.add_row(size, f"{one.vertices}", f"{one.answers:,}", *speeds, "yes" if one.identical else "NO")
    return made
