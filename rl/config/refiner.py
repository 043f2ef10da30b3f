"""How a refiner is made: which pairs, which network, how it is trained, what is kept apart to judge it."""

import math
from dataclasses import dataclass, field
from typing import Any

from policies.refiner.mask_refiner import RefinerSettings
from rl.config.learner import LearnerSettings
from rl.config.pairs import DamageSettings, PairRule

MASK_LOSSES = ("bce", "focal")


@dataclass
class RefinerStage:
    """A stretch of the training: coarse answers at a low resolution first, the boundary at a high one after."""

    name: str = "all"
    share: float = 1.0
    """Of all steps, by the sum of the stages' shares."""
    crop_px: int | None = None
    """Cells of a side of the crop; null: the network's own."""
    max_iou: float = 1.0
    """Only pairs up to this IoU."""
    min_iou: float = 0.0
    """Only pairs from this IoU on."""
    boundary_weight: float = 0.0
    """What a cell at the true boundary counts in the mask loss beyond the 1 of any other."""

    def __post_init__(self) -> None:
        if not self.share > 0 or not 0 <= self.min_iou < self.max_iou <= 1 or self.boundary_weight < 0:
            raise ValueError(
                f"stage {self.name!r} has share {self.share}, min_iou {self.min_iou}, max_iou {self.max_iou}, "
                f"boundary_weight {self.boundary_weight}; give a share above 0, 0 <= min_iou < max_iou <= 1, and a "
                "weight of 0 or more."
            )
        if self.crop_px is not None and self.crop_px < 1:
            raise ValueError(f"stage {self.name!r} has crop_px {self.crop_px}; give 1 or more, or null.")


