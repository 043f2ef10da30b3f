"""A small convolutional head that sees pixels: some 480 thousand parameters, for a CPU.

An encoder-decoder sees pixels and mask at the crop's resolution, and the features at its narrowest place. It sees
pixels as the decoder of Qwen3-VL-Seg (arXiv 2605.07141) does, since a small frozen vision tower with 8 px patches keeps
little of an edge.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.crops import resized
from policies.heads.base import RefinerCrops, RefinerPass, expected_iou, foretold


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
    )


class Head(nn.Module):
    """A U-Net that offers one mask. Untrained, its mask is the one it was given."""

    def __init__(
        self,
        crop_px: int,
        final_channels: int,
        early_channels: int,
        channels: int = 12,
        halvings: int = 3,
        shades: int = 0,
    ) -> None:
        """final_channels, early_channels: C and E of the features.

        channels: at the crop's own resolution, doubled at each halving; a multiple of 4. halvings: how often the
        resolution is halved on the way to the place where the features come in; crop_px is a multiple of 2 ** halvings.
        shades: of each of red, green and blue, by which the head is also shown where the colours of the mask's inside
        are (see `colour_evidence`), which helps where there is little to learn from; 0: it is not.
        """
        super().__init__()
        if channels < 4 or channels % 4 or halvings < 1:
            raise ValueError(f"channels is {channels}, halvings {halvings}; give a multiple of 4, and 1 or more.")
        if not 0 <= shades <= 32:
            raise ValueError(f"shades is {shades}; give 0 for no evidence of colour, or up to 32, such as 6.")
        self.num_masks, self.shades = 1, shades
        self.halvings = halvings
        cells = self.feature_cells(crop_px)
        widths = [channels * 2**level for level in range(halvings + 1)]
        narrow, steps = widths[-1], list(pairwise(widths))
        self.stem = _convolution(5 if shades else 4, channels)
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(fine, coarse, stride=2), _convolution(coarse, coarse)) for fine, coarse in steps
        )
        self.final_norm = nn.GroupNorm(1, final_channels)
        self.early_norm = nn.GroupNorm(1, early_channels)
        self.project = nn.Conv2d(final_channels + early_channels, narrow, 1)
        self.positions = nn.Parameter(torch.zeros(narrow, cells, cells))
        self.fuse = nn.Sequential(_convolution(2 * narrow, narrow), _convolution(narrow, narrow))
        self.lateral = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(_convolution(fine, fine) for fine, _ in steps)
        self.mask_out = nn.Conv2d(channels, 1, 3, padding=1)
        self.mask_gain = nn.Parameter(torch.tensor([2.0]))  # DeepSpeed sends no parameter without a dimension
        self.iou_hidden = nn.Linear(narrow + 3 * channels, 64)
        self.iou_out = nn.Linear(64, 2)
        for parameter in (*self.mask_out.parameters(), *self.iou_out.parameters()):
            nn.init.zeros_(parameter)

    def feature_cells(self, crop_px: int) -> int:
        """f of a crop of crop_px cells a side; ValueError where halving does not come out even."""
        multiple = 1 << self.halvings
        if crop_px < multiple or crop_px % multiple:
            raise ValueError(f"crop_px is {crop_px}; {self.halvings} halvings need a multiple of {multiple}.")
        return crop_px // multiple

    def context(self, crops: RefinerCrops) -> Tensor:
        """What all passes share: [B, channels * 2 ** halvings, f, f]."""
        both = torch.cat([self.final_norm(crops.final), self.early_norm(crops.early)], dim=1)
        projected: Tensor = self.project(both)
        return projected + resized(self.positions[None], both.shape[2])

    def forward(self, images: Tensor, context: Tensor, masks: Tensor) -> RefinerPass:
        """One pass over images [B, 3, R, R] in -1..1 and soft masks [B, R, R] in 0..1."""
        signed = 2 * masks[:, None] - 1
        seen = [images, signed]
        if self.shades:
            seen.append(2 * colour_evidence(images, masks, self.shades) - 1)
        levels = [self.stem(torch.cat(seen, dim=1))]
        for down in self.down:
            levels.append(down(levels[-1]))
        narrow = x = self.fuse(torch.cat([levels.pop(), context], dim=1))
        for lateral, up in zip(reversed(self.lateral), reversed(self.up), strict=True):
            x = functional.interpolate(lateral(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(x + levels.pop())
        logits = self.mask_out(x) + self.mask_gain * signed
        pooled = [
            narrow.mean(dim=(2, 3)),
            x.mean(dim=(2, 3)),
            _mean_in(x, logits.sigmoid()),
            _mean_in(x, masks[:, None]),
        ]
        correction = self.iou_out(self.iou_hidden(torch.cat(pooled, dim=1)).relu())
        drawn = torch.cat([logits > 0, masks[:, None] > 0.5], dim=1)
        iou = foretold(expected_iou(logits, drawn), correction)
        return RefinerPass(logits, iou[:, :1], iou[:, 1])


def colour_evidence(images: Tensor, masks: Tensor, shades: int) -> Tensor:
    """[B, 1, R, R] in 0..1: the share that a soft mask's inside has in each cell's colour, inside and outside weighing
    the same; 0.5 where the colour says nothing. Without gradient.

    By histograms of the crop itself, as GrabCut weighs colours (Rother et al. 2004): images [B, 3, R, R] in -1..1 in
    shades ** 3 colours, masks [B, R, R] in 0..1; half a cell is added to each colour, so that rare ones say little.
    """
    parts = ((images.detach().float() + 1) / 2 * shades).long().clamp(0, shades - 1)
    colour = ((parts[:, 0] * shades + parts[:, 1]) * shades + parts[:, 2]).flatten(1).expand(2, -1, -1)
    soft = masks.detach().float().flatten(1)
    sides = torch.stack([soft, 1 - soft])
    cells = sides.new_zeros(2, len(masks), shades**3).scatter_add_(2, colour, sides)
    inside, outside = ((cells + 0.5) / (cells + 0.5).sum(dim=2, keepdim=True)).gather(2, colour)
    return (inside / (inside + outside)).view(len(masks), 1, *masks.shape[1:]).to(images.dtype)


def _mean_in(x: Tensor, soft: Tensor) -> Tensor:
    """[B, C] mean of [B, C, R, R] weighted by [B, 1, R, R]."""
    return (x * soft).sum(dim=(2, 3)) / (soft.sum(dim=(2, 3)) + 1e-6)
