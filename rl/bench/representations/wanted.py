"""What `polytrace bench representations` compares: kinds of answers, with configs of their supervision and RL."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.codecs.base import ChoosingCodec
from rl.bench.learning.arms import Arm, Training
from rl.config.load import load_settings
from rl.config.plugins import codec_plugin
from rl.config.run import RunConfig
from rl.config.sft import SftConfig

_POOL = "candidates"
"""Settings of an env that begin so change nothing but what may be chosen from."""


@dataclass(frozen=True)
class Representation:
    """A kind of answer."""

    name: str
    """Name of its folders, and in tables."""
    sft: Path
    """Config of `polytrace sft`, as a file or the name of a shipped one."""
    rl: Path
    """Config of `polytrace train`, which begins where the first ends."""

    @classmethod
    def read(cls, text: str) -> "Representation":
        """From NAME=SFT,RL. Raises ValueError for another form."""
        name, _, configs = text.partition("=")
        parts = configs.split(",")
        if not name.isidentifier() or len(parts) != 2 or not all(parts):  # a pair
            raise ValueError(
                f"--of is {text!r}; give NAME=SFT,RL, such as "
                "box_decoder=representations/box_decoder,representations/box_decoder_rl."
            )
        return cls(name, Path(parts[0]), Path(parts[1]))


SHIPPED = tuple(
    Representation(name, Path(f"representations/{name}"), Path(f"representations/{name}_rl"))
    for name in ("outline", "outline_text", "box_decoder", "mask_groups")
)


@dataclass(frozen=True)
class Wanted:
    """What the bench is asked for."""

    out: Path
    representations: tuple[Representation, ...] = SHIPPED
    overrides: tuple[str, ...] = ()
    """Settings to change in all configs, as dotted.key=value; ones that both `sft` and `train` know."""
    refined: tuple[str, ...] = ("outline",)
    """Names of those whose masks a refiner mends, too."""
    sft_seconds: float = 180.0
    """Seconds of steps that supervision gets."""
    rl_seconds: float = 150.0
    """Seconds of steps that RL gets after it."""
    seeds: int = 3

    def __post_init__(self) -> None:
        names = [each.name for each in self.representations]
        if len({*names}) < len(names):
            raise ValueError(f"--of names {max(names, key=names.count)!r} twice; give each another name.")
        if unknown := [name for name in self.refined if name not in names]:
            raise ValueError(f"--refined names {unknown[0]!r}; choose of {', '.join(names)}, with commas between.")
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}; give 1 or more.")
        for name, value in (("--sft-seconds", self.sft_seconds), ("--rl-seconds", self.rl_seconds)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value:g}; give a number above 0.")
        for override in self.overrides:
            if (key := override.partition("=")[0]) in ("run", "seed"):
                raise ValueError(f"override {override!r}: the bench sets {key} itself; leave it out.")
        if any((self.out / name).exists() for name in ("config.yaml", "archive")):
            raise ValueError(f"--out is {self.out}, which holds a run; give the bench a folder of its own.")

    def supervision(self, of: Representation, seed: int, steps: int | None = None) -> Training:
        """The supervised training under a seed, stretched to `steps`; None for the config's own.

        Raises ValueError for settings that are out of range.
        """
        folder = f"{self.out}/seed-{seed}/{of.name}-sft"
        config = load_settings(SftConfig, of.sft, [*self.overrides, f"run={folder}", f"seed={seed}"])
        return Training(Arm(f"{of.name}-sft", of.name, supervised=True), _taught(config, steps or config.sft.num_steps))

    def reinforcement(self, of: Representation, seed: int, checkpoint: Path, steps: int | None = None) -> Training:
        """The RL under a seed that begins with a policy, likewise."""
        folder = f"{self.out}/seed-{seed}/{of.name}-rl"
        config = self.run_config(of, seed, checkpoint, folder)
        return Training(Arm(f"{of.name}-rl", of.name), _reinforced(config, steps or config.steps))

    def run_config(self, of: Representation, seed: int, checkpoint: Path, folder: str) -> RunConfig:
        """The config of RL, from a policy, in a folder."""
        changed = [*self.overrides, f"run={folder}", f"seed={seed}", f"policy.checkpoint={checkpoint}"]
        return load_settings(RunConfig, of.rl, changed)


def _taught(config: SftConfig, steps: int) -> SftConfig:
    """With all stages longer or shorter by one factor, and as many evaluations."""
    factor = steps / config.sft.num_steps
    stages = [replace(stage, steps=max(1, round(stage.steps * factor))) for stage in config.sft.stages]
    every = max(1, round(config.sft.evaluate_every * factor))
    return replace(config, sft=replace(config.sft, stages=stages, evaluate_every=every))


def _reinforced(config: RunConfig, steps: int) -> RunConfig:
    """The same of a run: its rate falls over as large a part of it."""
    factor = steps / config.steps
    decay = config.learner.decay_steps
    learner = replace(config.learner, decay_steps=None if decay is None else max(1, round(decay * factor)))
    every = max(1, round(config.evaluation.every * factor))
    evaluation = replace(config.evaluation, every=every)
    return replace(config, steps=steps, save_every=every, learner=learner, evaluation=evaluation)


def refuse_other_questions(wanted: Wanted) -> None:
    """Raise ValueError where two configs ask about other scenes, or the second of a pair continues another policy."""
    asked: dict[str, Any] | None = None
    for of in wanted.representations:
        sft = wanted.supervision(of, 0).config
        rl = wanted.run_config(of, 0, Path("none"), f"{wanted.out}/none")
        assert isinstance(sft, SftConfig)
        if of.name in wanted.refined and isinstance(codec_plugin(rl.codec).build(), ChoosingCodec):
            raise ValueError(
                f"--refined names {of.name}, which chooses among candidates, and a refiner mends what is drawn; leave "
                "it out of --refined."
            )
        for name, first, second in (
            ("env", sft.env, rl.env),
            ("codec", sft.codec, rl.codec),
            ("policy", _named(sft.policy), _named(rl.policy)),
        ):
            _refuse_difference(name, first, second, (str(of.sft), str(of.rl)))
        scenes = {name: value for name, value in rl.env.items() if not name.startswith(_POOL)}
        scenes |= {"final_split": rl.evaluation.final_split, "final_scenes": rl.evaluation.final_scenes}
        if asked is not None:
            _refuse_difference("env and evaluation", asked, scenes, (str(wanted.representations[0].rl), str(of.rl)))
        asked = asked or scenes


def _named(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Its kind alone: sizes of new parts are for the first training to say, and the checkpoint tells the second."""
    return {"name": policy.get("name")}


def _refuse_difference(
    what: str, first: Mapping[str, Any], second: Mapping[str, Any], configs: tuple[str, str]
) -> None:
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{name} of {what} is {first.get(name)} in {configs[0]} and {second.get(name)} in {configs[1]}; set "
                "both alike, so that the same is compared."
            )
