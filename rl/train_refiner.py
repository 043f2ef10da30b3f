"""Train a MaskRefiner on pairs of coarse and true masks, such as a run's archive holds.

Every unrolled pass is held to the true mask (binary cross-entropy + Dice at the crop's resolution), and to its own
overlap with it (squared error of the predicted IoU). The vision features are frozen, computed once an image; so images
are never flipped, since their features would not flip with them.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from policies.base import VisionFeatures
from policies.mask_refiner import MaskRefiner, RefinedMasks, RefinerPass, RefinerSettings, cut


@dataclass(frozen=True)
class RefinerTraining:
    """How a refiner is trained."""

    steps: int = 600
    """Optimiser steps."""
    batch_size: int = 32
    """Pairs a step."""
    lr: float = 2e-3
    """AdamW's highest rate (see `lr_at`)."""
    weight_decay: float = 0.01
    seconds: float | None = None
    """Wall-clock limit towards which the rate falls; a run that it cuts cannot be repeated exactly. None: no limit."""
    seed: int = 0
    box_jitter: float = 0.1
    """Each edge of a box moves by at most this part of the box's side."""
    synthetic_share: float = 0.1
    """Share of the pairs whose coarse mask is replaced by the true one, damaged."""
    bce_weight: float = 1.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    """Of the squared error of the predicted IoU."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.lr <= 0:
            raise ValueError(
                f"steps is {self.steps}, batch_size {self.batch_size}, lr {self.lr}; the first two must be 1 or "
                "more, the last above 0."
            )
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"seconds is {self.seconds}; set it above 0, or to None for no limit.")
        if not 0 <= self.synthetic_share <= 1 or not 0 <= self.box_jitter < 0.5:
            raise ValueError(
                f"synthetic_share is {self.synthetic_share}, box_jitter {self.box_jitter}; the first must lie in "
                "0..1, the second in 0..0.5."
            )

    def done(self, step: int, elapsed_seconds: float) -> float:
        """How far training is, 0 at its start, 1 or more at its end, by whichever limit is nearer."""
        by_clock = 0.0 if self.seconds is None else elapsed_seconds / self.seconds
        return max(step / self.steps, by_clock)

    def lr_at(self, done: float) -> float:
        """The rate at a point `done` in 0..1: a linear warm-up over the first 5 %, then a cosine to 0."""
        return self.lr * min(1.0, 0.1 + done / 0.05) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class TrainingPairs:
    """P coarse masks beside the true ones, over M images of one size."""

    images: NDArray[np.uint8]
    """[M, H, W, 3] RGB."""
    features: VisionFeatures
    """Of the M images, in the same order."""
    coarse: NDArray[np.bool_]
    """[P, H, W]; where it is empty there is nothing to refine, and the pair is left out."""
    true: NDArray[np.bool_]
    """[P, H, W]."""
    image_index: NDArray[np.int64]
    """[P] which image each pair is of, 0 .. M - 1."""

    def __post_init__(self) -> None:
        num, height, width = self.coarse.shape
        if self.true.shape != self.coarse.shape or self.image_index.shape != (num,):
            raise ValueError(
                f"Coarse masks are {self.coarse.shape}, true masks {self.true.shape}, image_index "
                f"{self.image_index.shape}; give one true mask and one index for each coarse mask."
            )
        if self.images.shape[1:] != (height, width, 3):
            raise ValueError(
                f"Images are {self.images.shape} but masks {height} x {width}; bring both to one size first."
            )
        if not len(self.images) == len(self.features.final) == len(self.features.early):
            raise ValueError(
                f"{len(self.images)} images have {len(self.features.final)} features; compute one an image."
            )
        if num and not 0 <= self.image_index.min() <= self.image_index.max() < len(self.images):
            raise ValueError(
                f"image_index runs from {self.image_index.min()} to {self.image_index.max()}, "
                f"but there are {len(self.images)} images."
            )
        if not self.coarse.any():
            raise ValueError(f"None of the {num} pairs has a coarse mask to refine; keep answers with an area.")


@dataclass(frozen=True)
class _Batch:
    """`batch_size` pairs, drawn on the CPU and moved to the device."""

    images: Tensor
    features: VisionFeatures
    coarse: Tensor
    true: Tensor
    box_moves: Tensor
    """[B, 4] how far each edge of the box moves, in sides of the box."""


def damage(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Bool masks [B, H, W] as a poor answer might draw them: moved by up to a tenth of their extent, the edge uneven.

    The edge is grown here and eaten away there, by noise over a blurred mask. A mask that would vanish is left alone.
    """
    num, height, width = masks.shape
    noise = functional.interpolate(torch.randn(num, 1, 6, 6, generator=generator), (height, width), mode="bicubic")
    level = torch.rand(num, 1, 1, 1, generator=generator) * 0.5 + 0.25
    extent = torch.stack([masks.any(dim=1).sum(dim=1), masks.any(dim=2).sum(dim=1)], dim=1)
    shift_px = (torch.rand(num, 2, generator=generator) - 0.5) * 0.2 * extent
    theta = torch.eye(2, 3).repeat(num, 1, 1)
    theta[:, :, 2] = shift_px * 2 / torch.tensor([width, height])
    grid = functional.affine_grid(theta, [num, 1, height, width], align_corners=False)
    moved = functional.grid_sample(masks[:, None].float(), grid, align_corners=False)
    window = 2 * max(1, round(0.04 * max(height, width))) + 1
    blurred = functional.avg_pool2d(moved, window, 1, window // 2)
    damaged = (blurred + 0.2 * noise > level)[:, 0] & (blurred[:, 0] > 0)
    vanished = ~damaged.flatten(1).any(dim=1)
    return torch.where(vanished[:, None, None], masks, damaged)


def pass_loss(result: RefinerPass, true: Tensor, true_area: Tensor, training: RefinerTraining) -> Tensor:
    """Loss of one pass, a scalar.

    true: [B, R, R] float in 0..1, the true mask in the crop; true_area: [B] its area in cells, also outside the crop.
    """
    bce = functional.binary_cross_entropy_with_logits(result.logits, true)
    soft = result.logits.sigmoid()
    overlap = (soft * true).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (soft.sum(dim=(1, 2)) + true.sum(dim=(1, 2)) + 1)
    iou_error = result.predicted_iou - crop_iou(result.logits, true, true_area)
    return (
        training.bce_weight * bce + training.dice_weight * dice.mean() + training.iou_weight * iou_error.square().mean()
    )


def crop_iou(logits: Tensor, true: Tensor, true_area: Tensor) -> Tensor:
    """[B] IoU of crop logits [B, R, R] with a mask of true_area [B] cells, of which `true` [B, R, R] is in the crop."""
    drawn = logits > 0
    intersection = (drawn & (true >= 0.5)).sum(dim=(1, 2))
    inside = (true >= 0.5).sum(dim=(1, 2))
    outside = (true_area - true.sum(dim=(1, 2))).clamp(min=0)
    union = drawn.sum(dim=(1, 2)) + inside - intersection + outside
    return intersection / union.clamp(min=1)


def _draw(
    pairs: TrainingPairs, usable: Tensor, training: RefinerTraining, device: str, generator: torch.Generator
) -> _Batch:
    chosen = usable[torch.randint(len(usable), (training.batch_size,), generator=generator)].numpy()
    images = pairs.image_index[chosen]
    coarse, true = torch.from_numpy(pairs.coarse[chosen]), torch.from_numpy(pairs.true[chosen])
    replaced = torch.rand(len(chosen), generator=generator) < training.synthetic_share
    # An empty true mask can't be damaged into anything.
    replaced &= true.flatten(1).any(dim=1)
    coarse = torch.where(replaced[:, None, None], damage(true, generator), coarse)
    moves = (torch.rand(len(chosen), 4, generator=generator) * 2 - 1) * training.box_jitter
    features = VisionFeatures(pairs.features.final[images].to(device), pairs.features.early[images].to(device))
    pixels = torch.from_numpy(pairs.images[images])
    return _Batch(pixels.to(device), features, coarse.to(device), true.to(device), moves.to(device))


def _loss(refiner: MaskRefiner, batch: _Batch, training: RefinerTraining) -> tuple[Tensor, Tensor]:
    """(loss over all passes, mean IoU after the last one), two scalars."""
    height, width = batch.coarse.shape[1:]
    size = refiner.settings.crop_px
    boxes = refiner.boxes_px(batch.coarse)
    boxes = boxes + batch.box_moves * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    both = torch.stack([batch.coarse, batch.true], dim=1).float()
    coarse, true = cut(both, boxes, height, width, size).unbind(1)
    area_px = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    true_area = batch.true.sum(dim=(1, 2)) * size**2 / area_px
    passes = refiner(refiner.crops(batch.images, batch.features, boxes), coarse)
    loss = torch.stack([pass_loss(result, true, true_area, training) for result in passes]).mean()
    return loss, crop_iou(passes[-1].logits, true, true_area).mean()


def train_refiner(
    pairs: TrainingPairs,
    settings: RefinerSettings,
    training: RefinerTraining,
    tower_checksum: str,
    writer: SummaryWriter | None = None,
    device: str = "cpu",
) -> MaskRefiner:
    """A refiner trained on `pairs`; equal pairs and settings give equal weights, unless `seconds` cuts the run.

    tower_checksum: SHA-256 of the vision tower that made the features. writer: gets refiner/loss and the batch's
    refiner/iou at each step. device: where to train; the refiner stays there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        channels = pairs.features.final.shape[1], pairs.features.early.shape[1]
        refiner = MaskRefiner(settings, *channels, tower_checksum).to(device)
    generator = torch.Generator().manual_seed(training.seed)
    optimiser = torch.optim.AdamW(refiner.parameters(), training.lr, weight_decay=training.weight_decay)
    usable = torch.from_numpy(np.flatnonzero(pairs.coarse.any(axis=(1, 2))))
    started = time.monotonic()
    with Progress() as progress:
        task = progress.add_task("refiner", total=1.0)
        for step in range(training.steps):
            done = training.done(step, time.monotonic() - started)
            if done >= 1:
                break
            loss, iou = _loss(refiner, _draw(pairs, usable, training, device, generator), training)
            _update(refiner, optimiser, loss, training.lr_at(done))
            if writer is not None:
                writer.add_scalar("refiner/loss", loss.item(), step)
                writer.add_scalar("refiner/iou", iou.item(), step)
            progress.update(task, completed=done, description=f"refiner loss {loss.item():.3f} IoU {iou.item():.3f}")
        progress.update(task, completed=1.0)
    return refiner.eval()


def _update(refiner: MaskRefiner, optimiser: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
    optimiser.step()


def predict_masks(
    refiner: MaskRefiner,
    images: NDArray[np.uint8],
    features: VisionFeatures,
    coarse: NDArray[np.bool_],
    batch_size: int = 64,
) -> RefinedMasks:
    """Refined masks of images [B, H, W, 3], their features and coarse masks [B, H, W], in batches; on the CPU."""
    device = refiner.device
    masks, predicted_iou = torch.empty(coarse.shape, dtype=torch.bool), torch.empty(len(coarse))
    for start in range(0, len(coarse), batch_size):
        part = slice(start, start + batch_size)
        refined = refiner.refine(
            torch.from_numpy(images[part]).to(device),
            VisionFeatures(features.final[part].to(device), features.early[part].to(device)),
            torch.from_numpy(coarse[part]).to(device),
        )
        masks[part], predicted_iou[part] = refined.masks.cpu(), refined.predicted_iou.cpu()
    return RefinedMasks(masks, predicted_iou)
