"""Settings of supervised fine-tuning; apart from the training, so that a config is checked without loading a model."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from envs.ranges import above, at_least, between, check_ranges, one_of
from policies.settings import TinySizes
from rl.config.cards import refuse_parts_of_cards
from rl.config.learner import TrainingSettings, refuse_patches_alone
from rl.config.outlines import OutlineSettings
from rollout.settings import RaySettings


@dataclass
class SftStage:
    """One stretch of training."""

    name: str
    """Name of the stage in logs."""
    steps: Annotated[int, at_least(0)]
    """Steps of the stage."""
    lr: Annotated[float, above(0)]
    """Learning rate at the start, falling along a cosine. A large model takes AdamW at 1e-6 to 1e-4 (1e-4 and more for
    adapters), a new tiny one Muon at 1e-3."""
    last_lr: Annotated[float | None, above(0)] = None
    """Learning rate at the end; null for a tenth of lr."""
    answer: Annotated[str, one_of("box", "outline")] = "outline"
    """What of an answer is learned: "box" its beginning, of a codec that writes boxes there; "outline" all of it."""
    number_spread: Annotated[float, at_least(0)] = 0.0
    """Width of a number's target over its neighbours; 0 is the usual cross-entropy."""
    positive_weight: Annotated[float, above(0)] = 1.0
    """Of policies that choose among candidates: how much a candidate that belongs to an answer weighs in the loss, one
    that does not being 1. Pools have more of the latter, so that above 1 more are chosen; the loss is then no mean of
    nats any more, that of evaluations is."""
    with_absent: bool = False
    """Whether questions about absent things are asked.

    From the start, "nothing" would become the answer to everything.
    """
    outline_margin: Annotated[float | None, at_least(0)] = None
    """Outline margin of this stage; null takes that of all stages."""
    trains: Annotated[str, one_of("all", "all_but_encoders", "projector", "decoder")] = "all"
    """What learns in this stage, of what `learner` lets learn: "all"; "all_but_encoders", without the blocks of the
    vision tower; "projector" alone, of policies over candidate masks all that joins masks and language model (prefixes
    and classifier included), of others what joins tower and language model; "decoder" alone, which draws masks in
    boxes. Where it changes, the policy is written into stages/, and a new optimizer begins with it, with a warm-up."""

    def lr_at(self, step: int) -> float:
        """The rate of a step of the stage, 0 being its first, before the warm-up of the run."""
        last = self.lr / 10 if self.last_lr is None else self.last_lr
        return last + (self.lr - last) * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps)))) / 2


@dataclass(frozen=True)
class Stretch:
    """Steps that all train the same part of a policy, by one optimizer."""

    first: int = 0
    """Steps before it."""
    end: int = 0
    """Steps that are done at its end."""
    trains: str = "all"
    """As SftStage has it."""


ALL_STEPS = Stretch()
"""Of a training that trains all, however long it is."""


