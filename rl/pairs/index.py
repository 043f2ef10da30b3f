"""From runs to pairs.parquet, the index of the pairs: the same way for a refiner and for an export.

In order: the runs opened and checked, what is held out, the answers chosen, a choice of nothing refused, every image of
the pairs looked at; only then the index is written, pair by pair.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from envs.datasets.base import Env
from envs.example import ImageRef
from envs.geometry.rle import rle_from_rings
from envs.plugin import Plugin
from envs.polygons import flatten_rings
from rl.config.load import read_mapping, settings_from
from rl.config.pairs import DamageSettings, PairRule
from rl.config.plugins import env_plugin
from rl.config.run import EvaluationSettings
from rl.pages.progress import bar
from rl.pairs.damage import damage_alone, with_damage
from rl.pairs.select import Choice, Pair, choose
from rl.pairs.shortlist import NOTHING_HELD_OUT, PLACE_COLUMNS, HeldOut
from rollout.archive.archive import RolloutArchive
from rollout.disk import whole_file


@dataclass(frozen=True)
class PairRun:
    """A run with an archive."""

    name: str
    """Name of the run's folder, by which pairs name their run."""
    folder: Path
    archive: RolloutArchive
    last_step: int
    """Last step in the archive."""
    env: Plugin
    """Source of the images."""
    evaluation: EvaluationSettings
    """Which held-out examples the run reports on."""

    def training_env(self) -> Env:
        """The Env of the training split."""
        env: Env = self.env.build(split="train")
        return env


@dataclass(frozen=True)
class HeldOutSplit:
    """How much of one split of a run was barred."""

    run: str
    split: str
    examples: int
    """Examples whose ids and images no pair has."""
    of: int
    """Examples that the split has in all."""


def open_runs(folders: Sequence[Path], unfinished: bool) -> list[PairRun]:
    """The runs in these folders.

    unfinished: take also what a run has archived that is still going on, or was stopped. Raises FileNotFoundError or
    ValueError that names the folder and what to do.
    """
    runs = [_open_run(folder, unfinished) for folder in folders]
    for k, run in enumerate(runs):
        for other in runs[:k]:
            if other.name == run.name:
                raise ValueError(
                    f"{other.folder} and {run.folder} are both called {run.name}, and pairs name their run by its "
                    "folder; rename one of them."
                )
    return runs


def _open_run(folder: Path, unfinished: bool) -> PairRun:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of a run, such as runs/demo.")
    archive = RolloutArchive(folder / "archive")
    last_step = archive.last_step
    if last_step is None:
        raise FileNotFoundError(f"No archive in {folder}/archive; give the folder of a run that has made a step.")
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.yaml, which says where its images come from (`env`); copy it from the run."
        )
    settings = read_mapping(config)
    if not unfinished:
        _refuse_unfinished(folder, archive, last_step, settings)
    env = env_plugin(settings.get("env", {}), f"{config}: env")
    evaluation = settings_from(EvaluationSettings, settings.get("evaluation", {}), f"{config}: evaluation")
    return PairRun(folder.absolute().name, folder, archive, last_step, env, evaluation)


def _refuse_unfinished(folder: Path, archive: RolloutArchive, last_step: int, settings: dict[str, Any]) -> None:
    """Raise where a run has not reached its last step, or a process has its archive open for writing."""
    steps = settings.get("steps", 0)
    advice = "wait for it, or go on with it by `polytrace train --resume`; unfinished=true takes what is there"
    if last_step + 1 < steps:
        raise ValueError(
            f"{folder} holds {last_step + 1} of {steps} steps: it is still being written, or was stopped; {advice}."
        )
    if archive.being_written:
        raise ValueError(f"{folder} is being written by another process; {advice}.")
    if partial := sorted(folder.glob("archive/*/.*.partial")):
        raise ValueError(f"{partial[0]} is being written, or was left by a write that was interrupted; {advice}.")


def held_out_of(
    runs: Sequence[PairRun], num_examples: int | None, console: Console
) -> tuple[HeldOut, list[HeldOutSplit]]:
    """What no pair may come from: examples of the splits that the runs choose and report by.

    num_examples: how many of each split, from the first on, but at least those that the run evaluates; None for all.
    """
    held_out, splits, seen = NOTHING_HELD_OUT, list[HeldOutSplit](), list[tuple[Plugin, str, int]]()
    for run in runs:
        evaluation = run.evaluation
        evaluated = {"validation": evaluation.num_scenes}
        if evaluation.final_split != "train":
            evaluated[evaluation.final_split] = max(evaluation.final_scenes, evaluated.get(evaluation.final_split, 0))
        for split, least in evaluated.items():
            env: Env = run.env.build(split=split)
            num = len(env) if num_examples is None else min(len(env), max(num_examples, least))
            if (run.env, split, num) not in seen:
                console.print(f"keeping out ids and images of {num:,} of {len(env):,} examples of split {split}")
                held_out = held_out.with_examples(env, num)
                seen.append((run.env, split, num))
            splits.append(HeldOutSplit(run.name, split, num, len(env)))
    return held_out, splits


def training_envs(runs: Sequence[PairRun]) -> dict[str, Env]:
    """The Env of each run by its name; runs over the same data share one."""
    envs: dict[str, Env] = {}
    for k, run in enumerate(runs):
        same = [other for other in runs[:k] if other.env == run.env]
        envs[run.name] = envs[same[0].name] if same else run.training_env()
    return envs


_SHOWN_FAILURES = 3


