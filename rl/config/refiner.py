"""How a refiner is made: which pairs, which network, how it is trained, what is kept apart to judge it."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from envs.ranges import above, at_least, between, check_ranges, one_of
from policies.settings import RefinerSettings
from rl.config.cards import refuse_parts_of_cards
from rl.config.learner import TrainingSettings
from rl.config.pairs import DamageSettings, PairRule


@dataclass
class RefinerStage:
    """A stretch of the training: coarse answers at a low resolution first, the boundary at a high one after."""

    name: str = "all"
    share: Annotated[float, above(0)] = 1.0
    """Share of all steps, relative to the sum of the stages' shares."""
    crop_px: Annotated[int | None, at_least(1, ", or to null for the network's own.")] = None
    """Cells of a side of the crop; null: the network's own."""
    max_iou: Annotated[float, between(0, 1)] = 1.0
    """Only pairs up to this IoU."""
    min_iou: Annotated[float, between(0, 1)] = 0.0
    """Only pairs from this IoU on."""
    boundary_weight: Annotated[float, at_least(0)] = 0.0
    """What a cell at the true boundary counts in the mask loss beyond the 1 of any other."""

    def __post_init__(self) -> None:
        if self.min_iou >= self.max_iou:
            raise ValueError(
                f"stage {self.name!r} has min_iou {self.min_iou} and max_iou {self.max_iou}; set min_iou below max_iou."
            )


@dataclass
class RefinerTraining:
    """How a refiner is trained."""

    steps: Annotated[int, at_least(1)] = 600
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(1)] = 32
    """Pairs per step, over all ranks."""
    lr: Annotated[float, above(0)] = 2e-3
    """AdamW's highest rate (see `lr_at`)."""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """Decoupled weight decay of AdamW."""
    grad_clip: Annotated[float, at_least(0)] = 1.0
    """Largest norm of a gradient; 0 for none."""
    average: Annotated[float, between(0, 1, open_high=True)] = 0.98
    """Decay per step of a running average of the weights, which is what is kept; 0: the last weights."""
    seed: Annotated[int, at_least(0)] = 0
    """Key of every random choice of the training."""
    stages: list[RefinerStage] = field(default_factory=lambda: [RefinerStage()])
    box_jitter: Annotated[float, between(0, 0.5, open_high=True)] = 0.1
    """Each edge of a box moves by at most this part of the box's side: at each draw, or where the features are those of
    the crop, once a pair."""
    flips: bool = False
    """Whether half of the crops are seen mirrored left to right, and a quarter of them upside down; the features are
    mirrored with them, though the tower would not have made quite the same of a mirrored image."""
    colour_jitter: Annotated[float, between(0, 1)] = 0.0
    """How much contrast and brightness of each channel change from draw to draw: standard deviations of this share of
    the contrast, and of this share of the range."""
    feature_dropout: Annotated[float, between(0, 1)] = 0.0
    """Share of the draws that are seen without features, so that few objects are not known by them."""
    mask_loss: Annotated[str, one_of("bce", "focal")] = "bce"
    """Mask loss: bce, or focal (Lin et al. 2017), which counts cells less that are right already."""
    focal_gamma: Annotated[float, at_least(0)] = 2.0
    """Exponent of the focal loss."""
    mask_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the mask loss."""
    dice_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the Dice loss."""
    others_share: Annotated[float, between(0, 1)] = 0.1
    """Share of mask and Dice loss for the mean over all masks that a pass offers; the rest is for the best of them."""
    iou_weight: Annotated[float, at_least(0)] = 1.0
    """Weight of the squared errors of the predicted IoUs."""
    save_every: Annotated[int, at_least(1)] = 200
    """Steps between checkpoints."""
    ranks: Annotated[int, at_least(1)] = 1
    """DeepSpeed processes; with one, it is this process. Must divide batch_size."""
    zero_stage: Annotated[int, one_of(0, 1, 2, 3)] = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    """Number format of the weights: float32 or bfloat16."""
    threads: Annotated[int, at_least(1)] = 2
    """Torch threads of one rank."""
    gpus_per_rank: Annotated[float, at_least(0)] = 0.0
    """GPUs that one rank reserves."""

    def __post_init__(self) -> None:
        check_ranges(self, "training")
        if not self.stages:
            raise ValueError("training.stages is empty; give one or more.")
        try:
            refuse_parts_of_cards(self.engine)
        except ValueError as error:  # what the learner of a run calls learner.NAME is training.NAME here
            raise ValueError(str(error).replace("learner.", "training.")) from None
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size is {self.batch_size}, which ranks {self.ranks} must divide; change either.")

    @property
    def engine(self) -> TrainingSettings:
        """What the DeepSpeed engine around the refiner is built from; raises ValueError for what it cannot be."""
        return TrainingSettings(
            ranks=self.ranks,
            zero_stage=self.zero_stage,
            dtype=self.dtype,
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
    """Damaged true masks among the pairs, in place of answers or beside them."""
    held_out_examples: Annotated[int | None, at_least(0)] = 2000
    """Examples of each held-out split whose ids and images are barred, at least those that a run evaluates; null: all.
    """
    calibration_share: Annotated[float, between(0, 0.9)] = 0.1
    """Share of the images whose pairs teach nothing but what a predicted IoU is worth."""
    evaluation_share: Annotated[float, between(0, 0.9)] = 0.1
    """Share of the images whose pairs do neither, and judge."""
    damaged_scenes: Annotated[int, at_least(0)] = 0
    """Examples of the split `validation` whose true masks are damaged and refined, as another judge."""
    network: RefinerSettings = field(default_factory=RefinerSettings)
    head: dict[str, Any] = field(default_factory=lambda: {"name": "pixel_head"})
    """Head of the network: a file of policies/heads/, and its settings."""
    training: RefinerTraining = field(default_factory=RefinerTraining)
    unfinished: bool = False
    """Take also what a run has archived that has not reached its last step."""

    def __post_init__(self) -> None:
        check_ranges(self)
        shares = (self.calibration_share, self.evaluation_share)
        if sum(shares) > 0.9:
            raise ValueError(
                f"calibration_share is {shares[0]} and evaluation_share {shares[1]}; leave a tenth or more of the "
                "images to train on."
            )


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
        check_ranges(self)
        if not self.runs:
            raise ValueError("runs is empty; give folders of runs, as runs=[runs/demo].")
        if not self.out:
            raise ValueError("out is empty; give a new folder for the refiner, as out=runs/refiner.")
