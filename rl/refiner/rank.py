"""One rank that trains a refiner: MaskRefiner in a DeepSpeed engine.

A plain class that runs without Ray, alone or as one of several ranks. All ranks call everything, in the same order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.plugin import Plugin
from policies.refiner.mask_refiner import MaskRefiner, RefinerSettings
from rl.config.learner import RankPlace
from rl.config.refiner import RefinerStage, RefinerTraining
from rl.learner.engine import TrainingEngine, Watchdog, join, watched
from rl.refiner.augment import augmented
from rl.refiner.data import FeatureStore, RefinerPairs, shares
from rl.refiner.loss import crop_iou, pass_losses


@dataclass(frozen=True)
class RefinerRankSettings:
    """What a rank builds itself from; small, since it travels."""

    network: RefinerSettings
    head: Plugin
    training: RefinerTraining
    index: Path
    """The pairs (rl/pairs/index.py)."""
    envs: Mapping[str, Plugin]
    """By run."""
    features: Path
    """Folder of the FeatureStore."""
    tower_checksum: str
    final_channels: int
    early_channels: int
    calibration_share: float
    evaluation_share: float

    def refiner(self) -> MaskRefiner:
        """The untrained refiner, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            channels = self.final_channels, self.early_channels
            return MaskRefiner(self.network, self.head, *channels, self.tower_checksum)

    def refuse_wrong_crops(self) -> None:
        """Raise ValueError where the head can't take the crops of a stage."""
        head = self.refiner().head
        for stage in self.training.stages:
            head.feature_cells(stage.crop_px or self.network.crop_px)

    def refuse_empty_stages(self) -> None:
        """Raise ValueError where a stage has no pair to train on."""
        pairs = self.pairs()
        for stage in self.training.stages:
            self.fitting(pairs, stage)

    def fitting(self, pairs: RefinerPairs, stage: RefinerStage) -> NDArray[np.int64]:
        """Numbers of the pairs that a stage trains on; raises ValueError where there are none."""
        numbers = shares(pairs.image_hashes(), self.calibration_share, self.evaluation_share)["train"]
        iou = pairs.iou[numbers]
        found: NDArray[np.int64] = numbers[(iou >= stage.min_iou) & (iou <= stage.max_iou)]
        if not len(found):
            raise ValueError(
                f"stage {stage.name!r} trains on pairs of IoU {stage.min_iou:g} to {stage.max_iou:g}, and none of the "
                f"{len(numbers)} to train on has one; widen it, or take more pairs."
            )
        return found

    def pairs(self) -> RefinerPairs:
        """The pairs themselves."""
        envs = {run: plugin.build(split="train") for run, plugin in self.envs.items()}
        return RefinerPairs(self.index, envs, self.network, self.training.seed, self.training.box_jitter)

    def store(self) -> FeatureStore:
        """Where their features are."""
        return FeatureStore(self.features, self.tower_checksum, self.network.early_block)


@dataclass(frozen=True)
class Preview:
    """A pair as the refiner has it now, all of it cut to the crop."""

    image: NDArray[np.uint8]
    """[R, R, 3]"""
    coarse: NDArray[np.bool_]
    """[R, R]"""
    fine: NDArray[np.bool_]
    """[R, R] of the last pass."""
    true: NDArray[np.bool_]
    """[R, R]"""


