"""What an ablation is asked for, and the runs that this means: short ones, under several rewards and seeds.

OUT/NAME/seed-K is an ordinary run folder (archive, checkpoints, metrics) with these files more: asked.yaml (its
settings), modules.json (digests of the user's own reward files), log.txt (what the process said) and finished.json
(that it ended well, and in how many seconds).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rl.config.load import load_settings, override_of, save_settings
from rl.config.run import RunConfig
from rl.run.checkpoints import Checkpoints
from rl.run.parts import run_parts
from rl.run.preflight import preflight

_GIVEN = {
    "run": "--out",
    "seed": "--seeds",
    "steps": "--steps",
    "rewards": "the reward configs",
    "shaping": "the reward configs",
}
"""What an override may not set, and what sets it instead."""
_NO_PART_OF_THE_RESULT = ("run", "pool", "ray")
_TAIL_LINES = 15


@dataclass
class RewardFile:
    """All that differs between the runs of an ablation: rewards and their shaping, and other settings."""

    rewards: dict[str, Any]
    shaping: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    """What else differs, as "dotted.key=value", such as "algorithm.vertex_credit=0.5"."""


@dataclass(frozen=True)
class Ablation:
    """What is asked for."""

    rewards: tuple[Path, ...]
    """Reward configs, as files or names of shipped ones (`rewards/iou`); the others are compared with the first."""
    out: Path
    base: Path = Path("demo")
    """Config of a run, for everything but rewards, shaping, seed and steps."""
    seeds: int = 3
    """Runs of each config: seeds 0, 1, ..."""
    steps: int = 60
    overrides: tuple[str, ...] = ()
    """Changes of the base as "dotted.key=value"."""

    def __post_init__(self) -> None:
        if not self.rewards or self.seeds < 1 or self.steps < 1:
            raise ValueError(
                f"{len(self.rewards)} reward configs, --seeds {self.seeds}, --steps {self.steps}: give at least one "
                "of each."
            )
        names = [path.stem for path in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(
                f"The reward configs are called {', '.join(names)}; a run's folder needs a name of its own."
            )
        _refuse_given(self.overrides)

    def schedule(self) -> dict[str, int]:
        """Settings of the base that a short run needs otherwise; an override goes before them.

        Held-out scenes are answered before the first step and after the last; the learning rate falls over just these
        steps, and warms up over a quarter of them at most.
        """
        warmup_steps = load_settings(RunConfig, self.base, self.overrides).learner.warmup_steps
        return {
            "evaluation.every": self.steps,
            "evaluation.num_scenes": 512,
            "learner.decay_steps": self.steps,
            "learner.warmup_steps": min(warmup_steps, self.steps // 4),
            "save_every": max(1, self.steps // 3),
            "keep_checkpoints": 1,
        }


@dataclass(frozen=True)
class PlannedRun:
    """One run of the ablation, its settings checked."""

    name: str
    """Name of the reward config."""
    config: RunConfig
    modules: dict[str, str]
    """SHA-256 of the user's own reward files, by path."""

    @property
    def folder(self) -> Path:
        """OUT/NAME/seed-K."""
        return Path(self.config.run)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} seed {self.config.seed}"

    @property
    def seconds(self) -> float | None:
        """What the run took, where it is finished; of one that was resumed, its last part."""
        path = self.folder / "finished.json"
        return float(json.loads(path.read_text())["seconds"]) if path.exists() else None

    def refuse_other_settings(self) -> None:
        """Raise ValueError where the folder holds a run that was asked otherwise."""
        asked, modules = self.folder / "asked.yaml", self.folder / "modules.json"
        if not asked.exists():
            return
        before, now = _part_of_the_result(load_settings(RunConfig, asked)), _part_of_the_result(self.config)
        differ = [key for key in now if before[key] != now[key]]
        if not differ and json.loads(modules.read_text()) == self.modules:
            return
        what = (
            f"{differ[0]} {before[differ[0]]}, not {now[differ[0]]}" if differ else "another state of the reward files"
        )
        raise ValueError(f"{self.folder} holds a run with {what}; give another --out, or remove that folder.")

    def begin(self) -> list[str]:
        """Write what is asked into the folder; the arguments of `polytrace` that start the run or go on with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "modules.json").write_text(json.dumps(self.modules) + "\n")
        save_settings(self.config, self.folder / "asked.yaml")
        begun = Checkpoints(self.folder, self.config.keep_checkpoints).last_step is not None
        return ["train", str(self.folder / "asked.yaml"), *(["--resume"] if begun else [])]

    def finish(self, seconds: float) -> None:
        """Mark the run as finished."""
        (self.folder / "finished.json").write_text(json.dumps({"seconds": round(seconds, 1)}) + "\n")

    def tail(self) -> str:
        """The last lines that the process wrote."""
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])


def plan(ablation: Ablation) -> list[PlannedRun]:
    """Every run, seed by seed, so that what an interrupted ablation has done can be compared.

    Raises ValueError or FileNotFoundError that names the file for the first setting that is wrong, before any run.
    """
    schedule = [f"{key}={value}" for key, value in ablation.schedule().items()]
    runs = []
    for seed in range(ablation.seeds):
        for path in ablation.rewards:
            file = _reward_file(path)
            try:
                _refuse_given(file.overrides)
                _refuse_twice(file.overrides, ablation.overrides)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            given = {"rewards": file.rewards, "shaping": file.shaping, "seed": seed, "steps": ablation.steps}
            given["run"] = str(ablation.out / path.stem / f"seed-{seed}")
            fixed = [override_of(key, value) for key, value in given.items()]
            runs.append(_planned(path, [*schedule, *ablation.overrides, *file.overrides, *fixed], ablation.base))
    data = run_parts(runs[0].config).data
    for run in runs:
        run.refuse_other_settings()
        data.refuse_other(run.folder)
    return runs


def _refuse_given(overrides: Sequence[str]) -> None:
    """Raise ValueError for an override of what an ablation sets itself."""
    for override in overrides:
        if (key := override.partition("=")[0].split(".")[0]) in _GIVEN:
            raise ValueError(f"override {override!r}: an ablation sets {key} itself, by {_GIVEN[key]}; leave it out.")


def _refuse_twice(of_file: Sequence[str], of_all: Sequence[str]) -> None:
    """Raise ValueError for a setting that a file and the command line both set."""
    for one in of_file:
        for other in of_all:
            key, given = one.partition("=")[0], other.partition("=")[0]
            if key == given or key.startswith(f"{given}.") or given.startswith(f"{key}."):
                raise ValueError(f"override {one!r}: the command line sets {other!r}, too; leave one of them out.")


def _reward_file(path: Path) -> RewardFile:
    try:
        return load_settings(RewardFile, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _planned(path: Path, overrides: list[str], base: Path) -> PlannedRun:
    try:
        config = load_settings(RunConfig, base, overrides)
        if config.seed == 0:
            preflight(config, run_parts(config))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    entries = [entry for entry in config.rewards.values() if entry and "module" in entry]
    files = [str(entry["module"]) for entry in entries]
    modules = {file: hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest() for file in files}
    return PlannedRun(path.stem, config, modules)


def _part_of_the_result(config: RunConfig) -> dict[str, Any]:
    """The settings that change what comes out of a run, by name."""
    settings = {key: value for key, value in asdict(config).items() if key not in _NO_PART_OF_THE_RESULT}
    return settings | {"pool.staleness": config.pool.staleness}