@dataclass(frozen=True)
class PairSet:
    """The pairs of one index, as they are asked for."""

    rule: PairRule
    damage: DamageSettings
    may_be_empty: bool = False
    """Whether a rule that keeps no answer is no mistake."""


@dataclass(frozen=True)
class ChosenPairs:
    """The pairs of one index, chosen and their images looked at; nothing of them is written yet."""

    asked: PairSet
    choice: Choice
    archives: Sequence[RolloutArchive]
    held_out: HeldOut
    splits: Sequence[HeldOutSplit]
    """Splits that the pairs were kept apart from."""

    @property
    def empty(self) -> bool:
        """Whether the index would hold nothing."""
        return not len(self.choice) and not self.asked.damage.per_example

    def write(self, path: Path, console: Console) -> int:
        """Write the index, whole or not at all; returns the number of pairs.

        First the pairs of the choice, a share of them damaged, then those that are damage alone.
        """
        rule, damage = self.asked.rule, self.asked.damage
        alone = damage_alone(self.archives, damage, rule, self.held_out)
        chosen = bar(with_damage(self.choice, damage, rule), "pairs", console, len(self.choice))
        return write_index(path, chain(chosen, bar(alone, "damaged masks", console)))


def choose_pairs(
    runs: Sequence[PairRun],
    wanted: Sequence[PairSet],
    held_out_examples: int | None,
    envs: Mapping[str, Env],
    console: Console,
) -> list[ChosenPairs]:
    """Choose the pairs of some sets, in their order, and look at all images, before anything is written.

    held_out_examples: see `held_out_of`. envs: of the training split, by run. Raises ValueError where a rule keeps
    nothing, two runs disagree about an image, or an image is gone or another one than was answered about.
    """
    archives = [run.archive for run in runs]
    held_out, splits = held_out_of(runs, held_out_examples, console)
    found = [
        ChosenPairs(asked, choose(archives, asked.rule, held_out, console), archives, held_out, splits)
        for asked in wanted
    ]
    for one in found:
        if one.empty and not one.asked.may_be_empty:
            raise ValueError(_nothing_kept(runs, one))
    for one in found:
        _refuse_other_images(one.choice, envs, console)
    return found


def _nothing_kept(runs: Sequence[PairRun], chosen: ChosenPairs) -> str:
    report = chosen.choice.report
    counts = {reason: num for reason, num in report.left_out.items() if num}
    return (
        f"{chosen.asked.rule} keeps none of the {report.answers} answers in {', '.join(run.name for run in runs)} "
        f"({counts}); widen the rule, or train for longer."
    )


def _refuse_other_images(choice: Choice, envs: Mapping[str, Env], console: Console) -> None:
    """Raise ValueError where images of the pairs are missing or have changed, naming the first few."""
    failures, last = list[str](), ""
    for pair in bar(choice.pairs(), "images", console, len(choice)):
        if pair.image_sha256 == last:
            continue
        last = pair.image_sha256
        try:
            envs[pair.run].image(pair.image)
        except (ValueError, OSError) as error:
            failures.append(f"{pair.example_id}: {error}")
    if failures:
        shown = "; ".join(failures[:_SHOWN_FAILURES])
        raise ValueError(
            f"{len(failures)} images of the chosen pairs are gone or are not those of the archive ({shown}); restore "
            "them, then try again."
        )


PAIR_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt", pa.string()),
        ("image_key", pa.string()),
        ("image_sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("coarse_rle", pa.string()),
        ("true_rle", pa.string()),
        ("ignore_rle", pa.string()),
        ("iou", pa.float64()),
        ("boundary_iou", pa.float64()),
        ("damage", pa.string()),
        ("box_px", pa.list_(pa.float64())),
        ("run", pa.string()),
        *((name, pa.int64()) for name in (*PLACE_COLUMNS, "policy_version")),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Columns of pairs.parquet: the fields of Pair, its coarse mask as COCO RLE, and its box."""

INDEX = "pairs.parquet"
"""Name of the index: every pair, its masks as COCO RLE and its image by reference."""

_ROWS_AT_ONCE = 256
_ROWS_PER_GROUP = 1024


def _pair_row(pair: Pair) -> dict[str, object]:
    """The row of a pair in the index."""
    coarse = rle_from_rings(*flatten_rings(pair.coarse_rings), pair.height, pair.width)
    made = {"coarse_rle": coarse, "box_px": pair.box_px}
    fields = vars(pair)
    return {name: made[name] if name in made else fields[name] for name in PAIR_SCHEMA.names}


def index_rows(path: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of an index from number `first` on, in bounded memory; row groups before it are not read."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            num = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group).slice(first) if first < num else pa.table({})
            for batch in rows.to_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
            first = max(0, first - num)


def write_index(path: Path, pairs: Iterable[Pair]) -> int:
    """Write the index of some pairs, whole or not at all; returns their number."""
    num, left = 0, iter(pairs)
    with whole_file(path, lasting=True) as partial, pq.ParquetWriter(partial, PAIR_SCHEMA, compression="zstd") as file:
        while rows := [_pair_row(pair) for pair in islice(left, _ROWS_PER_GROUP)]:
            file.write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA))
            num += len(rows)
    return num


def row_image(envs: Mapping[str, Env], row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of a row's image; raises ValueError or OSError where it is another one, or gone."""
    ref = ImageRef(row["image_key"], row["image_sha256"], row["height"], row["width"])
    return envs[row["run"]].image(ref)
