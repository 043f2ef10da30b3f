"""Pairs as a refiner is trained on them: crops of images, coarse masks and truths, and vision features kept on disk.

Features are computed once: a file per image, or per crop where the head sees through crops. They are safetensors below
a folder named by the vision tower that made them, written whole or not at all; several trainings may share the folder.
They keep the tower's own dtype, so nothing is lost and bfloat16 takes half.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.datasets.base import Env
from envs.example import Truth
from envs.geometry.masks import places_by_size
from envs.geometry.rle import mask_from_rle
from envs.polygons import Box
from policies.crops import cut_filled, grown_boxes_px, resized
from policies.families.base import VisionFeatures
from policies.heads.base import RefinerCrops
from policies.refiner.mask_refiner import RefinerSettings
from rl.pairs.index import row_image
from rl.refiner.loss import CropTruth


class FeatureStore:
    """Features of images and crops by the image's content hash."""

    def __init__(self, folder: Path, tower_checksum: str, early_block: int) -> None:
        """early_block: which block's output the early features are."""
        self.folder = folder / f"{tower_checksum[:16]}-early{early_block}"

    def path(self, image_sha256: str, box_px: Box | None = None, crop_px: int = 0) -> Path:
        """Where the features of an image are, or those of its crop to `box_px` at crop_px x crop_px pixels."""
        name = image_sha256
        if box_px is not None:
            numbers = " ".join(value.hex() for value in box_px)
            name = hashlib.sha256(f"{image_sha256} {numbers} {crop_px}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def write(self, path: Path, features: VisionFeatures, dtype: torch.dtype) -> None:
        """Keep the features of one image or crop, [1, C, h, w] and [1, E, h, w]."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # trainings may share the folder
        parts = {"final": features.final, "early": features.early}
        save_file({name: part.to(dtype).contiguous() for name, part in parts.items()}, partial)
        partial.replace(path)

    def read(self, path: Path) -> VisionFeatures:
        """Features of one image or crop, float32 [1, C, h, w] and [1, E, h, w]."""
        parts = load_file(path)
        return VisionFeatures(parts["final"].float(), parts["early"].float())


_IMAGE_BYTES = 512 * 2**20
"""Images that are kept decoded."""


@dataclass(frozen=True)
class RefinerBatch:
    """B pairs as crops."""

    crops: RefinerCrops
    coarse: Tensor
    """[B, R, R] float in 0..1."""
    truth: CropTruth

    def to(self, device: torch.device, dtype: torch.dtype) -> "RefinerBatch":
        """On another device; what the network sees in its dtype."""
        crops = RefinerCrops(
            *(part.to(device, dtype) for part in (self.crops.images, self.crops.final, self.crops.early))
        )
        truth = CropTruth(*(part.to(device) for part in (self.truth.true, self.truth.counted, self.truth.area)))
        return RefinerBatch(crops, self.coarse.to(device, dtype), truth)


@dataclass(frozen=True)
class PixelPair:
    """One pair at the size of its image."""

    image: NDArray[np.uint8]
    """[H, W, 3]"""
    coarse: NDArray[np.bool_]
    """[H, W]"""
    true: NDArray[np.bool_]
    """[H, W]"""
    counted: NDArray[np.bool_]
    """[H, W] pixels that count; all of them where nothing is to be ignored."""


def truth_of_pair(true: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Truth:
    """The Truth that a pair's masks [H, W] mean: what is true, and what is to be ignored, where anything is."""
    return Truth(true[None], None if counted.all() else ~counted)


class RefinerPairs:
    """The pairs of an index, with their images and features."""

    def __init__(
        self, index: Path, envs: Mapping[str, Env], network: RefinerSettings, seed: int, box_jitter: float
    ) -> None:
        """envs: of the training split, by run; seed and box_jitter: of the boxes whose crops are encoded."""
        self._rows, self._envs, self._network = pq.read_table(index), envs, network
        self._seed, self._box_jitter = seed, box_jitter
        self._images: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._image_bytes = 0
        self.iou: NDArray[np.float64] = self._rows["iou"].to_numpy()

    def __len__(self) -> int:
        return self._rows.num_rows

    def row(self, number: int) -> dict[str, Any]:
        """Columns of one pair."""
        row: dict[str, Any] = self._rows.slice(number, 1).to_pylist()[0]
        return row

    def image_hashes(self) -> list[str]:
        """SHA-256 of each pair's image."""
        hashes: list[str] = self._rows["image_sha256"].to_pylist()
        return hashes

    def sizes(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """(H, W) of the images of some pairs."""
        height, width = (self._rows[name].to_numpy() for name in ("height", "width"))
        return [(int(height[number]), int(width[number])) for number in numbers]

    def pixels(self, number: int) -> PixelPair:
        """One pair at the size of its image. Raises ValueError or OSError where the image has changed or is gone."""
        return PixelPair(self._image(self.row(number)), *self.masks(number))

    def masks(self, number: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """(coarse, true, counted) masks [H, W] of one pair."""
        row = self.row(number)
        size = row["height"], row["width"]
        coarse, true = mask_from_rle(row["coarse_rle"], *size), mask_from_rle(row["true_rle"], *size)
        ignore = row["ignore_rle"]
        return coarse, true, np.ones(size, np.bool_) if ignore is None else ~mask_from_rle(ignore, *size)

    def box_px(self, number: int, coarse: NDArray[np.bool_], moves: Sequence[float] | None = None) -> Box:
        """The box that is cut out, its edges moved by `moves` [4] of its sides.

        Where crops are encoded the moves are the pair's own, always the same, whatever is given.
        """
        network = self._network
        box = grown_boxes_px(torch.from_numpy(coarse)[None], network.box_growth, network.min_box_px)[0].tolist()
        if network.features == "crop":
            rng = np.random.default_rng([self._seed, number])
            moves = (rng.uniform(-1, 1, 4) * self._box_jitter).tolist()
        return moved_box(box, moves or (0.0, 0.0, 0.0, 0.0), *coarse.shape)

    def feature_path(self, store: FeatureStore, number: int) -> Path:
        """Where the features of a pair are kept."""
        row = self.row(number)
        if self._network.features == "image":
            return store.path(row["image_sha256"])
        coarse = mask_from_rle(row["coarse_rle"], row["height"], row["width"])
        return store.path(row["image_sha256"], self.box_px(number, coarse), self._network.crop_px)

    def seen_by_tower(self, number: int) -> NDArray[np.uint8]:
        """What the tower encodes for a pair: its image [H, W, 3], or its crop [R, R, 3]."""
        pair = self.pixels(number)
        if self._network.features == "image":
            return pair.image
        crop = crop_pixels([pair], [self.box_px(number, pair.coarse)], self._network.crop_px)[0, :3]
        return crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()

    def batch(
        self, numbers: Sequence[int], moves: NDArray[np.float64], crop_px: int, cells: int, store: FeatureStore
    ) -> RefinerBatch:
        """These pairs, crops of crop_px cells and features of `cells` cells a side; moves: [B, 4] of box edges."""
        pixels = [self.pixels(number) for number in numbers]
        boxes = [
            self.box_px(number, pair.coarse, move)
            for number, pair, move in zip(numbers, pixels, moves.tolist(), strict=True)
        ]
        maps = crop_pixels(pixels, boxes, crop_px)
        boxes_px = torch.tensor(boxes)
        sides = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(dim=1)
        area = torch.tensor([int((pair.true & pair.counted).sum()) for pair in pixels]) * crop_px**2 / sides
        found = [store.read(self.feature_path(store, number)) for number in numbers]
        sizes = torch.tensor([pair.coarse.shape for pair in pixels])
        final = self._fitted([one.final for one in found], boxes_px, sizes, cells)
        early = self._fitted([one.early for one in found], boxes_px, sizes, cells)
        crops = RefinerCrops(maps[:, :3] / 127.5 - 1, final, early)
        return RefinerBatch(crops, maps[:, 3], CropTruth(maps[:, 4], maps[:, 5], area))

    def _fitted(self, maps: Sequence[Tensor], boxes_px: Tensor, sizes: Tensor, cells: int) -> Tensor:
        """[B, C, f, f] features of images, cut to their boxes, or of crops; sizes: [B, 2] (H, W) of the images."""
        if self._network.features == "crop":
            return torch.cat([resized(one, cells) for one in maps])
        grids = torch.tensor([one.shape[2:] for one in maps])
        scale = (grids / sizes).flip(1).repeat(1, 2)
        fitted = maps[0].new_empty(len(maps), maps[0].shape[1], cells, cells)
        for same in places_by_size([tuple(grid) for grid in grids.tolist()]):
            stacked = torch.cat([maps[k] for k in same])
            fitted[same] = cut_filled(stacked, grids[same], (boxes_px * scale)[same], cells)
        return fitted

    def _image(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        key = row["image_sha256"]
        if key not in self._images:
            self._images[key] = row_image(self._envs, row)
            self._image_bytes += self._images[key].nbytes
            while self._image_bytes > _IMAGE_BYTES and len(self._images) > 1:
                self._image_bytes -= self._images.popitem(last=False)[1].nbytes
        self._images.move_to_end(key)
        return self._images[key]


def moved_box(box: Sequence[float], moves: Sequence[float], height: int, width: int) -> Box:
    """A box (x0, y0, x1, y1) whose edges move by these parts of its sides, but not out of the image."""
    x0, y0, x1, y1 = box
    across, down = x1 - x0, y1 - y0
    return (
        max(0.0, x0 + moves[0] * across),
        max(0.0, y0 + moves[1] * down),
        min(float(width), x1 + moves[2] * across),
        min(float(height), y1 + moves[3] * down),
    )


def crop_pixels(pairs: Sequence[PixelPair], boxes: Sequence[Box], crop_px: int) -> Tensor:
    """[B, 6, R, R] float: image in 0..255, coarse, true and counted mask in 0..1 of pairs cut to boxes.

    Only the box and what the resampling reads around it is looked at, so that large photos cost little.
    """
    windows = [_window(pair, box, crop_px) for pair, box in zip(pairs, boxes, strict=True)]
    found = torch.empty(len(pairs), 6, crop_px, crop_px)
    for same in places_by_size([tuple(_padded(side) for side in pixels.shape[1:]) for pixels, _ in windows]):
        height, width = (_padded(side) for side in windows[same[0]][0].shape[1:])
        maps = np.zeros((len(same), 6, height, width), np.uint8)
        for place, k in enumerate(same):
            pixels = windows[k][0]
            maps[place, :, : pixels.shape[1], : pixels.shape[2]] = pixels
        filled = torch.tensor([windows[k][0].shape[1:] for k in same])
        places = torch.tensor([windows[k][1] for k in same])
        found[same] = cut_filled(torch.from_numpy(maps).float(), filled, places, crop_px)
    return found


def _window(pair: PixelPair, box: Box, crop_px: int) -> tuple[NDArray[np.uint8], Box]:
    """(the pixels that cutting a box reads [6, h, w], the box in their frame)."""
    height, width = pair.coarse.shape
    reach_x, reach_y = (2 + max(1.0, (box[k + 2] - box[k]) / crop_px) for k in (0, 1))
    left, top = max(0, int(box[0] - reach_x)), max(0, int(box[1] - reach_y))
    right, bottom = min(width, int(box[2] + reach_x) + 1), min(height, int(box[3] + reach_y) + 1)
    window = (slice(top, bottom), slice(left, right))
    counted = pair.counted[window]
    masks = np.stack([pair.coarse[window], pair.true[window] & counted, counted])
    pixels = np.concatenate([pair.image[window].transpose(2, 0, 1), masks.astype(np.uint8)])
    return pixels, (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def _padded(side: int) -> int:
    """The power of two that a side of a window is filled up to, so that most windows are cut together."""
    return max(64, 1 << (side - 1).bit_length())


def shares(hashes: Sequence[str], calibration: float, evaluation: float) -> dict[str, NDArray[np.int64]]:
    """Numbers of the pairs to train on, to calibrate by and to judge by, by a hash of their image.

    Pairs of one image are together, and an image stays where it is when others join.
    """
    draws = np.array([_draw(name) for name in hashes])
    return {
        "train": np.flatnonzero(draws >= calibration + evaluation),
        "calibration": np.flatnonzero(draws < calibration),
        "evaluation": np.flatnonzero((draws >= calibration) & (draws < calibration + evaluation)),
    }


def _draw(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
