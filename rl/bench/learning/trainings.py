"""The trainings of the bench, one child process of the command after another; what is finished is not done again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from rl.bench.learning.arms import RL, SFT, Arm, Spent, Training, Wanted, planned, rl_sft
from rl.config.run import RunConfig
from rl.lab.ablate import locked, polytrace, running
from rl.run.parts import run_parts
from rl.run.preflight import preflight
from rl.supervised.teacher import refuse_unfit_teaching

_TAIL_LINES = 15
ALIKE = 0.85
"""Least ratio of two seconds that count as the same."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    training: Training
    spent: Spent

    @property
    def arm(self) -> Arm:
        """Which arm it was."""
        return self.training.arm

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.training.config.seed


@dataclass(frozen=True)
class LeftOut:
    """An arm that cannot be had, since the data lacks outlines for it."""

    arm: Arm
    why: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.arm.title} is left out: {self.why}"


def left_out(wanted: Wanted) -> list[LeftOut]:
    """The arms that cannot be had since the data has no outlines, with the reason; the others fit.

    Raises ValueError or FileNotFoundError for what is wrong with the config, before anything starts.
    """
    config = wanted.base(0)
    parts = run_parts(config)
    preflight(config, parts)
    beside = planned(wanted, rl_sft(wanted.sft_weight), 0)
    assert isinstance(beside.config, RunConfig)
    everywhere = replace(beside.config, outlines=replace(config.outlines, scenes=None))
    for taught, arms in ((everywhere, (SFT, beside.arm)), (beside.config, (beside.arm,))):
        try:
            refuse_unfit_teaching(taught, parts)
        except ValueError as error:
            return [LeftOut(arm, str(error)) for arm in arms if arm in wanted.arms]
    return []


def train_all(wanted: Wanted, without: Sequence[LeftOut], console: Console) -> Iterator[Trained]:
    """Every arm under every seed, seed by seed, RL first: the others get as many steps as its seconds allow.

    without: arms that are not trained. Raises ChildProcessError where a training fails, with the end of
    what it said.
    """
    arms = [arm for arm in wanted.arms if arm not in [one.arm for one in without]]
    with locked(wanted.out) as lock:
        for seed in range(wanted.seeds):
            # Pilots first, so that what is wrong with an arm shows before RL has taken its time.
            pilots = {arm: planned(wanted, arm, seed).pilot() for arm in arms if arm != RL}
            for pilot in pilots.values():
                finished(pilot, lock, console)
            first = planned(wanted, RL, seed)
            spent = finished(first, lock, console)
            yield _told(Trained(first, spent), spent.seconds, console)
            for arm, pilot in pilots.items():
                training = planned(wanted, arm, seed, max(1, round(spent.seconds / pilot.step_seconds)))
                yield _told(Trained(training, finished(training, lock, console)), spent.seconds, console)


def finished(training: Training, lock: BinaryIO, console: Console) -> Spent:
    """What it took, once it is finished: begun, gone on with, or only looked up.

    Raises ValueError where its folder holds a training that was asked otherwise, ChildProcessError where it fails.
    """
    training.refuse_other_settings()
    if (spent := training.spent) is not None:
        return spent
    arguments = training.begin()
    log = training.folder / "log.txt"
    console.print(f"{training.folder}: {training.steps} steps begin, see {log}", markup=False, highlight=False)
    command(arguments, training.folder, lock, console)
    return training.finish()


def command(arguments: Sequence[str], folder: Path, lock: BinaryIO, console: Console) -> None:
    """Run `polytrace ARGUMENTS` to its end, what it says appended to FOLDER/log.txt.

    Raises ChildProcessError where it fails, with the end of what it said.
    """
    log = folder / "log.txt"
    with polytrace(arguments, log, lock) as process, console.status(f"{arguments[0]}: {folder}"):
        for _ in running(process):
            pass
    if process.returncode:
        said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise ChildProcessError(f"{folder} ended with status {process.returncode}; it said:\n{said}")


def _told(trained: Trained, seconds: float, console: Console) -> Trained:
    """What was trained, once it is said, and whether it took as long as RL did."""
    arm, spent, seed = trained.arm, trained.spent, trained.seed
    console.print(
        f"seed {seed}, {arm.title}: {spent.steps} steps in {spent.seconds:.0f} s", markup=False, highlight=False
    )
    if not ALIKE * seconds < spent.seconds < seconds / ALIKE:
        console.print(
            f"note: that is not the {seconds:.0f} s of RL, since the pilot's steps took other times; remove "
            f"{trained.training.folder} and {trained.training.folder}-pilot, and run again on a quiet machine",
            markup=False,
            soft_wrap=True,
        )
    return trained
