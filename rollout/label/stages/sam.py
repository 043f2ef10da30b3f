"""Stage: the mask of each box by SAM, SAM 2 or SAM 3 in transformers' form (policies/labellers/prompted_masks.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from envs.ranges import at_least, between
from policies.labellers.prompted_masks import PromptedMasks, PromptRule, refuse_no_prompted_sam
from rollout.label.record import LabelImage, Shown
from rollout.label.stages._foretold import Foretold

UNSURE = "a mask that the segmenter is not sure of"
NOTHING = "the segmenter finds nothing in the box"
_STAGE = "sam"


@dataclass(frozen=True)
class Labeller:
    """Masks of boxes."""

    folder: str
    """Folder of the model in transformers' form; nothing is downloaded."""
    by_point: bool = False
    """Whether the centres of boxes are shown in place of boxes."""
    several: bool = True
    """Whether the model draws several masks of each, of which the one that it is surest of is taken."""
    least_quality: Annotated[float, between(0, 1)] = 0.0
    """Least IoU that a mask foretells of itself."""
    at_once: Annotated[int, at_least(1)] = 64
    """Boxes of an image at once."""
    HAS_MODEL: ClassVar[bool] = True

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folder of the model."""
        return (self.folder,)

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError where the folder holds no such model."""
        refuse_no_prompted_sam(Path(self.folder))

    @cached_property
    def _segmenter(self) -> PromptedMasks:
        return PromptedMasks(Path(self.folder), PromptRule(self.several, self.at_once))

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """A mask for each object and the IoU that it foretells; refuses those that are unsure or empty."""
        return [self._segmented(one) if one.image.is_open else one.image for one in images]

    def _segmented(self, shown: Shown) -> LabelImage:
        objects = shown.image.objects
        if not objects:
            return shown.image
        boxes = np.array([found.box_px for found in objects], np.float64)
        if self.by_point:
            masks, qualities = self._segmenter.at_points(shown.pixels, (boxes[:, :2] + boxes[:, 2:]) / 2)
        else:
            masks, qualities = self._segmenter.masks(shown.pixels, boxes)
        rule = Foretold(_STAGE, self.least_quality, UNSURE, NOTHING)
        return rule.masked(shown.image, zip(masks, qualities.tolist(), strict=True))
