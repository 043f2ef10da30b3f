"""Boxes of what is called by a name, by a detector that takes any names: Grounding DINO or OWLv2.

Names may differ by image. Images of one size share a batch and no other do, so an image's boxes do not depend on those
beside it: to Grounding DINO a smaller image in a batch would be padded, and its backbone sees the padding.

Of transformers, AutoModelForZeroShotObjectDetection in float32, the folder's tokenizer, and the image processor made
of PIL, which needs no torchvision; OWLv2's uses scipy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForZeroShotObjectDetection

from policies.labellers.boxes import boxes_apart, clipped
from policies.labellers.grounding_dino import GroundingDino
from policies.labellers.model_folder import loaded_model, model_kind, refuse_no_image
from policies.labellers.owl import Owl
from policies.labellers.sightings import Detector, Sightings

_FORM = "a Grounding DINO or an OWLv2 in transformers' form, with its processor and tokenizer"
_DINOS = ("grounding-dino", "mm-grounding-dino")


@dataclass(frozen=True)
class ZeroShotRule:
    """Which boxes are kept."""

    threshold: float = 0.3
    """Score that a box must be above."""
    text_threshold: float = 0.25
    """Grounding DINO alone: sureness above which a token belongs to the phrase of a box, which decides its name."""
    batch: int = 4
    """Most images at once."""
    box_iou: float = 0.7
    """IoU above which of two boxes of one name the surer alone is kept."""
    prompt: str = "a photo of a {}"
    """OWLv2 alone: what it is asked, with the name in place of {}."""

    def __post_init__(self) -> None:
        if not (0 <= self.threshold < 1 and 0 <= self.text_threshold < 1 and 0 < self.box_iou <= 1):
            raise ValueError(
                f"threshold is {self.threshold}, text_threshold {self.text_threshold} and box_iou {self.box_iou}; set "
                "the first two to 0..1 (1 excluded) and the last to 0..1 (0 excluded)."
            )
        if self.batch < 1 or "{}" not in self.prompt:
            raise ValueError(f"batch is {self.batch} and prompt {self.prompt!r}; set batch from 1 and put {{}} in it.")


@dataclass(frozen=True)
class NamedBox:
    """Where something of a name is seen."""

    name: str
    """One of the names asked for, as it was given."""
    box_px: tuple[float, float, float, float]
    """(x0, y0, x1, y1) in pixels of the image, within it; x to the right, y down, a pixel's centre at .5."""
    score: float
    """How sure the model is, in 0..1."""


class ZeroShotBoxes:
    """A detector, loaded; on a GPU where there is one."""

    def __init__(self, folder: Path, rule: ZeroShotRule) -> None:
        """Raises FileNotFoundError or ValueError, in a line, where the folder has no such detector that can be loaded;
        nothing is downloaded."""
        refuse_no_detector(folder)
        self._rule = rule
        kind = model_kind(folder, (*_DINOS, "owlv2"), _FORM, reads_text=True)
        model = loaded_model(AutoModelForZeroShotObjectDetection, folder, torch.float32, _FORM)
        self._detector: Detector = (
            GroundingDino(model, folder, _FORM, rule.threshold, rule.text_threshold)
            if kind in _DINOS
            else Owl(model, folder, _FORM, rule.threshold, rule.prompt)
        )
        self.unnamed = 0
        """Boxes above the threshold, of all images so far, that stand for no name and were dropped (Grounding DINO)."""

    def unreadable(self, names: Sequence[str]) -> list[str]:
        """Those of some names that the model cannot read whole: nothing to read in them, or too long."""
        return [name for name in names if not self._detector.reads(name)]

    @torch.inference_mode()
    def boxes(self, images: Sequence[NDArray[np.uint8]], names: Sequence[Sequence[str]]) -> list[list[NamedBox]]:
        """[images] boxes of the names looked for in each image [H, W, 3] RGB, the surest first.

        Names that the model reads alike ("Car", "car") are one, called as the first of them. An image without names
        has no boxes. Raises ValueError where there is not a list of names for each image, a name is unreadable, or an
        image is none, before the model runs.
        """
        if len(images) != len(names):
            raise ValueError(f"{len(images)} images have {len(names)} lists of names; give one for each image.")
        for image in images:
            refuse_no_image(image)
        if bad := self.unreadable([name for some in names for name in some]):
            raise ValueError(f"the detector cannot read the name {bad[0]!r} whole; leave it out or say it shorter.")
        asked = [self._once(some) for some in names]
        seen: list[list[Sightings]] = [[] for _ in images]
        for jobs in self._jobs(images, asked):
            answers = self._detector.look([images[i] for i, _ in jobs], [asked[i][part] for i, part in jobs])
            for (i, part), answer in zip(jobs, answers, strict=True):
                self.unnamed += answer.unnamed
                seen[i].append(answer.of_names(part.start))
        return [self._kept(*each) for each in zip(images, asked, seen, strict=True)]

    def _jobs(self, images: Sequence[NDArray[np.uint8]], asked: list[list[str]]) -> list[list[tuple[int, slice]]]:
        """Batches of (place of the image, which of its names are asked), each of images of one size."""
        by_size = dict[tuple[int, ...], list[tuple[int, slice]]]()
        for place, (image, names) in enumerate(zip(images, asked, strict=True)):
            by_size.setdefault(image.shape, []).extend((place, part) for part in self._detector.parts(names))
        most = self._rule.batch
        return [jobs[i : i + most] for jobs in by_size.values() for i in range(0, len(jobs), most)]

    def _once(self, names: Sequence[str]) -> list[str]:
        """Names without those that the model reads as one before them."""
        first = dict[str, str]()
        for name in names:
            first.setdefault(self._detector.reading(name), name)
        return list(first.values())

    def _kept(self, image: NDArray[np.uint8], names: list[str], seen: list[Sightings]) -> list[NamedBox]:
        """Boxes of an image, cut to it, of each name only the surest of those that agree."""
        found = list[NamedBox]()
        places = np.concatenate([one.names for one in seen] or [np.zeros(0, np.int64)])
        scores = np.concatenate([one.scores for one in seen] or [np.zeros(0)])
        boxes = np.concatenate([one.boxes_px for one in seen] or [np.zeros((0, 4))])
        boxes, inside = clipped(boxes, image.shape[0], image.shape[1])
        for place, name in enumerate(names):
            of_name = np.flatnonzero((places == place) & inside)
            for one in of_name[boxes_apart(boxes[of_name], scores[of_name], self._rule.box_iou)]:
                x0, y0, x1, y1 = boxes[one].tolist()
                found.append(NamedBox(name, (x0, y0, x1, y1), float(scores[one])))
        return sorted(found, key=lambda box: -box.score)


def refuse_no_detector(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError where a folder has no Grounding DINO or OWLv2, by its files alone."""
    model_kind(folder, (*_DINOS, "owlv2"), _FORM, reads_text=True)
