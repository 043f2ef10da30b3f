"""What a refiner is trained by: losses of one unrolled pass, as pure functions.

Letters: B masks, M masks that a pass offers, R cells of a side of the crop. Of the M masks the best is held to the
truth (Guzman-Rivera et al. 2012, as in SAM), so that they may differ where the image leaves it open, and all of them a
little, since the one predicted best need not be one that was ever the best; the predicted overlap of all of them is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from policies.heads.base import RefinerPass
from rl.config.refiner import RefinerStage, RefinerTraining


@dataclass(frozen=True)
class CropTruth:
    """True masks as B crops show them."""

    true: Tensor
    """[B, R, R] float in 0..1."""
    counted: Tensor
    """[B, R, R] float in 0..1: 0 where pixels count neither way."""
    area: Tensor
    """[B] cells of the whole true mask, also of what lies outside the crop."""


@dataclass(frozen=True)
class PassLosses:
    """Means over the batch, scalars."""

    mask: Tensor
    """Mask loss of the masks of a pass."""
    dice: Tensor
    """Dice loss of the masks of a pass."""
    iou: Tensor
    """Squared error of the predicted IoUs."""


def pass_losses(
    found: RefinerPass, inputs: Tensor, truth: CropTruth, training: RefinerTraining, stage: RefinerStage
) -> PassLosses:
    """Losses of one pass that was given masks `inputs` [B, R, R] in 0..1."""
    mask = mask_losses(found.logits, truth, training, stage.boundary_weight)
    dice = dice_losses(found.logits, truth)
    best = (training.mask_weight * mask + training.dice_weight * dice).detach().argmin(dim=1, keepdim=True)

    def shared(losses: Tensor) -> Tensor:
        return (1 - training.others_share) * losses.gather(1, best).mean() + training.others_share * losses.mean()

    actual = crop_iou(found.logits > 0, truth)
    given = crop_iou((inputs > 0.5)[:, None], truth)[:, 0]
    iou = (found.predicted_iou - actual).square().mean() + (found.input_iou - given).square().mean()
    return PassLosses(shared(mask), shared(dice), iou)


def mask_losses(logits: Tensor, truth: CropTruth, training: RefinerTraining, boundary_weight: float) -> Tensor:
    """[B, M] weighted mean over the counted cells of cross-entropy, or of focal loss; logits: [B, M, R, R]."""
    true = truth.true[:, None].expand_as(logits)
    loss = functional.binary_cross_entropy_with_logits(logits, true, reduction="none")
    if training.mask_loss == "focal":
        wrong = (true - logits.sigmoid()).abs()
        loss = loss * wrong.pow(training.focal_gamma)
    weight = truth.counted * (1 + boundary_weight * near_boundary(truth.true))
    return (loss * weight[:, None]).sum(dim=(2, 3)) / weight.sum(dim=(1, 2))[:, None].clamp(min=1)


def near_boundary(true: Tensor) -> Tensor:
    """[B, R, R] 1 in cells of `true` [B, R, R] with inside and outside among their 5 x 5 neighbours, 0 elsewhere."""
    inside = (true[:, None] >= 0.5).float()
    some = functional.max_pool2d(inside, 5, 1, 2)
    every = -functional.max_pool2d(-inside, 5, 1, 2)
    return (some - every)[:, 0]


def dice_losses(logits: Tensor, truth: CropTruth) -> Tensor:
    """[B, M] 1 - Dice of soft masks and truth over the counted cells (Milletari et al. 2016), smoothed by 1 cell."""
    soft = logits.sigmoid() * truth.counted[:, None]
    true = (truth.true * truth.counted)[:, None]
    overlap = (soft * true).sum(dim=(2, 3))
    return 1 - (2 * overlap + 1) / (soft.sum(dim=(2, 3)) + true.sum(dim=(2, 3)) + 1)


def crop_iou(drawn: Tensor, truth: CropTruth) -> Tensor:
    """[B, M] IoU of bool masks [B, M, R, R] with the whole true masks, of which the crops show a part."""
    counted = truth.counted[:, None] > 0.5
    inside = (truth.true[:, None] >= 0.5) & counted
    drawn = drawn & counted
    intersection = (drawn & inside).sum(dim=(2, 3))
    outside = (truth.area - truth.true.sum(dim=(1, 2))).clamp(min=0)[:, None]
    union = (drawn | inside).sum(dim=(2, 3)) + outside
    return torch.where(union > 0, intersection / union.clamp(min=1e-9), torch.ones_like(union))