@dataclass
class SftLearner(TrainingSettings):
    """How a policy is trained by supervision."""

    weight_decay: Annotated[float, at_least(0)] = 0.01
    """Decoupled weight decay."""
    optimizer: Annotated[str, one_of("adamw", "muon")] = "adamw"
    """adamw, or muon: Muon on matrices between hidden layers, AdamW at a third of the rate on all else; for a new model
    whose weights are whole and float32."""
    micro_scenes: Annotated[int | None, at_least(1, ", or to null for all scenes of a rank at once.")] = None
    """Scenes in one forward and backward pass of a rank; null: its whole share of a step."""
    token_budget: Annotated[
        int | None, at_least(1, ", what one pass may hold, such as 8192, or to null for learner.micro_scenes.")
    ] = None
    """Most tokens of one pass, padding included; where set, it takes the place of micro_scenes. A pass of B scenes runs
    on B * (longest prompt + most tokens of the questions and answers about a scene)."""
    patch_budget: Annotated[int | None, at_least(1, ", or to null for as many as learner.token_budget allows.")] = None
    """Most patches of images in one forward pass, where learner.token_budget is set; see LearnerSettings."""

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay as it is when a training goes on; see TrainingSettings.identity."""
        free = {"micro_scenes", "token_budget", "patch_budget"}
        return {k: value for k, value in super().identity.items() if k not in free}

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_patches_alone(self.token_budget, self.patch_budget)
        if self.optimizer == "muon" and (self.zero_stage or self.lora is not None or self.dtype != "float32"):
            raise ValueError(
                f"learner.optimizer is muon with learner.zero_stage {self.zero_stage}, learner.dtype {self.dtype} and "
                f"learner.lora {'null' if self.lora is None else 'set'}, but Muon takes whole matrices in float32; set "
                "learner.optimizer to adamw, or the others to 0, float32 and null."
            )


@dataclass
class SftSettings(OutlineSettings):
    """How the supervised outlines are made and learned."""

    stages: list[SftStage] = field(default_factory=list)
    scenes_per_step: Annotated[int, at_least(1)] = 32
    """Scenes per step, each with all its questions."""
    questions: Annotated[str, one_of("all", "one")] = "all"
    """What a scene teaches: all that can be asked about it, or the one question that RL would ask."""
    shuffle: bool = True
    """Whether scenes come in another order in every pass over the data; else always in that of the env."""
    warmup_steps: Annotated[int, at_least(0)] = 50
    """Steps over which the rate rises from 0, at the start and where another part begins to learn."""
    evaluate_every: Annotated[int, at_least(1)] = 250
    """Steps between evaluations on the split `validation`, each with a checkpoint."""
    evaluate_scenes: Annotated[int, at_least(1)] = 256
    """Scenes of each of these evaluations."""
    keep: Annotated[str, one_of("last", "best")] = "last"
    """Which policy is kept: that of the last evaluation, or that of the one with the highest greedy gIoU; then one
    comes before the first step, too."""

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def stretches(self) -> list[Stretch]:
        """The steps of all stages, cut where what is trained changes."""
        found, first = list[Stretch](), 0
        for stage in (each for each in self.stages if each.steps):
            if found and found[-1].trains == stage.trains:
                found[-1] = replace(found[-1], end=first + stage.steps)
            else:
                found.append(Stretch(first, first + stage.steps, stage.trains))
            first += stage.steps
        return found

    def stretch_at(self, step: int) -> Stretch:
        """The stretch that a step belongs to; the last one goes on."""
        begun = [each for each in self.stretches if each.first <= step]
        return begun[-1] if begun else ALL_STEPS

    def stage_at(self, step: int) -> tuple[SftStage, float]:
        """The stage that a step belongs to, and the learning rate there; the last stage goes on at its last rate."""
        warm = min(1.0, (step - self.stretch_at(step).first + 1) / max(1, self.warmup_steps))
        for stage in self.stages:
            if step < stage.steps:
                return stage, stage.lr_at(step) * warm
            step -= stage.steps
        return self.stages[-1], self.stages[-1].lr_at(self.stages[-1].steps) * warm

    def done_by(self, step: int) -> list[SftStage]:
        """The stages that the steps before `step` belong to; how long the last of them is, is left open (0)."""
        begun, first = list[SftStage](), 0
        for stage in self.stages:
            if first < step:
                begun.append(stage)
            first += stage.steps
        return [*begun[:-1], replace(begun[-1], steps=0)] if begun else []

    def scenes_at(self, step: int, num: int, seed: int) -> list[int]:
        """Which of `num` scenes a step takes: all that its stage can teach in turn, then again; where shuffled, in an
        order that follows from seed and pass."""
        first = step * self.scenes_per_step
        if self.scenes is not None and self.stage_at(step)[0].answer == "outline":
            num = min(num, self.scenes)
        turns = [divmod(first + k, num) for k in range(self.scenes_per_step)]
        if not self.shuffle:
            return [place for _, place in turns]
        orders = {turn: np.random.default_rng([seed, turn]).permutation(num) for turn in {turn for turn, _ in turns}}
        return [int(orders[turn][place]) for turn, place in turns]

    def __post_init__(self) -> None:
        self.check("sft")
        if self.answers is not None and any(stage.answer == "box" for stage in self.stages):
            raise ValueError(
                "sft.answers puts answers into sentences, and a stage teaches boxes (answer: box), which are the "
                "beginning of a bare answer; leave out one of them."
            )


@dataclass
class SftConfig:
    """A supervised run. Without policy.checkpoint a new tiny model is made and trained."""

    run: str
    """Folder of the run."""
    seed: Annotated[int, at_least(0)] = 0
    """Key of every random number of the run."""
    max_tokens: Annotated[int, at_least(1)] = 64
    """Longest answer in evaluations, tokens."""
    max_left_out: Annotated[float, between(0, 1)] = 0.05
    """Largest share of a split's questions that its data set may have lost (`polytrace data check` says why)."""
    env: dict[str, Any] = field(default_factory=dict)
    codec: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    tiny: TinySizes = field(default_factory=TinySizes)
    """Sizes of the new model."""
    sft: SftSettings = field(default_factory=SftSettings)
    """Stages of the training, and the outlines that it learns."""
    learner: SftLearner = field(default_factory=SftLearner)
    ray: RaySettings = field(default_factory=RaySettings)
    """Where several ranks run."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.run or any(path.is_file() for path in (Path(self.run), *Path(self.run).parents)):
            raise ValueError(
                f"run is {self.run!r}, which cannot be a folder; give the folder of a run, such as runs/sft."
            )
        refuse_parts_of_cards(self.learner)
        if not self.sft.num_steps:
            raise ValueError(
                "sft.stages has no step; give one stage or more, such as {name: outlines, steps: 1000, lr: 1e-5}."
            )
        if self.sft.scenes_per_step < self.learner.ranks:
            raise ValueError(
                f"sft.scenes_per_step is {self.sft.scenes_per_step} for learner.ranks {self.learner.ranks}, which "
                "leaves ranks without a scene; raise the first or lower the second."
            )
