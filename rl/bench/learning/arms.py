"""What the same seconds and masks can be spent on, beginning with one checkpoint: reinforcement, and its controls.

OUT/seed-K/ARM is an ordinary run of `train` or `sft` with these files more: asked.yaml (its settings), log.txt (what
the process said) and spent.json (that it ended well, its steps and their seconds). OUT/seed-K/ARM-pilot is a few steps
of it, by which the number of its steps is chosen.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rl.config.learner import TrainingSettings
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.run.checkpoints import Checkpoints
from rl.run.folder import RunFolder
from rl.run.metrics import TIMINGS_FILE_NAME

PILOT_STEPS = 8
"""Steps of a pilot; the first quarter is not counted."""
_SECONDS = "seconds/step"
_CURVE_POINTS = 10
"""Evaluations on the way of a training."""


@dataclass(frozen=True)
class Arm:
    """One way to go on from a checkpoint."""

    name: str
    """Name of its folder, and in JSON."""
    title: str
    """For people."""
    overrides: tuple[str, ...] = ()
    """What it changes of the run's config."""
    supervised: bool = False
    """Whether outlines alone teach."""


RL = Arm("rl", "RL as configured")
SFT = Arm("sft", "SFT on outlines of the masks", supervised=True)
BEST_OF = Arm("best_of", "SFT on the best of each group", ("algorithm.name=best_of",))


def rl_sft(weight: float) -> Arm:
    """RL with outlines beside."""
    return Arm("rl_sft", f"RL, and outlines at weight {weight:g}", (f"learner.sft_weight={weight!r}",))


CONTROLS = ("sft", "best_of", "rl_sft")
"""Names of all arms but RL."""


@dataclass(frozen=True)
class Wanted:
    """What the bench is asked for."""

    config: Path
    """Config of a run, as a file or the name of a shipped one."""
    out: Path
    overrides: tuple[str, ...] = ()
    seeds: int = 3
    sft_lr: float | None = None
    """Rate at which outlines are learned; None for eight times the run's own."""
    sft_weight: float = 0.1
    """Weight of outlines beside RL."""
    controls: tuple[str, ...] = CONTROLS
    """Names of the arms that RL is compared with."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.controls if name not in CONTROLS]:
            raise ValueError(f"--controls names {unknown[0]!r}; choose of {', '.join(CONTROLS)}, with commas between.")
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}; give 1 or more.")
        for name, value in (("--sft-weight", self.sft_weight), ("--sft-lr", self.sft_lr)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value:g}; give a number above 0.")
        if any((self.out / name).exists() for name in ("config.yaml", "archive")):
            raise ValueError(f"--out is {self.out}, which holds a run; give the bench a folder of its own.")
        for override in self.overrides:
            if (key := override.partition("=")[0]) in ("run", "seed", "learner.sft_weight"):
                raise ValueError(f"override {override!r}: the bench sets {key} itself; leave it out.")

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that are trained, RL first: its seconds are what the others get."""
        others = (SFT, BEST_OF, rl_sft(self.sft_weight))
        return RL, *(arm for arm in others if arm.name in self.controls)

    def base(self, seed: int) -> RunConfig:
        """The run's own config under a seed."""
        return load_settings(
            RunConfig, self.config, [*self.overrides, f"seed={seed}", f"run={self.out}/seed-{seed}/rl"]
        )


@dataclass(frozen=True)
class Spent:
    """What a finished training took."""

    steps: int
    seconds: float
    """Seconds of its steps; evaluations, checkpoints and the start are not among them."""
    scenes: int
    """Scenes that were looked at, one more each time that the same is. RL asks one question about each, outlines teach
    all that there are."""


