"""Stage: boxes of each tag of an image by a zero-shot detector, Grounding DINO or OWLv2 (policies/labellers)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from envs.ranges import at_least, between
from policies.labellers.zero_shot_boxes import ZeroShotBoxes, ZeroShotRule, refuse_no_detector
from rollout.label.record import LabelImage, Shown

UNREADABLE = "a name that the detector cannot read"
_STAGE = "zero_shot"


@dataclass(frozen=True)
class Labeller:
    """Boxes by name."""

    folder: str
    """Folder of the detector in transformers' form; nothing is downloaded."""
    names: tuple[str, ...] = ()
    """Names to look for in every image; none: the image's own tags."""
    most_names: Annotated[int, at_least(1)] = 32
    """Most names that are looked for in an image, the first ones."""
    threshold: Annotated[float, between(0, 1)] = 0.3
    """Score that a box must be above."""
    text_threshold: Annotated[float, between(0, 1)] = 0.25
    """Grounding DINO alone: sureness above which a token belongs to the phrase of a box."""
    box_iou: Annotated[float, between(0, 1)] = 0.7
    """IoU above which of two boxes of one name the surer alone is kept."""
    batch: Annotated[int, at_least(1)] = 4
    """Most images at once."""
    HAS_MODEL: ClassVar[bool] = True

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folder of the detector."""
        return (self.folder,)

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError where the folder holds no such detector."""
        refuse_no_detector(Path(self.folder))

    @cached_property
    def _detector(self) -> ZeroShotBoxes:
        rule = ZeroShotRule(self.threshold, self.text_threshold, self.batch, self.box_iou)
        return ZeroShotBoxes(Path(self.folder), rule)

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Adds an object for each box, with its score; a tag that the model cannot read is refused as an object."""
        looked_in = [one for one in images if one.image.is_open]
        names = [(self.names or one.image.origin.tags)[: self.most_names] for one in looked_in]
        bad = set(self._detector.unreadable([name for mine in names for name in mine])) if looked_in else set()
        unread = iter([[name for name in mine if name in bad] for mine in names])
        names = [tuple(name for name in mine if name not in bad) for mine in names]
        found = iter(self._detector.boxes([one.pixels for one in looked_in], names) if looked_in else [])
        labelled = []
        for one in images:
            image = one.image
            if image.is_open:
                boxes = next(found)
                image = image.add(
                    [(box.name, box.box_px) for box in boxes], [{"score": box.score} for box in boxes], _STAGE
                )
                for name in next(unread):
                    image = image.refuse_unseen(_STAGE, UNREADABLE, name)
            labelled.append(image)
        return labelled
