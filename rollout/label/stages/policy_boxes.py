"""Stage: a policy looks for each tag of an image; what it outlines are boxes, and masks until a segmenter redraws them.

The tags of the image, or the names of the setting, are asked for one by one. An answer that cannot be read, or is
nothing, finds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

from envs.geometry.rle import rle_from_mask
from envs.ranges import at_least
from rollout.label.asking import AskedPolicy, Asker
from rollout.label.record import LabelImage, Shown, tight


@dataclass(frozen=True)
class Labeller:
    """Boxes, and rough masks, of what a policy finds by name."""

    policy: AskedPolicy
    names: tuple[str, ...] = ()
    """Names to look for in every image; none: the image's own tags."""
    most_names: Annotated[int, at_least(1)] = 32
    """Most names that are asked of an image, the first ones."""
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
        """Adds an object for each that an answer outlines, with the answer's mean log-probability."""
        names = [list((self.names or one.image.origin.tags)[: self.most_names]) for one in images]
        names = [asked if one.image.is_open else [] for one, asked in zip(images, names, strict=True)]
        asked = [(one.pixels, name) for one, mine in zip(images, names, strict=True) for name in mine]
        answers = iter(self._asker.drawn(asked) if asked else [])
        labelled = []
        for one, mine in zip(images, names, strict=True):
            image = one.image
            for name in mine:
                answer = next(answers)
                boxes = [(name, tight(mask)) for mask in answer.instances]
                measured = [{"logprob": answer.logprob}] * len(boxes)
                first = len(image.objects)
                image = image.add(boxes, measured, "policy_boxes")
                drawn = [
                    replace(found, mask=rle_from_mask(mask))
                    for found, mask in zip(image.objects[first:], answer.instances, strict=True)
                ]
                image = replace(image, objects=(*image.objects[:first], *drawn))
            labelled.append(image)
        return labelled