@dataclass(frozen=True)
class Training:
    """An arm under a seed, with its number of steps."""

    arm: Arm
    config: RunConfig | SftConfig

    @property
    def folder(self) -> Path:
        """OUT/seed-K/ARM."""
        return Path(self.config.run)

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return self.config.steps if isinstance(self.config, RunConfig) else self.config.sft.num_steps

    @property
    def policy(self) -> Path:
        """Hugging Face folder of what it ends with: the best on validation."""
        if isinstance(self.config, SftConfig):
            return self.folder / "policy"
        return RunFolder(self.folder).best_policy().folder

    @property
    def spent(self) -> Spent | None:
        """What it took; None where it is not finished."""
        path = self.folder / "spent.json"
        return Spent(**json.loads(path.read_text())) if path.exists() else None

    def refuse_other_settings(self) -> None:
        """Raise ValueError where the folder holds a training that was asked otherwise."""
        asked = self.folder / "asked.yaml"
        if not asked.exists():
            return
        before, now = (asdict(each) for each in (load_settings(type(self.config), asked), self.config))
        for name, value in now.items():
            if value != before[name]:
                raise ValueError(
                    f"{name} is {value}, but {self.folder} began with {before[name]}; give the bench another --out, or "
                    "remove that folder."
                )

    def begin(self) -> list[str]:
        """Write what is asked; the arguments of `polytrace` that start it or go on with it."""
        self.refuse_other_settings()
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = self.folder / "asked.yaml"
        save_settings(self.config, asked)
        if isinstance(self.config, SftConfig):
            return ["sft", str(asked)]
        begun = Checkpoints(self.folder, self.config.keep_checkpoints).last_step is not None
        return ["train", str(asked), *(["--resume"] if begun else [])]

    def finish(self) -> Spent:
        """Mark it as finished by what its metrics say."""
        seconds = step_seconds(self.folder)
        size = self.config.groups_per_step if isinstance(self.config, RunConfig) else self.config.sft.scenes_per_step
        found = Spent(self.steps, round(sum(seconds), 2), self.steps * size)
        (self.folder / "spent.json").write_text(json.dumps(asdict(found)) + "\n")
        return found

    @property
    def step_seconds(self) -> float:
        """Lower quartile of its steps but the first quarter, which warm up: what else a machine does makes steps
        longer, never shorter."""
        seconds = step_seconds(self.folder)
        return float(np.quantile(seconds[len(seconds) // 4 :], 0.25))

    def pilot(self) -> "Training":
        """A few steps of it."""
        folder = f"{self.folder}-pilot"
        if isinstance(self.config, RunConfig):
            quick = replace(self.config.evaluation, every=PILOT_STEPS, num_scenes=1)
            short = replace(self.config, run=folder, steps=PILOT_STEPS, save_every=PILOT_STEPS, evaluation=quick)
            return Training(self.arm, short)
        stages = [replace(self.config.sft.stages[0], steps=PILOT_STEPS)]
        sft = replace(self.config.sft, stages=stages, evaluate_every=PILOT_STEPS, evaluate_scenes=1)
        return Training(self.arm, replace(self.config, run=folder, sft=sft))


def step_seconds(folder: Path) -> list[float]:
    """Seconds of each step, in order; of one that was done again after a stop, the last time."""
    rows = map(json.loads, (folder / TIMINGS_FILE_NAME).read_text().splitlines())
    return list({row["step"]: float(row[_SECONDS]) for row in rows}.values())


def planned(wanted: Wanted, arm: Arm, seed: int, steps: int | None = None) -> Training:
    """An arm under a seed. steps: None for those of the run's own config.

    Raises ValueError for settings that are out of range.
    """
    base = wanted.base(seed)
    steps = base.steps if steps is None else steps
    folder = f"{wanted.out}/seed-{seed}/{arm.name}"
    if arm.supervised:
        return Training(arm, supervised(base, folder, steps, wanted.sft_lr or 8 * base.learner.lr))
    schedule = [f"steps={steps}", f"run={folder}", f"seed={seed}"]
    if base.learner.decay_steps is not None:
        # The rate falls over as large a part of this training as of the run.
        schedule.append(f"learner.decay_steps={max(1, round(base.learner.decay_steps * steps / base.steps))}")
    return Training(arm, load_settings(RunConfig, wanted.config, [*wanted.overrides, *arm.overrides, *schedule]))


def supervised(run: RunConfig, folder: str, steps: int, lr: float) -> SftConfig:
    """A training on outlines of the data of a run, from the same checkpoint, with its learner."""
    shared = {field.name for field in fields(TrainingSettings)}
    learner: dict[str, Any] = {name: value for name, value in vars(run.learner).items() if name in shared}
    stage = SftStage("outlines", steps, lr=lr, last_lr=lr / 20, with_absent=True)
    return SftConfig(
        run=folder,
        seed=run.seed,
        max_tokens=run.sampling.max_tokens,
        max_left_out=run.max_left_out,
        env=run.env,
        codec=run.codec,
        # A decoder that RL leaves as it is learns from masks as well: the control is the best that these are good for.
        policy={name: value for name, value in run.policy.items() if name != "freeze_decoder"},
        sft=SftSettings(
            [stage],
            scenes_per_step=run.groups_per_step,
            evaluate_every=max(1, -(-steps // _CURVE_POINTS)),
            evaluate_scenes=run.evaluation.num_scenes,
            keep="best",
            **vars(run.outlines),
        ),
        learner=SftLearner(
            **learner,
            micro_scenes=run.learner.micro_groups,
            token_budget=run.learner.token_budget,
            patch_budget=run.learner.patch_budget,
        ),
        ray=run.ray,
    )
