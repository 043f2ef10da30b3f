"""Stage: a policy must find each object again from its phrase alone, or the label goes.

As Qwen3-VL-Seg's and Moondream's pipelines check their labels. A model that made the label itself agrees with itself:
take another one, or ask about the mirrored image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.geometry.boxes import box_ious
from envs.geometry.masks import iou
from envs.ranges import at_least, between
from rollout.label.asking import AskedPolicy, Asker
from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept, tight

NOT_FOUND = "not found again from its phrase"
ELSEWHERE = "found again elsewhere"
UNREADY = "an object without a phrase or a mask to be found again"
_MIRRORED = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}


@dataclass(frozen=True)
class Labeller:
    """Verification by a policy."""

    policy: AskedPolicy
    least_box_iou: Annotated[float, between(0, 1)] = 0.8
    """IoU of the boxes from which an object is found again; 1 leaves it to the masks."""
    least_mask_iou: Annotated[float, between(0, 1)] = 0.7
    """IoU of the masks from which it is found again; either is enough."""
    mirror: bool = False
    """Whether the policy is asked about the mirrored image, left and right changed in its phrase."""
    measure: bool = False
    """Whether IoUs are measured only, and nothing is refused: what `agreement` decides by."""
    called: str = "found_again"
    """Name in the numbers and refusals, where several policies verify."""
    batch: Annotated[int, at_least(1)] = 32
    """Questions that are answered at once."""
    HAS_MODEL: ClassVar[bool] = True

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folder of the policy."""
        return (str(self.policy.folder),)

    @cached_property
    def _asker(self) -> Asker:
        return Asker(self.policy, self.batch)

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Measures box_iou and mask_iou of each object with what the policy finds, and refuses those of neither."""
        phrases = [
            list(dict.fromkeys(found.phrase for found in one.image.objects if _is_ready(found)))
            if one.image.is_open
            else []
            for one in images
        ]
        asked = [
            self._question(one.pixels, phrase or "")
            for one, mine in zip(images, phrases, strict=True)
            for phrase in mine
        ]
        answers = iter(self._asker.drawn(asked) if asked else [])
        verified = []
        for one, mine in zip(images, phrases, strict=True):
            answer_to = {phrase: next(answers) for phrase in mine}
            drawn = {phrase: answer.instances for phrase, answer in answer_to.items()}
            verified.append(self._verified(one.image, drawn) if one.image.is_open else one.image)
        return verified

    def _question(self, pixels: NDArray[np.uint8], phrase: str) -> tuple[NDArray[np.uint8], str]:
        if not self.mirror:
            return pixels, phrase
        return np.ascontiguousarray(pixels[:, ::-1]), " ".join(_MIRRORED.get(word, word) for word in phrase.split(" "))

    def _verified(self, image: LabelImage, drawn: dict[str | None, NDArray[np.bool_]]) -> LabelImage:
        objects, refused = list[LabelObject](), list[Refusal]()
        for found in image.objects:
            if not _is_ready(found):
                refused.append(Refusal(self.called, UNREADY, found))
                continue
            masks = drawn[found.phrase][..., ::-1] if self.mirror else drawn[found.phrase]
            box_iou, mask_iou = agreement(image.mask(found), masks)
            measured = found.with_numbers(self.called, box_iou=box_iou, mask_iou=mask_iou)
            enough = mask_iou >= self.least_mask_iou or (self.least_box_iou < 1 and box_iou >= self.least_box_iou)
            if self.measure or enough:
                objects.append(measured)
            else:
                refused.append(Refusal(self.called, ELSEWHERE if len(masks) else NOT_FOUND, measured))
        return kept(image, objects, refused)


def _is_ready(found: LabelObject) -> bool:
    return bool(found.phrase) and found.mask is not None


def agreement(mask: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> tuple[float, float]:
    """IoU of boxes, and of masks, of an object [H, W] with the one of the outlines drawn [K, H, W] that fits best; or
    with all of them together, if that fits better. 0 where nothing was drawn."""
    if not len(drawn):
        return 0.0, 0.0
    choices = [*drawn, drawn.any(axis=0)]
    return float(box_ious(tight(mask), [tight(each) for each in choices]).max()), max(
        iou(mask, each) for each in choices
    )
