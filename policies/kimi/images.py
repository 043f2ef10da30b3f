"""How Kimi sees a photo: at its own size as far as its patches allow, padded to whole tokens, in patches in reading
order.

A photo is never enlarged. One of more patches than the limit is shrunk by the root of the ratio. Padding lies right and
below, in black, and is no part of the photo: places are shares of the photo alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Sides = tuple[int, int]
"""Height and width, pixels."""


@dataclass
class KimiImages:
    """What a folder's preprocessor_config.json says."""

    patch_size: int = 14
    merge: int = 2
    """Patches along each side that become one token."""
    in_token_limit: int = 4096
    """Most patches of a photo."""
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def shown(self, height: int, width: int) -> Sides:
        """The photo's own part of what is shown, pixels."""
        patches = (width // self.patch_size) * (height // self.patch_size)
        if patches <= self.in_token_limit:
            return height, width
        scale = math.sqrt(self.in_token_limit / patches)
        return max(1, int(height * scale)), max(1, int(width * scale))

    def padded(self, height: int, width: int) -> Sides:
        """Sides of what is shown, padding included, pixels: multiples of a token's."""
        place = self.patch_size * self.merge
        shown = self.shown(height, width)
        return -(-shown[0] // place) * place, -(-shown[1] // place) * place

    def patches(self, image: NDArray[np.uint8]) -> tuple[Tensor, Sides]:
        """([patches, 3, size, size] float32 in reading order, rows and columns of them) of an image [H, W, 3]."""
        shown, padded = self.shown(*image.shape[:2]), self.padded(*image.shape[:2])
        if shown != image.shape[:2]:
            image = np.asarray(Image.fromarray(image).resize(shown[::-1], Image.Resampling.BICUBIC))
        whole = np.zeros((*padded, 3), np.uint8)
        whole[: shown[0], : shown[1]] = image
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in (self.image_mean, self.image_std))
        pixels = (torch.from_numpy(whole).float() / 255 - mean) / std
        size = self.patch_size
        cut = pixels.unflatten(1, (-1, size)).unflatten(0, (-1, size)).permute(0, 2, 4, 1, 3)
        return cut.flatten(0, 1).contiguous(), (padded[0] // size, padded[1] // size)


def on_photo(tokens: Tensor, shown: tuple[float, float], padded: Sides) -> Tensor:
    """Features [B, C, h, w] of padded photos on a grid of as many cells over the photos alone, float32."""
    if shown == padded:
        return tokens.float().contiguous()
    scale = [shown[1] / padded[1], shown[0] / padded[0]]
    move = torch.tensor([[scale[0], 0.0, scale[0] - 1], [0.0, scale[1], scale[1] - 1]], device=tokens.device)
    grid = torch.nn.functional.affine_grid(move.expand(len(tokens), -1, -1), list(tokens.shape), align_corners=False)
    return torch.nn.functional.grid_sample(tokens.float(), grid, padding_mode="border", align_corners=False)
