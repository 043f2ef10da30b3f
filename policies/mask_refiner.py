"""MaskRefiner: a coarse mask and the policy's frozen vision features in, a fine mask out, in several passes.

The box of the coarse mask is grown and cut out of image, mask and features. A small convolutional encoder-decoder sees
pixels and mask at the crop's resolution, and the features at its narrowest place; its soft mask is its next input.

After the refiner that Moondream ships: grown box, stretched crop, soft mask fed back, predicted IoU. Departures: the
head is convolutional and small; it says one mask, not the best of four; the features are those of the whole image,
resampled to the box; and it sees pixels too, as the decoder of Qwen3-VL-Seg (arXiv 2605.07141) does, since a frozen
vision tower with 8 px patches keeps little of an edge.

Frames: boxes are (x0, y0, x1, y1) in continuous image pixels. A crop is R x R cells over its box, each with its value
at its centre. Letters: B masks, H W image pixels, h w feature cells of the whole image, f of a crop, R crop cells.
"""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from policies.base import VisionFeatures

_WEIGHTS = "refiner.safetensors"
_CARD = "refiner.json"


@dataclass(frozen=True)
class RefinerSettings:
    """The sizes of a MaskRefiner, but for those of the vision features, which the policy gives."""

    crop_px: int = 48
    """R, cells of a side of the crop; a multiple of 2 ** halvings."""
    box_growth: float = 0.25
    """The box grows by this part of its side on every side."""
    min_box_px: float = 8.0
    """The grown box is at least so wide and high, where the image is."""
    channels: int = 12
    """Channels at the crop's own resolution, doubled at each halving; a multiple of 4."""
    halvings: int = 3
    """How often the resolution is halved on the way to the place where the features come in."""
    passes: int = 2
    """How often the mask goes through the network, each time the soft one that came out before."""

    def __post_init__(self) -> None:
        if self.channels < 4 or self.channels % 4 or self.halvings < 1:
            raise ValueError(
                f"channels is {self.channels}, halvings {self.halvings}; give a multiple of 4, and 1 or more."
            )
        if self.crop_px < 2**self.halvings or self.crop_px % 2**self.halvings:
            raise ValueError(
                f"crop_px is {self.crop_px}; {self.halvings} halvings need a multiple of {2**self.halvings}."
            )
        if self.box_growth < 0 or self.min_box_px <= 0:
            raise ValueError(
                f"box_growth is {self.box_growth}, min_box_px {self.min_box_px}; give 0 or more, and a number above 0."
            )
        if self.passes < 1:
            raise ValueError(f"passes is {self.passes}; a mask goes through the network at least once.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from the crop's own down."""
        return tuple(self.channels * 2**level for level in range(self.halvings + 1))

    @property
    def feature_cells(self) -> int:
        """f, cells of a side of the map on which the features come in."""
        return self.crop_px // 2**self.halvings


@dataclass(frozen=True)
class RefinerCrops:
    """What the network sees of B masks: everything cut to the grown box."""

    images: Tensor
    """[B, 3, R, R] float in -1..1."""
    final: Tensor
    """[B, C, f, f] float, f = feature_cells."""
    early: Tensor
    """[B, E, f, f] float."""


@dataclass(frozen=True)
class RefinerPass:
    """What one pass says about B masks."""

    logits: Tensor
    """[B, R, R] float over the crop; above 0 is inside."""
    predicted_iou: Tensor
    """[B] float in 0..1: the overlap with the true mask that this pass expects of itself."""


@dataclass(frozen=True)
class RefinedMasks:
    """Fine masks of B coarse ones, in the image's pixels."""

    masks: Tensor
    """[B, H, W] bool; nothing outside the grown box, and nothing at all where the coarse mask was empty."""
    predicted_iou: Tensor
    """[B] float in 0..1; 0 where the coarse mask was empty."""


def grown_boxes_px(masks: Tensor, growth: float, min_side_px: float) -> Tensor:
    """Boxes [B, 4] float around bool masks [B, H, W], grown by `growth` sides on every side and clipped to the image.

    Each holds a square of min_side_px about the mask's middle, pushed into the image. An empty mask gets all the image.
    """
    spans = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):
        length = occupied.shape[1]
        flags = occupied.to(torch.uint8)
        low, high = flags.argmax(dim=1).float(), length - flags.flip(1).argmax(dim=1).float()
        half = min(min_side_px, length) / 2
        middle = ((low + high) / 2).clamp(half, length - half)
        margin = growth * (high - low)
        start = torch.minimum(low - margin, middle - half).clamp(min=0)
        end = torch.maximum(high + margin, middle + half).clamp(max=length)
        spans.append((start, end))
    (x0, x1), (y0, y1) = spans
    return torch.stack([x0, y0, x1, y1], dim=1)


