"""The trainings of the bench, seed by seed: supervision, RL from there, and refiners behind both where asked.

Steps are those that fit into the seconds asked for, by pilots of the first seed; the same for all seeds.

    OUT/seed-K/NAME-sft NAME-rl    ordinary runs of `sft` and `train`
    OUT/seed-K/NAME-sampled        answers of the supervised policy, for its refiner
    .../refined.json               beside a refiner: the seconds that it took
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from rl.bench.learning.arms import Training
from rl.bench.learning.trainings import ALIKE, command, finished
from rl.bench.representations.wanted import Representation, Wanted
from rl.config.load import save_settings
from rl.config.run import RunConfig
from rl.lab.ablate import locked
from rl.run.folder import RunFolder
from rl.run.parts import run_parts
from rl.run.preflight import preflight
from rollout.disk import replace_text

SFT, RL, SFT_REFINED, RL_REFINED = "sft", "rl", "sft_refined", "rl_refined"
STAGES = {
    SFT: "SFT",
    RL: "SFT, then RL",
    SFT_REFINED: "SFT, then a refiner",
    RL_REFINED: "SFT, RL, then a refiner",
}


@dataclass(frozen=True)
class Stage:
    """A policy, with a refiner behind it or without, and what it took."""

    representation: Representation
    stage: str
    """Key of STAGES."""
    seed: int
    config: RunConfig
    """How it is asked; its checkpoint is the policy."""
    seconds: float
    """Seconds of all steps up to here; of a refiner those of its processes, their start among them."""
    steps: int
    """Steps of the training that ended here; 0 for a refiner."""
    refiner: Path | None = None
    """Folder of the refiner."""


def train_all(wanted: Wanted, console: Console) -> Iterator[Stage]:
    """Every stage of every representation under every seed; what is finished is not done again.

    Raises ValueError for what is wrong with a config, ChildProcessError where a training fails.
    """
    with locked(wanted.out) as lock:
        pilots = {of: _supervised_pilot(wanted, of, lock, console) for of in wanted.representations}
        for seed in range(wanted.seeds):
            for of in wanted.representations:
                yield from _trained(wanted, of, seed, pilots[of], lock, console)


def _supervised_pilot(wanted: Wanted, of: Representation, lock: BinaryIO, console: Console) -> Training:
    """A few steps of supervision; what is wrong with the RL that is to follow shows here, too."""
    pilot = wanted.supervision(of, 0).pilot()
    finished(pilot, lock, console)
    config = wanted.run_config(of, 0, pilot.policy.resolve(), f"{wanted.out}/none")
    preflight(config, run_parts(config))
    return pilot


def _trained(  # what a seed needs
    wanted: Wanted, of: Representation, seed: int, pilot: Training, lock: BinaryIO, console: Console
) -> Iterator[Stage]:
    taught = wanted.supervision(of, seed, _steps(wanted.sft_seconds, pilot))
    spent = finished(taught, lock, console)
    _note_other_seconds(taught, wanted.sft_seconds, spent.seconds, console)
    policy = taught.policy.resolve()
    asked = wanted.run_config(of, seed, policy, f"{wanted.out}/seed-{seed}/{of.name}-sampled")
    yield _told(Stage(of, SFT, seed, asked, spent.seconds, spent.steps), console)
    first = wanted.supervision(of, 0).policy.resolve()
    rl_pilot = wanted.reinforcement(of, 0, first).pilot()
    finished(rl_pilot, lock, console)
    steps = _steps(wanted.rl_seconds, rl_pilot)
    learned = wanted.reinforcement(of, seed, policy, steps)
    more = finished(learned, lock, console)
    _note_other_seconds(learned, wanted.rl_seconds, more.seconds, console)
    assert isinstance(learned.config, RunConfig)
    after = replace(learned.config, policy=learned.config.policy | {"checkpoint": str(learned.policy.resolve())})
    reinforced = Stage(of, RL, seed, after, spent.seconds + more.seconds, more.steps)
    yield _told(reinforced, console)
    if of.name in wanted.refined:
        sampled = _refined_seconds(replace(asked, steps=steps), lock, console)
        yield _told(_refined(Stage(of, SFT_REFINED, seed, asked, spent.seconds + sampled, 0)), console)
        trained = _refined_seconds(learned.config, lock, console)
        yield _told(
            _refined(replace(reinforced, stage=RL_REFINED, seconds=reinforced.seconds + trained, steps=0)), console
        )


def _note_other_seconds(training: Training, asked: float, took: float, console: Console) -> None:
    """Say where a training took other seconds than it was to take, since its pilot's steps did."""
    if not ALIKE * asked < took < asked / ALIKE:
        console.print(
            f"note: {training.folder} took {took:.0f} s in place of {asked:.0f}, since its steps were slower or faster "
            "than those of its pilot; for equal seconds use a quiet machine and another --out",
            markup=False,
            soft_wrap=True,
        )


def _refined(stage: Stage) -> Stage:
    return replace(stage, refiner=RunFolder(Path(stage.config.run)).refiner)


def _steps(seconds: float, pilot: Training) -> int:
    return max(1, round(seconds / pilot.step_seconds))


def _refined_seconds(config: RunConfig, lock: BinaryIO, console: Console) -> float:
    """Make the refiner of a run, of answers sampled for it where there are none; the seconds that both took."""
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    spent = folder / "refined.json"
    before = json.loads(spent.read_text()) if spent.exists() else {"seconds": 0.0, "done": False}
    if before["done"]:
        return float(before["seconds"])
    started, done = time.monotonic(), False
    try:
        _refine(RunFolder(folder), config, lock, console)
        done = True
    finally:  # the seconds of a part that was stopped count as well
        seconds = float(before["seconds"]) + time.monotonic() - started
        replace_text(spent, json.dumps({"seconds": seconds, "done": done}) + "\n")
    return seconds


def _refine(run: RunFolder, config: RunConfig, lock: BinaryIO, console: Console) -> None:
    asked = run.path / "asked.yaml"
    if not asked.exists():
        save_settings(config, asked)
    if not run.has_trained:
        begun = (run.path / "archive").exists()
        command(["sample", str(asked), *(["--resume"] if begun else [])], run.path, lock, console)
    if not run.has_refiner:
        command(["refine", str(run.path)], run.path, lock, console)


def _told(stage: Stage, console: Console) -> Stage:
    console.print(
        f"seed {stage.seed}, {stage.representation.name}, {STAGES[stage.stage]}: {stage.seconds:.0f} s in all",
        markup=False,
        highlight=False,
    )
    return stage
