"""Pairs to train a refiner on in a moment: one bright ellipse on noise an image, and beside it a box that is a little
off as its coarse mask. This file is also the `module:` of the Env of these images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from envs.example import SPLITS, Example, ImageRef, Prompt, Truth, image_sha256
from envs.geometry.rle import rle_from_mask
from envs.plugin import Plugin
from policies.crops import grown_boxes_px
from policies.families.base import VisionFeatures
from policies.refiner.mask_refiner import RefinerSettings
from rl.config.refiner import RefinerTraining
from rl.pairs.index import INDEX, PAIR_SCHEMA
from rl.refiner.rank import RefinerRankSettings

Mask = NDArray[np.bool_]
NETWORK = RefinerSettings(crop_px=24, passes=2)
HEAD = Plugin("policies.heads", "Head", "pixel_head", {"channels": 8, "halvings": 2})
TRAINING = RefinerTraining(steps=4, batch_size=4, lr=5e-3, average=0.0, save_every=2, threads=1)
CHANNELS, EARLY_CHANNELS = 4, 3
TOWER = "ab" * 32


@dataclass(frozen=True)
class Env:
    """Images of H x W px from `sizes` in turns; equal indices of a split are equal images."""

    split: str
    num: int = 60
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)

    @property
    def fingerprint(self) -> str:
        return sha256(repr(self).encode()).hexdigest()

    @property
    def notes(self) -> dict[str, list[str]]:
        return {}

    def phrase_words(self) -> set[str]:
        return {"ellipse"}

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        image, true, _ = self.drawn(index)
        ref = ImageRef(str(index), image_sha256(image), *true.shape)
        return Example(
            f"{self.split} {index}", ref, Prompt.of_text("ellipse"), Truth(true[None]), self.split, "made", "CC0"
        )

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        return self.drawn(int(ref.key))[0]

    def scene(self, index: int) -> list[Example]:
        return [self[index]]

    def drawn(self, index: int) -> tuple[NDArray[np.uint8], Mask, Mask]:
        """(image, true mask, coarse mask) of one index."""
        height, width = self.sizes[index % len(self.sizes)]
        rng = np.random.default_rng([SPLITS.index(self.split), index])
        y, x = np.mgrid[:height, :width] + 0.5
        side = np.array([width, height])
        middle, radius = side * rng.uniform(0.38, 0.62, 2), side * rng.uniform(0.16, 0.28, 2)
        true = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 < 1
        middle, radius = middle + rng.normal(0, 1.2, 2), radius * math.sqrt(math.pi) / 2
        coarse = (abs(x - middle[0]) < radius[0]) & (abs(y - middle[1]) < radius[1])
        noise = rng.integers(0, 120, (height, width, 3)) + 120 * true[..., None]
        return noise.astype(np.uint8), true, coarse


def iou_of(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def row_of(env: Env, index: int, ignore: Mask | None = None) -> dict[str, object]:
    """A row of the index; ignore: [H, W] pixels that count neither way."""
    example, (_, true, coarse) = env[index], env.drawn(index)
    box = grown_boxes_px(torch.from_numpy(coarse)[None], 0.0, 1.0)[0].tolist()
    fields: dict[str, object] = dict.fromkeys(PAIR_SCHEMA.names) | {
        "example_id": example.id,
        "prompt": "ellipse",
        "run": "made",
    }
    ref = example.image
    fields |= {"image_key": ref.key, "image_sha256": ref.sha256, "height": ref.height, "width": ref.width}
    fields |= {"coarse_rle": rle_from_mask(coarse), "true_rle": rle_from_mask(true), "iou": iou_of(coarse, true)}
    return fields | {"box_px": box, "ignore_rle": None if ignore is None else rle_from_mask(ignore)}


def write_index(folder: Path, rows: Sequence[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PAIR_SCHEMA), folder / INDEX)
    return folder / INDEX


def features_of(sha256: str, rows: int = 4, columns: int = 4) -> VisionFeatures:
    """Random ones, the same for the same image."""
    generator = torch.Generator().manual_seed(int(sha256[:8], 16))
    parts = (torch.randn(1, channels, rows, columns, generator=generator) for channels in (CHANNELS, EARLY_CHANNELS))
    return VisionFeatures(*parts)


def prepared(
    folder: Path,
    training: RefinerTraining = TRAINING,
    env: Env = Env("train"),
    network: RefinerSettings = NETWORK,
    shares: tuple[float, float] = (0.1, 0.1),
) -> RefinerRankSettings:
    """Settings of a rank over an index of all examples of `env`, with their features, all written below `folder`."""
    recipe = Plugin(
        "envs.datasets", "Env", "ellipses", {"num": env.num, "sizes": env.sizes}, str(Path(__file__).resolve())
    )
    index = write_index(folder, [row_of(env, k) for k in range(len(env))])
    found = RefinerRankSettings(
        network, HEAD, training, index, {"made": recipe}, folder / "features", TOWER, CHANNELS, EARLY_CHANNELS, *shares
    )
    pairs, store = found.pairs(), found.store()
    for number, (height, width) in enumerate(pairs.sizes(range(len(pairs)))):
        grid = (height // 8, width // 8) if network.features == "image" else (4, 4)
        path = pairs.feature_path(store, number)
        store.write(path, features_of(path.stem, *grid), torch.float32)
    return found


def with_training(settings: RefinerRankSettings, **changed: object) -> RefinerRankSettings:
    return replace(settings, training=replace(settings.training, **changed))
