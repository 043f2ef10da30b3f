"""The runs that pairs come from: opened and checked before anything is read at length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.example import Env
from envs.plugin import Plugin
from rl.config import EvaluationSettings
from rl.pair_examples import NOTHING_HELD_OUT, HeldOut
from rl.settings import plugin_from_settings, read_mapping, settings_from
from rollout.archive import RolloutArchive


@dataclass(frozen=True)
class PairRun:
    """A run with an archive."""

    name: str
    """Of its folder; pairs name their run by it."""
    folder: Path
    archive: RolloutArchive
    last_step: int
    """The last one in the archive."""
    env: Plugin
    """Where its images come from."""
    evaluation: EvaluationSettings
    """Which held-out examples it reports on."""

    def training_env(self) -> Env:
        """The Env of the training split."""
        env: Env = self.env.build(split="train")
        return env


@dataclass(frozen=True)
class HeldOutSplit:
    """What of one split of a run was barred."""

    run: str
    split: str
    examples: int
    """Whose ids and images no pair has."""
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
    env = plugin_from_settings("envs", "Env", settings.get("env", {}), f"{config}: env", ["split"])
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
    runs: Sequence[PairRun], num_examples: int | None, console: Console | None = None
) -> tuple[HeldOut, list[HeldOutSplit]]:
    """What no pair may come from: examples of the splits that the runs choose and report by.

    num_examples: of each split, from the first on, but at least those that the run evaluates; None for all of them.
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
                if console is not None:
                    console.print(f"keeping out ids and images of {num:,} of {len(env):,} examples of split {split}")
                held_out = held_out.with_examples(env, num)
                seen.append((run.env, split, num))
            splits.append(HeldOutSplit(run.name, split, num, len(env)))
    return held_out, splits
