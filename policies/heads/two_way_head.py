"""The head of the refiner that Moondream ships (m87-labs/kestrel, seg_refiner.py; Segment Anything, HQ-SAM style):
tokens and image attend to each other, each mask token becomes a filter over the upsampled image, and the best of four
masks is kept. 6.15 M parameters at its own sizes.

Dimensions are those read in its released code; where that leaves a choice, its parameter count decides: attention at
full width, each transposed convolution 2 x 2.

Departures. A learned gain times the mask that it was given is added to the logits, and what tokens add starts at zero:
untrained, all of its masks are the one that it was given, so that training starts from the coarse mask rather than
from noise, and a pass can do no harm before it has learned something. The gains differ from mask to mask at the start,
or the best of four equal masks would always be the first, and the others would never learn. And it has one output
more, the IoU of the mask that it was given, which the stop rule compares with.

Letters: B masks, M masks a pass, f feature cells of a crop's side, R its cells, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.heads._two_way_blocks import Exchange, FilteredMap, mask_encoder, perceptron_from_zero
from policies.heads.base import RefinerCrops, RefinerPass, expected_iou, foretold


class Head(nn.Module):
    """A two-way transformer over the features of a crop; it sees no pixels. Untrained, its masks are the one given."""

    def __init__(
        self,
        crop_px: int,
        final_channels: int,
        early_channels: int,
        cell_px: int = 14,
        width: int = 256,
        heads: int = 8,
        blocks: int = 2,
        mlp_ratio: int = 8,
        masks: int = 4,
        mask_channels: int = 16,
        map_heads: int = 4,
    ) -> None:
        """final_channels, early_channels: C and E of the features.

        cell_px: cells of the crop to a feature cell, so that f = crop_px / cell_px; logits are made at 8 f, so 8 makes
        them at the crop's own resolution. width: D, channels of tokens and features. heads: of attention. blocks: in
        which tokens and image attend to each other. mlp_ratio: D times this inside their MLPs. masks: M. mask_channels:
        of the first of the mask encoder's convolutions. map_heads: of the attention over the upsampled map, which has
        D / 8 channels. ValueError for sizes that do not divide each other.
        """
        super().__init__()
        _check_sizes(width, heads, map_heads, mask_channels)
        if min(cell_px, blocks, mlp_ratio, masks) < 1:
            raise ValueError(
                f"cell_px is {cell_px}, blocks {blocks}, mlp_ratio {mlp_ratio}, masks {masks}; give 1 or more of each."
            )
        self.num_masks, self.cell_px = masks, cell_px
        cells = self.feature_cells(crop_px)
        self.project = nn.Conv2d(final_channels, width, 1)
        self.early = nn.Sequential(nn.Linear(early_channels, width), nn.LayerNorm(width), nn.GELU())
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(math.gcd(32, width), width),
            nn.GELU(),
        )
        self.encode_mask = mask_encoder(mask_channels, width)
        self.exchange = Exchange(width, heads, blocks, mlp_ratio, masks + 1, cells)
        self.filtered_map = FilteredMap(width, map_heads, masks)
        self.mask_gains = nn.Parameter(torch.linspace(1.5, 2.5, masks) if masks > 1 else torch.tensor([2.0]))
        self.iou = perceptron_from_zero(width, width, masks + 1)

    def feature_cells(self, crop_px: int) -> int:
        """f of a crop of crop_px cells a side; ValueError where it is no multiple of cell_px."""
        if crop_px < self.cell_px or crop_px % self.cell_px:
            raise ValueError(f"crop_px is {crop_px}; feature cells of cell_px {self.cell_px} need a multiple of it.")
        return crop_px // self.cell_px

    def context(self, crops: RefinerCrops) -> Tensor:
        """What all passes share: final and early features fused, [B, D, f, f]."""
        early = self.early(crops.early.movedim(1, -1)).movedim(-1, 1)
        fused: Tensor = self.fuse(torch.cat([self.project(crops.final), early], dim=1))
        return fused

    def forward(self, images: Tensor, context: Tensor, masks: Tensor) -> RefinerPass:
        """One pass over soft masks [B, R, R] in 0..1; the pixels, images [B, 3, R, R], are not looked at."""
        cells, size = context.shape[2], masks.shape[1]
        encoded = self.encode_mask(masks[:, None])
        encoded = functional.interpolate(encoded, (cells, cells), mode="bilinear", align_corners=False)
        tokens, maps = self.exchange(context + encoded)
        fine = self.filtered_map(tokens[:, :-1], maps)
        drawn = functional.interpolate(fine, (size, size), mode="bilinear", align_corners=False)
        logits = drawn + self.mask_gains[:, None, None] * (2 * masks[:, None] - 1)
        return self._judged(logits, masks, self.iou(tokens[:, -1]))

    def _judged(self, logits: Tensor, masks: Tensor, correction: Tensor) -> RefinerPass:
        """The pass, its IoUs those that its logits [B, M, R, R] let expect, corrected by [B, M + 1] logits of IoU."""
        predicted = foretold(expected_iou(logits, logits > 0), correction[:, :-1])
        best = predicted.argmax(dim=1)
        believed = logits[torch.arange(len(logits), device=logits.device), best][:, None]
        given = foretold(expected_iou(believed, masks[:, None] > 0.5), correction[:, -1:])
        return RefinerPass(logits, predicted, given[:, 0])


def _check_sizes(width: int, heads: int, map_heads: int, mask_channels: int) -> None:
    if width < 8 or width % 8 or heads < 1 or width % heads or map_heads < 1 or width // 8 % map_heads:
        raise ValueError(
            f"width is {width}, heads {heads}, map_heads {map_heads}; width must be a multiple of 8 and of heads, and "
            "width / 8 one of map_heads."
        )
    if mask_channels < 4 or mask_channels % 4:
        raise ValueError(f"mask_channels is {mask_channels}; give a multiple of 4.")