class RefinerRank:
    """A DeepSpeed engine around a refiner, and the steps on it."""

    def __init__(self, settings: RefinerRankSettings, place: RankPlace) -> None:
        torch.set_num_threads(settings.training.threads)
        self._settings, self._place = settings, place
        self.watchdog = Watchdog(f"refiner rank {place.rank} of {place.world_size}")
        with self.watchdog.phase("joining the other ranks"):
            join(place)
        self._pairs, self._store = settings.pairs(), settings.store()
        hashes = self._pairs.image_hashes()
        parts = shares(hashes, settings.calibration_share, settings.evaluation_share)
        self._fitting = [settings.fitting(self._pairs, stage) for stage in settings.training.stages]
        self._shown = np.concatenate([parts["evaluation"], parts["calibration"], parts["train"]])
        refiner = settings.refiner().train()
        self._engine = TrainingEngine(refiner, refiner, settings.training.engine, place, self.watchdog)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step number `end`; what to log of each step, means over this rank's pairs."""
        logs = []
        while self._engine.steps_done < end:
            logs.append(self._step())
        return logs

    @watched
    def _step(self) -> dict[str, float]:
        training, step = self._settings.training, self._engine.steps_done
        stage, lr = training.stage_at(step), training.lr_at(step)
        loss, log = self._loss(step, stage)
        # The engine takes the mean over ranks, whose shares of a batch are of one size.
        self._engine.backward(loss)
        norm, applied = self._engine.update(lr)
        self._engine.end_step()
        if not math.isfinite(log["loss"]):
            raise FloatingPointError(f"the refiner's loss of step {step} is {log['loss']}; lower training.lr.")
        if not applied:
            raise FloatingPointError(f"the refiner's gradient of step {step} has norm {norm}; lower training.lr.")
        return log | {"lr": lr}

    def _loss(self, step: int, stage: RefinerStage) -> tuple[Tensor, dict[str, float]]:
        training, network = self._settings.training, self._settings.network
        numbers, moves = self._draw(step, stage)
        crop_px = stage.crop_px or network.crop_px
        head = self._engine.network.head
        batch = self._pairs.batch(numbers, moves, crop_px, head.feature_cells(crop_px), self._store)
        # Keyed by the rank too: its share of the batch is its own.
        batch = augmented(batch, training, np.random.default_rng([training.seed, step, self._place.rank, 1]))
        batch = batch.to(self._engine.device, next(head.parameters()).dtype)
        passes = self._engine(batch.crops, batch.coarse)
        inputs, losses = batch.coarse, []
        for found in passes:
            losses.append(pass_losses(found, inputs, batch.truth, training, stage))
            inputs = found.best_logits.detach().float().sigmoid()
        mask = torch.stack([one.mask for one in losses]).mean()
        dice = torch.stack([one.dice for one in losses]).mean()
        iou = torch.stack([one.iou for one in losses]).mean()
        loss = training.mask_weight * mask + training.dice_weight * dice + training.iou_weight * iou
        with torch.no_grad():
            before = crop_iou((batch.coarse > 0.5)[:, None], batch.truth).mean()
            after = crop_iou(passes[-1].best_logits[:, None] > 0, batch.truth).mean()
        log = {"loss": loss, "mask_loss": mask, "dice_loss": dice, "iou_error": iou, "coarse_iou": before, "iou": after}
        return loss, {name: float(value.detach()) for name, value in log.items()}

    def _draw(self, step: int, stage: RefinerStage) -> tuple[list[int], NDArray[np.float64]]:
        """This rank's share of the pairs of a step, and how the edges of their boxes move; keyed by seed and step."""
        training = self._settings.training
        rng = np.random.default_rng([training.seed, step])
        drawn = rng.choice(self._fitting[training.stages.index(stage)], training.batch_size)
        moves = rng.uniform(-1, 1, (training.batch_size, 4)) * training.box_jitter
        mine = slice(self._place.rank, None, self._place.world_size)
        return drawn[mine].tolist(), moves[mine]

    @watched
    @torch.no_grad()
    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now; training pairs where none is held out."""
        numbers = self._shown[:num].tolist()
        crop_px = self._settings.network.crop_px
        head = self._engine.network.head
        still = np.zeros((len(numbers), 4))
        batch = self._pairs.batch(numbers, still, crop_px, head.feature_cells(crop_px), self._store)
        moved = batch.to(self._engine.device, next(head.parameters()).dtype)
        fine = self._engine(moved.crops, moved.coarse)[-1].best_logits > 0
        images = ((batch.crops.images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        masks = (batch.coarse > 0.5, fine.cpu(), batch.truth.true > 0.5)
        return [Preview(*(part.numpy() for part in parts)) for parts in zip(images, *masks, strict=True)]

    @watched
    def save(self, folder: Path, tag: str) -> None:
        """TrainingEngine.save."""
        self._engine.save(folder, tag)

    @watched
    def load(self, folder: Path, tag: str) -> None:
        """TrainingEngine.load."""
        self._engine.load(folder, tag)

    @watched
    def save_policy(self, folder: Path) -> None:
        """Write the refiner, its running average where there is one. Rank 0 writes, all ranks call."""
        with self._engine.whole(self._engine.network.parameters()):
            if self._place.rank == 0:
                refiner = self._settings.refiner()
                weights = self._engine.average or dict(self._engine.network.named_parameters())
                for name, parameter in refiner.named_parameters():
                    parameter.data.copy_(weights[name].float())
                refiner.eval().save(folder)

    def close(self) -> None:
        """Nothing to end: the process group lives as long as the process."""
