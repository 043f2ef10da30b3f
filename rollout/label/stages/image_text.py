"""Stage: a phrase for each object by an image-text model of transformers, which is shown what lies around the object.

The crop has the object's box marked by nothing: the model names the main object of what it sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.ranges import at_least
from policies.labellers.captions import CaptionRule, Captions, refuse_no_captioner
from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept
from rollout.label.stages.grabcut import crop_around

NO_WORDS = "an object that the captioner has no words for"
_STAGE = "image_text"


@dataclass(frozen=True)
class Labeller:
    """Phrases by a model."""

    folder: str
    """Folder of the model in transformers' form, with its processor; nothing is downloaded."""
    prompt: str = "Name the main object of this image in one short phrase. Answer with the phrase alone."
    """What the model is asked about each crop."""
    around: Annotated[float, at_least(0)] = 0.15
    """Share of the box's sides by which a crop is larger on each side."""
    max_tokens: Annotated[int, at_least(1)] = 32
    """Longest answer, tokens."""
    max_words: Annotated[int, at_least(1)] = 8
    """Words of a phrase; what is longer is cut."""
    batch: Annotated[int, at_least(1)] = 4
    """Crops at once."""
    HAS_MODEL: ClassVar[bool] = True

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folder of the model."""
        return (self.folder,)

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError where the folder holds no such model."""
        refuse_no_captioner(Path(self.folder))

    @cached_property
    def _captioner(self) -> Captions:
        return Captions(Path(self.folder), CaptionRule(self.prompt, self.max_tokens, self.max_words, self.batch))

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Gives each object a phrase; refuses those whose caption is empty."""
        crops = [self._crop(one.pixels, found) for one in images if one.image.is_open for found in one.image.objects]
        phrases = iter(self._captioner.captions(crops) if crops else [])
        captioned = []
        for one in images:
            image = one.image
            if image.is_open:
                said = [replace(found, phrase=next(phrases) or None) for found in image.objects]
                refused = [Refusal(_STAGE, NO_WORDS, found) for found in said if found.phrase is None]
                image = kept(image, [found for found in said if found.phrase], refused)
            captioned.append(image)
        return captioned

    def _crop(self, pixels: NDArray[np.uint8], found: LabelObject) -> NDArray[np.uint8]:
        left, top, right, bottom = crop_around(found.box_px, self.around, *pixels.shape[:2])
        return np.ascontiguousarray(pixels[top:bottom, left:right])
