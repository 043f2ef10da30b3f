"""How an image becomes crops of one size, and their features one map again.

An image is resampled so that whole windows fit, and each crop sees a margin of its neighbours' windows; a crop of the
whole image comes first. Stretching both sides apart changes nothing about places in fractions of them. Where one crop
holds all of a small image, it is the whole image's crop too, and is held once.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from policies.moondream.config import MoondreamVisionConfig

Tiling = tuple[int, int]
"""Rows and columns of crops."""


def tiling_of(height: int, width: int, vision: MoondreamVisionConfig) -> Tiling:
    """Crops that a height x width image is cut into, (1, 1) where one holds it: at most max_crops, as many along each
    side as its length asks for, and more where the ratio of sides allows it."""
    both = 2 * vision.overlap_margin * vision.enc_patch_size
    window, most = vision.crop_size - both, vision.max_crops
    height, width = height - both, width - both
    if height <= window or width <= window:
        return 1, 1
    fewest = math.ceil(height / window), math.ceil(width / window)
    if fewest[0] * fewest[1] > most:
        ratio = math.sqrt(most / (fewest[0] * fewest[1]))
        return max(1, math.floor(fewest[0] * ratio)), max(1, math.floor(fewest[1] * ratio))
    rows = max(math.floor(math.sqrt(most * height / width)), fewest[0])
    columns = max(math.floor(math.sqrt(most * width / height)), fewest[1])
    if rows * columns > most:
        if columns > rows:
            columns = most // rows
        else:
            rows = most // columns
    return max(1, rows), max(1, columns)


def num_crops(tiling: Tiling) -> int:
    """Crops that are held of an image: those of the tiling, and the whole in one where they are several."""
    tiles = tiling[0] * tiling[1]
    return tiles + (tiles > 1)


def canvas(tiling: Tiling, vision: MoondreamVisionConfig) -> tuple[int, int]:
    """Height and width that an image is resampled to before it is cut, pixels."""
    both = 2 * vision.overlap_margin * vision.enc_patch_size
    window = vision.crop_size - both
    return tiling[0] * window + both, tiling[1] * window + both


def crops_of(image: NDArray[np.uint8], vision: MoondreamVisionConfig) -> Tensor:
    """[crops, 3, side, side] float32 in -1..1 of an image [H, W, 3]: the whole in one, then those of the tiling in
    reading order."""
    tiling, side = tiling_of(image.shape[0], image.shape[1], vision), vision.crop_size
    cut = [_resampled(image, (side, side))]
    if tiling != (1, 1):
        whole, window = (
            _resampled(image, canvas(tiling, vision)),
            side - 2 * vision.overlap_margin * vision.enc_patch_size,
        )
        corners = [(window * row, window * column) for row in range(tiling[0]) for column in range(tiling[1])]
        cut += [whole[top : top + side, left : left + side] for top, left in corners]
    stacked = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


def _resampled(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def stitched(crops: Tensor, tiling: Tiling, margin: int) -> Tensor:
    """[h, w, C] features of an image from those of its crops [rows * columns, side, side, C], in reading order.

    Margins between crops are dropped, those at the edge of the image kept; h = rows (side - 2 margin) + 2 margin.
    """
    rows, columns = tiling
    if tiling == (1, 1):
        return crops[0]
    lines = []
    for row in range(rows):
        top, bottom = margin * (row > 0), crops.shape[1] - margin * (row < rows - 1)
        line: list[Tensor] = []
        for column in range(columns):
            left, right = margin * (column > 0), crops.shape[2] - margin * (column < columns - 1)
            line.append(crops[row * columns + column, top:bottom, left:right])
        lines.append(torch.cat(line, dim=1))
    return torch.cat(lines, dim=0)


def image_crops(images: Sequence[NDArray[np.uint8]], vision: MoondreamVisionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """All crops of B images [crops, 3, side, side], their tilings [B, 3] as (1, rows, columns), and [B] how many each
    has."""
    tilings = [tiling_of(image.shape[0], image.shape[1], vision) for image in images]
    grid = torch.tensor([(1, *tiling) for tiling in tilings], dtype=torch.int64)
    return torch.cat([crops_of(image, vision) for image in images]), grid, torch.tensor([*map(num_crops, tilings)])
