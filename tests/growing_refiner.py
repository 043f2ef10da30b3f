"""A refiner whose every mask is the coarse one, grown by a pixel in all eight directions."""

from pathlib import Path

from envs.plugin import Plugin
from policies.families.vision_language import Policy
from policies.refiner.mask_refiner import MaskRefiner, RefinerSettings

HEAD = """
import torch
from policies.heads.base import RefinerPass


class Head(torch.nn.Module):
    num_masks = 1

    def __init__(self, crop_px: int, final_channels: int, early_channels: int):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(16.0))

    def feature_cells(self, crop_px):
        return 1

    def context(self, crops):
        return crops.final

    def forward(self, images, context, masks):
        grown = torch.nn.functional.max_pool2d(masks[:, None], 3, 1, 1)
        sure = torch.ones(len(masks))
        return RefinerPass(self.gain * (grown - 0.5), sure[:, None], 0 * sure)
"""


def write_growing_refiner(folder: Path, policy: Policy, crop_px: int) -> None:
    """Save one into `folder` for images of crop_px a side, whose crop is then the image itself."""
    (folder / "head.py").write_text(HEAD, encoding="utf-8")
    settings = RefinerSettings(crop_px=crop_px, box_growth=1000.0, passes=1)
    head = Plugin("policies.heads", "Head", "growing", {}, str(folder / "head.py"))
    MaskRefiner(settings, head, 4, 4, policy.vision_checksum()).save(folder)
