"""Stage: an object stays where enough of several verifiers, each of which measured it, found it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.ranges import at_least, between
from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept

TOO_FEW = "too few verifiers agree"
_STAGE = "agreement"


@dataclass(frozen=True)
class Labeller:
    """Votes of verifiers."""

    of: tuple[str, ...]
    """Numbers to vote by, such as `first.mask_iou` and `second.mask_iou` of two stages `found_again`."""
    least: Annotated[float, between(0, 1)] = 0.7
    """Number from which a verifier agrees."""
    votes: Annotated[int, at_least(1)] = 2
    """Verifiers that must agree."""
    HAS_MODEL: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ValueError where there are fewer verifiers than votes."""
        if self.votes > len(self.of):
            raise ValueError(
                f"agreement.votes is {self.votes}, and agreement.of names {len(self.of)} verifiers; ask for fewer."
            )

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Refuses objects that fewer than `votes` verifiers agree on; one that a verifier did not measure is none."""
        return [self._voted(one.image) if one.image.is_open else one.image for one in images]

    def _voted(self, image: LabelImage) -> LabelImage:
        objects, refused = list[LabelObject](), list[Refusal]()
        for found in image.objects:
            votes = sum(found.numbers.get(name, -1.0) >= self.least for name in self.of)
            measured = found.with_numbers(_STAGE, votes=float(votes))
            if votes >= self.votes:
                objects.append(measured)
            else:
                refused.append(Refusal(_STAGE, TOO_FEW, measured))
        return kept(image, objects, refused)