def resampling_weights(start: Tensor, length: Tensor, num_out: int, num_in: int) -> Tensor:
    """Weights [B, num_out, num_in] that read num_out equal cells over a stretch of a line of num_in unit cells.

    start, length: [B] of the stretch, in input cells. Linear between cell centres, the outermost value beyond them.
    Where output cells are larger the triangle is as wide as one, so that nothing between is lost. Rows sum to 1.
    """
    step = (length / num_out)[:, None]
    centres = start[:, None] + (torch.arange(num_out, device=start.device) + 0.5) * step
    centres = centres.clamp(0.5, num_in - 0.5)
    distance = (centres[:, :, None] - (torch.arange(num_in, device=start.device) + 0.5)).abs()
    weights = (1 - distance / step.clamp(min=1)[:, :, None]).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


def cut(maps: Tensor, boxes_px: Tensor, height: int, width: int, size: int) -> Tensor:
    """Maps [B, K, h, w] that span an image of height x width px, resampled to boxes [B, 4]: [B, K, size, size]."""
    rows, columns = maps.shape[2:]
    x0, y0, x1, y1 = boxes_px.unbind(1)
    across = resampling_weights(x0 * columns / width, (x1 - x0) * columns / width, size, columns)
    down = resampling_weights(y0 * rows / height, (y1 - y0) * rows / height, size, rows)
    return down[:, None] @ maps @ across[:, None].transpose(2, 3)


def paste(logits: Tensor, boxes_px: Tensor, height: int, width: int) -> Tensor:
    """Masks [B, height, width] bool: crop logits [B, R, R] resampled to the image's pixels, True where above 0.

    Pixels whose centre is outside the box [B, 4] are False.
    """
    cells = logits.shape[1]
    x0, y0, x1, y1 = boxes_px.unbind(1)
    across = resampling_weights(-x0 * cells / (x1 - x0), width * cells / (x1 - x0), width, cells)
    down = resampling_weights(-y0 * cells / (y1 - y0), height * cells / (y1 - y0), height, cells)
    x = torch.arange(width, device=logits.device) + 0.5
    y = torch.arange(height, device=logits.device) + 0.5
    inside_x = (x >= x0[:, None]) & (x < x1[:, None])
    inside_y = (y >= y0[:, None]) & (y < y1[:, None])
    return (down @ logits @ across.transpose(1, 2) > 0) & inside_y[:, :, None] & inside_x[:, None, :]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
    )


def expected_iou(logits: Tensor) -> Tensor:
    """[B, 1] overlap to expect if each cell of [B, 1, R, R] were true with its own probability; without gradient."""
    soft = logits.detach().sigmoid()
    drawn = (soft > 0.5).float()
    return (soft * drawn).sum(dim=(2, 3)) / (torch.maximum(soft, drawn).sum(dim=(2, 3)) + 1e-6)


