"""Masks that a segmenter drew for objects, each with the IoU that it foretells: kept, unsure, or nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollout.label.record import LabelImage, LabelObject, Refusal, kept, with_mask


@dataclass(frozen=True)
class Foretold:
    """What a stage asks of masks, and how it says that they are not it."""

    stage: str
    """Name of the stage."""
    least_quality: float
    """Least IoU that a mask foretells of itself."""
    unsure: str
    """Reason that refuses one below."""
    nothing: str
    """Reason that refuses one without a pixel."""

    def masked(self, image: LabelImage, drawn: Iterable[tuple[NDArray[np.bool_], float]]) -> LabelImage:
        """The image with the masks [H, W] and foretold IoUs of its objects, in their order; refuses those that are
        unsure or empty."""
        masked, refused = list[LabelObject](), list[Refusal]()
        for found, (mask, quality) in zip(image.objects, drawn, strict=True):
            measured = found.with_numbers(self.stage, predicted_iou=quality)
            if not mask.any():
                refused.append(Refusal(self.stage, self.nothing, measured))
            elif quality < self.least_quality:
                refused.append(Refusal(self.stage, self.unsure, with_mask(measured, mask)))
            else:
                masked.append(with_mask(measured, mask))
        return kept(image, masked, refused)
