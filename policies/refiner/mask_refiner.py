"""MaskRefiner: a coarse mask and the policy's frozen vision features in, a fine mask out, in several passes.

The box of the coarse mask is grown and cut out of image, mask and features. A head, one file of this folder, says of
each pass several masks and how good they are; the best soft one is its next input. The refiner stops where a pass is
predicted to have gained little, and returns the mask that is predicted best, the coarse one included.

After the refiner that Moondream ships: grown box, stretched crop, best of several masks, soft mask fed back, predicted
IoU. Departures: it knows when to stop, its predicted IoU is calibrated, and no pass is returned that is predicted worse
than what it was given.

Letters: B masks, K passes, H W image pixels, h w feature cells of the whole image, f of a crop, R crop cells.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envs.plugin import Plugin
from policies.crops import cut, grown_boxes_px, paste, resized
from policies.families.base import VisionFeatures
from policies.heads.base import HeadContract, RefinedMasks, RefinerCrops, RefinerPass, Unrolled
from policies.refiner.calibration import Calibration
from policies.settings import RefinerSettings

_WEIGHTS = "refiner.safetensors"
_CARD = "refiner.json"
_FORMAT = 2


def chosen_pass(predicted_iou: Tensor, min_gain: float) -> tuple[Tensor, Tensor]:
    """(taken [B], run [B]), int64: which output is returned and how many passes are run.

    predicted_iou: [K + 1, B], [0] of the mask that came in, [k] of pass k. After pass k it stops where that is
    predicted less than min_gain better than the best before it. Of what was run, the one predicted best is taken, the
    earlier of equals: never a pass predicted worse than its input.
    """
    passes = len(predicted_iou) - 1
    gain = predicted_iou[1:] - predicted_iou.cummax(dim=0).values[:-1]
    stops = gain < min_gain
    first = stops.to(torch.uint8).argmax(dim=0) + 1
    run = torch.where(stops.any(dim=0), first, torch.full_like(first, passes))
    steps = torch.arange(passes + 1, device=predicted_iou.device)[:, None]
    return predicted_iou.masked_fill(steps > run, -1).argmax(dim=0), run


class MaskRefiner(nn.Module):
    """Head, geometry, passes and stop rule. Untrained, it is the identity: a coarse mask comes back as it came."""

    head: HeadContract

    def __init__(
        self, settings: RefinerSettings, head: Plugin, final_channels: int, early_channels: int, tower_checksum: str
    ) -> None:
        """head: the recipe of a Head; final_channels, early_channels: C and E of the vision features; tower_checksum:
        SHA-256 of their tower. Raises ValueError where the head can't take the crop."""
        super().__init__()
        self.settings = settings
        self.head_recipe = head
        self.final_channels = final_channels
        self.early_channels = early_channels
        self.tower_checksum = tower_checksum
        self.calibration = Calibration.identity(settings.passes)
        self.head = head.build(crop_px=settings.crop_px, final_channels=final_channels, early_channels=early_channels)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, crops: RefinerCrops, masks: Tensor) -> list[RefinerPass]:
        """All passes, first to last, over masks [B, R, R] float in 0..1. No gradient flows back from pass to pass."""
        context = self.head.context(crops)
        results: list[RefinerPass] = []
        for _ in range(self.settings.passes):
            results.append(self.head(crops.images, context, masks))
            masks = results[-1].best_logits.detach().sigmoid()
        return results

    def boxes_px(self, coarse_masks: Tensor) -> Tensor:
        """The boxes [B, 4] that are cut out for coarse masks [B, H, W] bool."""
        return grown_boxes_px(coarse_masks, self.settings.box_growth, self.settings.min_box_px)

    def crops(
        self, images: Tensor, features: VisionFeatures, boxes_px: Tensor, crop_px: int | None = None
    ) -> RefinerCrops:
        """Images [B, H, W, 3] uint8, one a mask, and features, cut to boxes [B, 4].

        features: of the whole images, or where settings.features is "crop" of what crop_images cuts out, in the order
        of the images. crop_px: cells of a side, None for settings.crop_px; ValueError where the head can't take them.
        """
        height, width = images.shape[1:3]
        size = self.settings.crop_px if crop_px is None else crop_px
        cells = self.head.feature_cells(size)

        def fitted(maps: Tensor) -> Tensor:
            if self.settings.features == "crop":
                return resized(maps.float(), cells)
            return cut(maps.float(), boxes_px, height, width, cells)

        return RefinerCrops(
            images=cut(_signed(images), boxes_px, height, width, size),
            final=fitted(features.final),
            early=fitted(features.early),
        )

    def crop_images(self, images: Tensor, boxes_px: Tensor, crop_px: int | None = None) -> Tensor:
        """What the tower encodes where settings.features is "crop": [B, R, R, 3] uint8 of images [B, H, W, 3] uint8."""
        size = self.settings.crop_px if crop_px is None else crop_px
        pixels = cut(_signed(images), boxes_px, images.shape[1], images.shape[2], size)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def unroll(
        self, images: Tensor, features: VisionFeatures, coarse_masks: Tensor, boxes_px: Tensor | None = None
    ) -> Unrolled:
        """Every pass over coarse masks [B, H, W] bool, stop rule aside; arguments as for `refine`."""
        boxes = self.boxes_px(coarse_masks) if boxes_px is None else boxes_px
        drawn = coarse_masks.flatten(1).any(dim=1)
        passes = self(self.crops(images, features, boxes), self._cut_masks(coarse_masks, boxes))
        height, width = coarse_masks.shape[1:]
        fine = [paste(result.best_logits, boxes, height, width) & drawn[:, None, None] for result in passes]
        raw = torch.stack([passes[0].input_iou, *(result.best_iou for result in passes)])
        return Unrolled(torch.stack([coarse_masks, *fine]), self.calibration(raw) * drawn, raw * drawn)

    @torch.no_grad()
    def refine(
        self, images: Tensor, features: VisionFeatures, coarse_masks: Tensor, boxes_px: Tensor | None = None
    ) -> RefinedMasks:
        """Fine masks by the stop rule, on the module's device; a mask that has stopped goes through no further pass.

        images: [B, H, W, 3] uint8, one a mask; features: as `crops` wants them, in the order of the images;
        coarse_masks: [B, H, W] bool; boxes_px: [B, 4] where to look, None for `boxes_px` of the coarse masks. What
        `unroll` and `chosen_pass` say, without the passes that are not needed.
        """
        boxes = self.boxes_px(coarse_masks) if boxes_px is None else boxes_px
        height, width = coarse_masks.shape[1:]
        going = coarse_masks.flatten(1).any(dim=1).nonzero()[:, 0]
        crops = self.crops(images, features, boxes)
        context, masks = self.head.context(crops), self._cut_masks(coarse_masks, boxes)
        logits, coarse_iou = masks - 0.5, boxes.new_zeros(len(boxes))
        best, passes, taken = coarse_iou, *going.new_zeros(2, len(boxes))
        for k in range(1, self.settings.passes + 1):
            if len(going) == 0:
                break
            result = self.head(crops.images[going], context[going], masks[going])
            if k == 1:
                coarse_iou[going] = self.calibration.of_output(0, result.input_iou)
                best = coarse_iou.clone()
            predicted = self.calibration.of_output(k, result.best_iou)
            gain = predicted - best[going]
            better = going[gain > 0]
            logits[better], best[better], taken[better] = result.best_logits[gain > 0], predicted[gain > 0], k
            masks[going], passes[going] = result.best_logits.sigmoid(), k
            going = going[gain >= self.settings.min_gain]
        fine = torch.where((taken > 0)[:, None, None], paste(logits, boxes, height, width), coarse_masks)
        return RefinedMasks(fine, best, coarse_iou, passes, taken)

    def _cut_masks(self, masks: Tensor, boxes_px: Tensor) -> Tensor:
        """[B, R, R] float in 0..1 of masks [B, H, W] bool."""
        return cut(masks[:, None].float(), boxes_px, masks.shape[1], masks.shape[2], self.settings.crop_px)[:, 0]

    def save(self, folder: Path) -> None:
        """Write refiner.safetensors, then refiner.json (sizes, head, calibration, checksum of the vision tower)."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f".{_WEIGHTS}.partial"
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, weights)
        weights.replace(folder / _WEIGHTS)
        recipe = self.head_recipe
        card = {
            "format": _FORMAT,
            "settings": asdict(self.settings),
            "head": {"name": recipe.name, "module": recipe.module, "settings": recipe.settings},
            "final_channels": self.final_channels,
            "early_channels": self.early_channels,
            "calibration": self.calibration.to_json(),
            "vision_tower_sha256": self.tower_checksum,
        }
        partial = folder / f".{_CARD}.partial"
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / _CARD)

    @classmethod
    def load(cls, folder: Path, tower_checksum: str | None) -> "MaskRefiner":
        """The refiner saved in `folder`, on the CPU.

        tower_checksum: checksum of the policy's vision tower; None where it is not known, and so not compared.

        Raises FileNotFoundError without its two files, ValueError where it is of another format or was trained on
        another vision tower.
        """
        card = _read_card(folder)
        trained_on: str = card["vision_tower_sha256"]
        if tower_checksum not in (trained_on, None):
            raise ValueError(
                f"The refiner in {folder} was trained on features of the vision tower {trained_on}, "
                f"this policy's is {tower_checksum}; load the policy it goes with, or train a refiner for this one."
            )
        head = Plugin("policies.heads", "Head", card["head"]["name"], card["head"]["settings"], card["head"]["module"])
        settings = RefinerSettings(**card["settings"])
        refiner = cls(settings, head, card["final_channels"], card["early_channels"], trained_on)
        refiner.calibration = Calibration.from_json(card["calibration"])
        refiner.load_state_dict(load_file(folder / _WEIGHTS))
        return refiner.eval()


def _signed(images: Tensor) -> Tensor:
    """[B, 3, H, W] float in -1..1 of images [B, H, W, 3] uint8."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _read_card(folder: Path) -> dict[str, Any]:
    for name in (_CARD, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; train a refiner into it, or name the folder of one.")
    card: dict[str, Any] = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    if card.get("format") != _FORMAT:
        raise ValueError(
            f"The refiner in {folder} is of format {card.get('format', 1)}, and format {_FORMAT} is read here; delete "
            "that folder and train it again (polytrace refine)."
        )
    return card
