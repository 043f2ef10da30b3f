"""Crops of a batch, changed as other images might have shown them: what a refiner of few images needs.

Pure functions of a batch and a random generator; masks and image change together.
"""

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from policies.heads.base import RefinerCrops
from rl.config.refiner import RefinerTraining
from rl.refiner.data import RefinerBatch
from rl.refiner.loss import CropTruth

_ACROSS, _DOWN = 0.5, 0.25
"""Shares that are mirrored left to right, and upside down: the latter are rarer among images."""


def augmented(batch: RefinerBatch, training: RefinerTraining, rng: Generator) -> RefinerBatch:
    """The batch, mirrored, recoloured and without features where the settings ask for it."""
    if training.flips:
        batch = mirrored(batch, -1, rng.random(len(batch.coarse)) < _ACROSS)
        batch = mirrored(batch, -2, rng.random(len(batch.coarse)) < _DOWN)
    crops = batch.crops
    if training.colour_jitter:
        crops = RefinerCrops(recoloured(crops.images, training.colour_jitter, rng), crops.final, crops.early)
    if training.feature_dropout:
        kept = rng.random(len(batch.coarse)) >= training.feature_dropout
        seen = torch.from_numpy(kept.astype(np.float32))[:, None, None, None]
        crops = RefinerCrops(crops.images, crops.final * seen, crops.early * seen)
    return RefinerBatch(crops, batch.coarse, batch.truth)


def mirrored(batch: RefinerBatch, axis: int, which: np.ndarray) -> RefinerBatch:
    """The batch, the crops of bool `which` [B] mirrored: axis -1 left to right, -2 upside down."""
    chosen = torch.from_numpy(which)

    def mirror(maps: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (maps.ndim - 1)), maps.flip(axis), maps)

    crops, truth = batch.crops, batch.truth
    return RefinerBatch(
        RefinerCrops(mirror(crops.images), mirror(crops.final), mirror(crops.early)),
        mirror(batch.coarse),
        CropTruth(mirror(truth.true), mirror(truth.counted), truth.area),
    )


def recoloured(images: Tensor, jitter: float, rng: Generator) -> Tensor:
    """Images [B, 3, R, R] in -1..1, the contrast and brightness of each channel changed, held within -1..1."""
    shape = (len(images), 3, 1, 1)
    contrast = torch.from_numpy(1 + jitter * rng.standard_normal(shape)).float()
    brightness = torch.from_numpy(2 * jitter * rng.standard_normal(shape)).float()
    return (images * contrast + brightness).clamp(-1, 1)