@dataclass
class RefinerTraining:
    """How a refiner is trained."""

    steps: int = 600
    """Optimiser steps."""
    batch_size: int = 32
    """Pairs a step, over all ranks."""
    lr: float = 2e-3
    """AdamW's highest rate (see `lr_at`)."""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    """Largest norm of a gradient; 0 for none."""
    average: float = 0.98
    """Decay a step of a running average of the weights, which is what is kept; 0: the last weights."""
    seed: int = 0
    stages: list[RefinerStage] = field(default_factory=lambda: [RefinerStage()])
    box_jitter: float = 0.1
    """Each edge of a box moves by at most this part of the box's side: at each draw, or where the features are those of
    the crop, once a pair."""
    flips: bool = False
    """Whether half of the crops are seen mirrored left to right, and a quarter of them upside down; the features are
    mirrored with them, though the tower would not have made quite the same of a mirrored image."""
    colour_jitter: float = 0.0
    """How much contrast and brightness of each channel change from draw to draw: standard deviations of this share of
    the contrast, and of this share of the range."""
    feature_dropout: float = 0.0
    """Share of the draws that are seen without features, so that few objects are not known by them."""
    mask_loss: str = "bce"
    """bce, or focal (Lin et al. 2017), which counts cells less that are right already."""
    focal_gamma: float = 2.0
    mask_weight: float = 1.0
    """Of the mask loss."""
    dice_weight: float = 1.0
    others_share: float = 0.1
    """Of mask and Dice loss, for the mean over all masks that a pass offers; the rest is for the best of them."""
    iou_weight: float = 1.0
    """Of the squared errors of the predicted IoUs."""
    save_every: int = 200
    """Steps between checkpoints."""
    ranks: int = 1
    """DeepSpeed processes; with one, it is this process. Must divide batch_size."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    threads: int = 2
    """Torch threads of one rank."""
    gpus_per_rank: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every) < 1 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"steps is {self.steps}, batch_size {self.batch_size}, save_every {self.save_every}, lr {self.lr}; the "
                "first three must be 1 or more, the last above 0."
            )
        if self.seed < 0 or not self.stages:
            said = f"seed is {self.seed}; set it to 0 or more." if self.stages else "stages is empty; give one or more."
            raise ValueError(said)
        if self.mask_loss not in MASK_LOSSES:
            raise ValueError(f"mask_loss is {self.mask_loss!r}; choose of {', '.join(MASK_LOSSES)}.")
        if not 0 <= self.box_jitter < 0.5 or not 0 <= self.average < 1:
            raise ValueError(
                f"box_jitter is {self.box_jitter} and average {self.average}; the first must lie in 0..0.5, 0.5 not "
                "included, the second in 0..1, 1 not included."
            )
        shares = ("colour_jitter", "feature_dropout", "others_share")
        if wrong := [name for name in shares if not 0 <= vars(self)[name] <= 1]:
            raise ValueError(f"{wrong[0]} is {vars(self)[wrong[0]]}; it must lie in 0..1.")
        weights = (self.mask_weight, self.dice_weight, self.iou_weight, self.focal_gamma)
        if min(weights) < 0:
            raise ValueError(f"mask_weight, dice_weight, iou_weight and focal_gamma are {weights}; give 0 or more.")
        try:
            _ = self.engine
        except ValueError as error:  # what the learner of a run calls learner.NAME is training.NAME here
            raise ValueError(str(error).replace("learner.", "training.")) from None
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size is {self.batch_size}, which ranks {self.ranks} must divide; change either.")

    @property
    def engine(self) -> LearnerSettings:
        """What the DeepSpeed engine around the refiner is built from; raises ValueError for what it cannot be."""
        return LearnerSettings(
            ranks=self.ranks,
            zero_stage=self.zero_stage,
            dtype=self.dtype,
            lr=self.lr,
            average=self.average,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            threads=self.threads,
            gpus_per_rank=self.gpus_per_rank,
        )

    def lr_at(self, step: int) -> float:
        """The rate of a step: a linear warm-up over the first 5 %, then a cosine to 0."""
        done = step / self.steps
        return self.lr * min(1.0, 0.1 + done / 0.05) * (1 + math.cos(math.pi * done)) / 2

    def stage_at(self, step: int) -> RefinerStage:
        """The stage that a step belongs to."""
        total, done = sum(stage.share for stage in self.stages), 0.0
        for stage in self.stages:
            done += stage.share
            if step < round(self.steps * done / total):
                return stage
        return self.stages[-1]


@dataclass
class RefinerRun:
    """A refiner trained on pairs from archives."""

    rule: PairRule = field(default_factory=lambda: PairRule(per_example=2, limit=6000))
    """Which answers become pairs (docs/pairs.md)."""
    damage: DamageSettings = field(default_factory=lambda: DamageSettings(share=0.1))
    """What share of them gives way to the true mask, damaged."""
    held_out_examples: int | None = 2000
    """Examples of each held-out split whose ids and images are barred, at least those that a run evaluates; null: all.
    """
    calibration_share: float = 0.1
    """Share of the images whose pairs teach nothing but what a predicted IoU is worth."""
    evaluation_share: float = 0.1
    """Share of the images whose pairs do neither, and judge."""
    damaged_scenes: int = 0
    """Examples of the split `validation` whose true masks are damaged and refined, as another judge."""
    network: RefinerSettings = field(default_factory=RefinerSettings)
    head: dict[str, Any] = field(default_factory=lambda: {"name": "pixel_head"})
    """A file of policies/ with a class Head, and its settings."""
    training: RefinerTraining = field(default_factory=RefinerTraining)
    unfinished: bool = False
    """Take also what a run has archived that has not reached its last step."""

    def __post_init__(self) -> None:
        shares = (self.calibration_share, self.evaluation_share)
        if min(shares) < 0 or sum(shares) > 0.9:
            raise ValueError(
                f"calibration_share is {shares[0]} and evaluation_share {shares[1]}; give 0 or more each, and leave a "
                "tenth or more of the images to train on."
            )
        for name in ("damaged_scenes", "held_out_examples"):
            if vars(self)[name] is not None and vars(self)[name] < 0:
                raise ValueError(f"{name} is {vars(self)[name]}; set it to 0 or more.")


@dataclass
class RefineConfig(RefinerRun):
    """What `polytrace refine CONFIG` reads."""

    runs: list[str] = field(default_factory=list)
    """Folders of the runs whose archives give the pairs."""
    out: str = ""
    """New folder of the refiner, or that of the same training where it was stopped."""
    checkpoint: str | None = None
    """Hugging Face folder of the policy whose vision tower the refiner sees through, or `tiny`; null: the best policy
    of the first run, or the one that it sampled where it did not learn (`polytrace sample`)."""
    features: str | None = None
    """Folder where features are kept, an image or a crop a file; null: features/ in `out`. Several trainings may share
    it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ValueError("runs is empty; give folders of runs, as runs=[runs/demo].")
        if not self.out:
            raise ValueError("out is empty; give a new folder for the refiner, as out=runs/refiner.")
