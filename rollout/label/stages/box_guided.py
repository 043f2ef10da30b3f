"""Stage: the mask of each box by a policy of ours that decodes masks behind boxes (policies/families/box_decoder.py).

It is asked for the object by its phrase, or its name before it has one, and its decoder draws as if it had said the
box itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Annotated, ClassVar

from envs.ranges import at_least, between
from rollout.label.asking import AskedPolicy, Asker
from rollout.label.record import LabelImage, Shown
from rollout.label.stages._foretold import Foretold

UNSURE = "a mask that the policy's decoder is not sure of"
NOTHING = "the policy's decoder draws nothing in the box"
_STAGE = "box_guided"


@dataclass(frozen=True)
class Labeller:
    """Masks of boxes."""

    policy: AskedPolicy
    least_quality: Annotated[float, between(0, 1)] = 0.0
    """Least IoU that a mask foretells of itself."""
    batch: Annotated[int, at_least(1)] = 32
    """Boxes that are drawn in at once."""
    HAS_MODEL: ClassVar[bool] = True

    @property
    def model_folders(self) -> tuple[str, ...]:
        """Folder of the policy."""
        return (str(self.policy.folder),)

    def check(self) -> None:
        """Raise ValueError for a policy without a decoder behind its boxes."""
        if not self.policy.draws_in_boxes:
            raise ValueError(
                f"{self.policy.folder} is asked by the stage box_guided, but draws no masks behind boxes; give a run "
                "of configs/gspo_box_decoder, or let policy_boxes ask it."
            )

    @cached_property
    def _asker(self) -> Asker:
        return Asker(self.policy, self.batch)

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """A mask for each object and the IoU that it foretells; refuses those that are unsure or empty."""
        asked = [
            (one.pixels, found.phrase or found.name, found.box_px)
            for one in images
            if one.image.is_open
            for found in one.image.objects
        ]
        drawn = iter(self._asker.drawn_in(asked) if asked else [])
        rule = Foretold(_STAGE, self.least_quality, UNSURE, NOTHING)
        return [
            rule.masked(one.image, list(islice(drawn, len(one.image.objects)))) if one.image.is_open else one.image
            for one in images
        ]
