"""Refine masks: images of any sizes and the coarse masks of each in, fine masks out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.families.base import VisionFeatures, VisionTower
from policies.heads.base import RefinedMasks
from policies.refiner.mask_refiner import MaskRefiner


@dataclass(frozen=True)
class RefinedMask:
    """A fine mask, and what the refiner thinks of it."""

    mask: NDArray[np.bool_]
    """[H, W]; empty where the coarse mask was."""
    predicted_iou: float
    """IoU with the true mask as predicted, calibrated, 0..1; 0 where the coarse mask was empty."""
    coarse_iou: float
    """That of the coarse mask."""
    passes: int
    """How many passes were run, 0 where the coarse mask was empty."""
    taken: int
    """Which pass this is; 0: the coarse mask as it came."""


def refine_masks(
    refiner: MaskRefiner,
    tower: VisionTower,
    images: Sequence[NDArray[np.uint8]],
    coarse: Sequence[Sequence[NDArray[np.bool_]]],
    batch_size: int = 64,
) -> list[list[RefinedMask]]:
    """Fine masks of each image [H, W, 3] for its coarse masks [H, W], any number of them, in the caller's order.

    tower: the policy that the refiner was trained with. Features of an image are computed once (those of "crop" once a
    mask). batch_size: how many images of one size the tower sees at once, and how many masks the refiner; each mask
    takes a copy of its image meanwhile, as floats. Raises ValueError where masks and images do not go together.
    """
    _check(images, coarse)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more.")
    found: list[list[RefinedMask]] = [[] for _ in images]
    for chunk in _chunks_of_one_size(images, coarse, batch_size):
        some, their = [images[i] for i in chunk], [coarse[i] for i in chunk]
        for place, refined in _refined(refiner, tower, some, their, batch_size):
            found[chunk[place]].append(refined)
    return found


def crop_features(
    refiner: MaskRefiner, tower: VisionTower, images: Tensor, boxes_px: Tensor, crop_px: int | None = None
) -> VisionFeatures:
    """Features of what boxes [B, 4] cut out of images [B, H, W, 3] uint8, for a refiner whose features are "crop".

    crop_px: cells of a side, None for the refiner's own.
    """
    cut_out = refiner.crop_images(images, boxes_px, crop_px).cpu().numpy()
    return tower.vision_features(list(cut_out), refiner.settings.early_block)


def _check(images: Sequence[NDArray[np.uint8]], coarse: Sequence[Sequence[NDArray[np.bool_]]]) -> None:
    if len(images) != len(coarse):
        raise ValueError(f"there are {len(images)} images, and coarse masks for {len(coarse)}; give a list an image.")
    for i, (image, masks) in enumerate(zip(images, coarse, strict=True)):
        for j, mask in enumerate(masks):
            if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
                raise ValueError(
                    f"coarse[{i}][{j}] is {mask.dtype} {mask.shape}, its image {image.shape}; give bool [H, W] of the "
                    "image's own height and width."
                )


def _chunks_of_one_size(
    images: Sequence[NDArray[np.uint8]], coarse: Sequence[Sequence[NDArray[np.bool_]]], batch_size: int
) -> Iterator[list[int]]:
    """Indices of images of one size, up to batch_size at a time; images without masks are left out."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, (image, masks) in enumerate(zip(images, coarse, strict=True)):
        if len(masks) > 0:
            by_size.setdefault(image.shape, []).append(i)
    for indices in by_size.values():
        for first in range(0, len(indices), batch_size):
            yield indices[first : first + batch_size]


def _refined(
    refiner: MaskRefiner,
    tower: VisionTower,
    images: Sequence[NDArray[np.uint8]],
    coarse: Sequence[Sequence[NDArray[np.bool_]]],
    batch_size: int,
) -> Iterator[tuple[int, RefinedMask]]:
    """(index of the image, fine mask) of all masks of some images of one size, in their order."""
    device, settings = refiner.device, refiner.settings
    pixels = torch.from_numpy(np.stack(images)).to(device)
    drawn = torch.from_numpy(np.stack([mask for masks in coarse for mask in masks]))
    image_of = torch.tensor([i for i, masks in enumerate(coarse) for _ in masks])
    shared = None if settings.features == "crop" else tower.vision_features(images, settings.early_block)
    for own, masks in zip(image_of.split(batch_size), drawn.split(batch_size), strict=True):
        rows, masks = pixels[own.to(device)], masks.to(device)
        boxes = refiner.boxes_px(masks)
        if shared is None:
            features = crop_features(refiner, tower, rows, boxes)
        else:
            features = VisionFeatures(*(maps[own.to(maps.device)] for maps in (shared.final, shared.early)))
        features = VisionFeatures(features.final.to(device), features.early.to(device))
        yield from zip(own.tolist(), _one_by_one(refiner.refine(rows, features, masks, boxes)), strict=True)


def _one_by_one(refined: RefinedMasks) -> Iterator[RefinedMask]:
    columns = (refined.predicted_iou, refined.coarse_iou, refined.passes, refined.taken)
    for mask, *numbers in zip(refined.masks.cpu().numpy(), *(column.tolist() for column in columns), strict=True):
        yield RefinedMask(mask, *numbers)
