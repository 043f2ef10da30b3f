"""Frozen vision features on disk, computed once: a file an image, or a file a crop where the head sees through crops.

Files are safetensors below a folder named by the vision tower that made them, written whole or not at all; several
trainings may share the folder. They keep the tower's own dtype, so nothing is lost and bfloat16 takes half.
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from envs.polygons import Box
from policies.base import VisionFeatures


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
