"""The folder of a run: what lies in it, and whether a run may begin or go on there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.config.load import load_settings, override_of, save_settings
from rl.config.run import RunConfig
from rl.run.checkpoints import BestPolicy, Checkpoints
from rl.run.data import RunData
from rollout.archive.archive import RolloutArchive

_TRAIN_FIRST = "train it first (polytrace train)"


@dataclass(frozen=True)
class RunFolder:
    """A folder with config.yaml, data.json, archive/, and, of a training run, checkpoints/ and refiner/."""

    path: Path

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The run's own config.yaml, with some settings changed; its `run` is this folder, wherever it was made."""
        return load_settings(RunConfig, self.path / "config.yaml", [override_of("run", self.path), *overrides])

    def archive(self) -> RolloutArchive:
        """The archive of the run's rollouts."""
        return RolloutArchive(self.path / "archive")

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        """The checkpoints of the run, of which the last `keep` stay when another is saved."""
        return Checkpoints(self.path, keep)

    def best_policy(self, advice: str = _TRAIN_FIRST) -> BestPolicy:
        """The policy with the best greedy gIoU on validation so far.

        Raises FileNotFoundError where there is none; advice: what to do then.
        """
        best = self.checkpoints().best
        if best is None:
            raise FileNotFoundError(f"{self.path} holds no best policy; {advice}.")
        return best

    @property
    def refiner(self) -> Path:
        """Folder of the run's own refiner, which need not be there."""
        return self.path / "refiner"

    @property
    def has_refiner(self) -> bool:
        """Whether the run's own refiner is made and judged."""
        return (self.refiner / "summary.json").is_file()

    @property
    def has_trained(self) -> bool:
        """Whether the run has made checkpoints, and so is no run of `polytrace sample`."""
        return (self.path / "checkpoints").is_dir()

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(path.name.removeprefix("step-").isdigit() for path in self.path.glob("checkpoints/step-*"))

    def begin(self, config: RunConfig, data: RunData, resume: bool) -> None:
        """Make the folder for a training run, or check that the run there may go on; write config.yaml and data.json.

        Raises FileExistsError, FileNotFoundError or ValueError where two runs, or two data sets, would be mixed.
        """
        self._refuse_taken(resume)
        if resume and not self.can_resume:
            raise FileNotFoundError(f"{self.path} holds no checkpoint to resume from; start the run without --resume.")
        if resume:
            self._refuse_other(config, data)
            last_step = self.archive().last_step
            self.checkpoints().refuse_other_place(config.groups_per_step, 0 if last_step is None else last_step + 1)
        self._write(config, data)

    def begin_sampling(self, config: RunConfig, data: RunData, resume: bool) -> None:
        """Make the folder for a run that only samples, or check that the run there may go on; raises as `begin`."""
        self._refuse_taken(resume)
        if self.has_trained:
            raise ValueError(f"{self.path} holds a training run; give what is sampled a folder of its own by run=NAME.")
        if resume and not self._archived:
            raise FileNotFoundError(f"{self.path} holds no archive to go on with; start without --resume.")
        if resume:
            self._refuse_other(config, data)
        self._write(config, data)

    @property
    def _archived(self) -> bool:
        return (self.path / "archive").exists()

    def _refuse_taken(self, resume: bool) -> None:
        if not resume and self._archived:
            raise FileExistsError(
                f"{self.path} holds a run already; go on with it by --resume, or give this one another folder by "
                "run=NAME."
            )

    def _refuse_other(self, config: RunConfig, data: RunData) -> None:
        refuse_other_settings(config, load_settings(RunConfig, self.path / "config.yaml"))
        data.refuse_other(self.path)

    def _write(self, config: RunConfig, data: RunData) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        save_settings(config, self.path / "config.yaml")
        data.write(self.path)


def refuse_other_settings(config: RunConfig, begun: RunConfig) -> None:
    """Raise ValueError where going on with settings would make another run of it."""
    before = _identity(begun)
    for name, value in _identity(config).items():
        if value != before.get(name, value):
            raise ValueError(
                f"{name} is {value}, but {config.run} began with {before[name]}; resume with the same settings, or "
                "start another run by run=NAME."
            )


def _identity(config: RunConfig) -> dict[str, Any]:
    """Settings that a run keeps when it goes on, by their dotted paths."""
    settings: dict[str, Any] = {
        "seed": config.seed,
        "groups_per_step": config.groups_per_step,
        "group_size": config.group_size,
        "groups_per_unit": config.unit_groups,
        "refills": config.refills,
        "env": config.env,
        "codec": config.codec,
        "policy": config.policy,
        "rewards": config.rewards,
        "shaping": config.shaping,
        "algorithm": config.algorithm,
        "sampling": config.sampling,
        "refined": config.refined,
        "pool.staleness": config.pool.staleness,
        "pool.engine": config.pool.engine,
    }
    if config.learner.sft_weight:
        settings |= {f"outlines.{name}": value for name, value in asdict(config.outlines).items()}
    # The number of ranks, and how they share the work, may change: the sums are the same, up to their order.
    return settings | {f"learner.{name}": value for name, value in config.learner.identity.items()}


def archived_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs that have an archive: each folder itself, or the runs in it where it is no run, by name.

    Raises FileNotFoundError where a folder is neither, ValueError where a run is given twice.
    """
    runs: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder; give the folder of a run, such as runs/demo.")
        found = [folder] if (folder / "archive").is_dir() else sorted(p.parent for p in folder.glob("*/archive"))
        if not found:
            raise FileNotFoundError(f"{folder} holds no archive; give the folder of a run that has made a step.")
        runs += found
    resolved = [run.resolve() for run in runs]
    twice = [run for run, path in zip(runs, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; name each run once, or its answers count twice.")
    return runs