class PixelHead(nn.Module):
    """The network of one pass: a small U-Net over pixels and mask that meets the features at its narrowest place."""

    def __init__(self, settings: RefinerSettings, final_channels: int, early_channels: int) -> None:
        super().__init__()
        widths, narrow = settings.widths, settings.widths[-1]
        steps = list(pairwise(widths))
        self.stem = _convolution(4, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(fine, coarse, stride=2), _convolution(coarse, coarse)) for fine, coarse in steps
        )
        self.final_norm = nn.GroupNorm(1, final_channels)
        self.early_norm = nn.GroupNorm(1, early_channels)
        self.project = nn.Conv2d(final_channels + early_channels, narrow, 1)
        self.positions = nn.Parameter(torch.zeros(narrow, settings.feature_cells, settings.feature_cells))
        self.fuse = nn.Sequential(_convolution(2 * narrow, narrow), _convolution(narrow, narrow))
        self.lateral = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(_convolution(fine, fine) for fine, _ in steps)
        self.mask_out = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.mask_gain = nn.Parameter(torch.tensor(2.0))
        self.iou_hidden = nn.Linear(narrow + 2 * widths[0], 64)
        self.iou_out = nn.Linear(64, 1)
        for parameter in (*self.mask_out.parameters(), *self.iou_out.parameters()):
            nn.init.zeros_(parameter)

    def context(self, crops: RefinerCrops) -> Tensor:
        """What all passes share: [B, widths[-1], f, f]."""
        both = torch.cat([self.final_norm(crops.final), self.early_norm(crops.early)], dim=1)
        return self.project(both) + self.positions

    def forward(self, images: Tensor, context: Tensor, masks: Tensor) -> RefinerPass:
        """One pass over images [B, 3, R, R] in -1..1 and soft masks [B, R, R] in 0..1."""
        signed = 2 * masks[:, None] - 1
        levels = [self.stem(torch.cat([images, signed], dim=1))]
        for down in self.down:
            levels.append(down(levels[-1]))
        narrow = x = self.fuse(torch.cat([levels.pop(), context], dim=1))
        for lateral, up in zip(reversed(self.lateral), reversed(self.up), strict=True):
            x = functional.interpolate(lateral(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(x + levels.pop())
        logits = self.mask_out(x) + self.mask_gain * signed
        soft = logits.sigmoid()
        inside = (x * soft).sum(dim=(2, 3)) / (soft.sum(dim=(2, 3)) + 1e-6)
        pooled = torch.cat([narrow.mean(dim=(2, 3)), x.mean(dim=(2, 3)), inside], dim=1)
        iou_logits = expected_iou(logits).logit(eps=0.01) + self.iou_out(self.iou_hidden(pooled).relu())
        return RefinerPass(logits[:, 0], iou_logits[:, 0].sigmoid())


class MaskRefiner(nn.Module):
    """Head, geometry and passes. Untrained, it is the identity: a mask comes back as its crop shows it."""

    def __init__(
        self, settings: RefinerSettings, final_channels: int, early_channels: int, tower_checksum: str
    ) -> None:
        """final_channels, early_channels: C and E of the vision features; tower_checksum: SHA-256 of their tower."""
        super().__init__()
        self.settings = settings
        self.final_channels = final_channels
        self.early_channels = early_channels
        self.tower_checksum = tower_checksum
        self.head = PixelHead(settings, final_channels, early_channels)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.mask_gain.device

    def forward(self, crops: RefinerCrops, masks: Tensor) -> list[RefinerPass]:
        """All passes, first to last, over masks [B, R, R] float in 0..1. No gradient flows back from pass to pass."""
        context = self.head.context(crops)
        results: list[RefinerPass] = []
        for _ in range(self.settings.passes):
            results.append(self.head(crops.images, context, masks))
            masks = results[-1].logits.detach().sigmoid()
        return results

    def crops(self, images: Tensor, features: VisionFeatures, boxes_px: Tensor) -> RefinerCrops:
        """Images [B, H, W, 3] uint8 and their features, cut to boxes [B, 4]."""
        height, width = images.shape[1:3]
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        cells = self.settings.feature_cells
        return RefinerCrops(
            images=cut(pixels, boxes_px, height, width, self.settings.crop_px),
            final=cut(features.final.float(), boxes_px, height, width, cells),
            early=cut(features.early.float(), boxes_px, height, width, cells),
        )

    def boxes_px(self, coarse_masks: Tensor) -> Tensor:
        """The boxes [B, 4] that are cut out for coarse masks [B, H, W] bool."""
        return grown_boxes_px(coarse_masks, self.settings.box_growth, self.settings.min_box_px)

    @torch.no_grad()
    def refine(self, images: Tensor, features: VisionFeatures, coarse_masks: Tensor) -> RefinedMasks:
        """Fine masks from the last pass, on the module's device.

        images: [B, H, W, 3] uint8, one a mask; features: of these images, in their order; coarse_masks: [B, H, W] bool.
        """
        height, width = coarse_masks.shape[1:]
        boxes = self.boxes_px(coarse_masks)
        masks = cut(coarse_masks[:, None].float(), boxes, height, width, self.settings.crop_px)[:, 0]
        last = self(self.crops(images, features, boxes), masks)[-1]
        drawn = coarse_masks.flatten(1).any(dim=1)
        fine = paste(last.logits, boxes, height, width) & drawn[:, None, None]
        return RefinedMasks(fine, last.predicted_iou * drawn)

    def save(self, folder: Path) -> None:
        """Write refiner.safetensors and refiner.json (sizes, checksum of the vision tower) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)
        card = {
            "settings": asdict(self.settings),
            "final_channels": self.final_channels,
            "early_channels": self.early_channels,
            "vision_tower_sha256": self.tower_checksum,
        }
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tower_checksum: str) -> "MaskRefiner":
        """The refiner saved in `folder`, on the CPU.

        Raises FileNotFoundError without its two files, ValueError where it was trained on another vision tower.
        """
        for name in (_CARD, _WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no {name}; train a refiner into it, or name the folder of one."
                )
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        if card["vision_tower_sha256"] != tower_checksum:
            raise ValueError(
                f"The refiner in {folder} was trained on features of the vision tower {card['vision_tower_sha256']}, "
                f"this policy's is {tower_checksum}; load the policy it goes with, or train a refiner for this one."
            )
        settings = RefinerSettings(**card["settings"])
        refiner = cls(settings, card["final_channels"], card["early_channels"], tower_checksum)
        refiner.load_state_dict(load_file(folder / _WEIGHTS))
        return refiner.eval()
