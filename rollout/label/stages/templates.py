"""Stage: phrases made of names by a template; of two of a kind, by where they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from envs.ranges import between
from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept

NO_NAME = "an object without a name"
_STAGE = "templates"
_NAME = "{name}"


@dataclass(frozen=True)
class Labeller:
    """Phrases from names."""

    phrase: str = _NAME
    """The phrase; {name} stands for the name."""
    apart: str = "the {place} {name}"
    """The phrase of one of two of a kind, where {place} is left, right, upper or lower; "" gives both the same phrase,
    which then means the two."""
    least_apart: Annotated[float, between(0, 1)] = 0.15
    """Least distance of their centres along an axis, as a share of the image's side, for a place to be told."""
    HAS_MODEL: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ValueError for a template without the name."""
        for template in filter(None, (self.phrase, self.apart)):
            if _NAME not in template:
                raise ValueError(f"templates: {template!r} has no {_NAME}; write it where the name is to stand.")

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Gives each object a phrase; those without a name are refused."""
        return [self._phrased(one.image) if one.image.is_open else one.image for one in images]

    def _phrased(self, image: LabelImage) -> LabelImage:
        named = [found for found in image.objects if found.name]
        refused = [Refusal(_STAGE, NO_NAME, found) for found in image.objects if not found.name]
        counts = Counter(found.name for found in named)
        phrased = []
        for found in named:
            phrase = self.phrase.replace(_NAME, found.name)
            if self.apart and counts[found.name] == 2:
                [other] = [one for one in named if one.name == found.name and one.number != found.number]
                if place := place_of(found, other, (image.height, image.width), self.least_apart):
                    phrase = self.apart.replace("{place}", place).replace(_NAME, found.name)
            phrased.append(replace(found, phrase=phrase))
        return kept(image, phrased, refused)


def place_of(one: LabelObject, other: LabelObject, size: tuple[int, int], least: float) -> str:
    """Where one of two lies beside the other: along the axis on which their centres are farther apart, as a share of
    the image's side; "" where they are nearer than `least` on both."""
    apart = [
        (one.box_px[k] + one.box_px[k + 2] - other.box_px[k] - other.box_px[k + 2]) / 2 / side
        for k, side in enumerate((size[1], size[0]))
    ]
    axis = 0 if abs(apart[0]) >= abs(apart[1]) else 1
    if abs(apart[axis]) < least:
        return ""
    return (("left", "right"), ("upper", "lower"))[axis][apart[axis] > 0]
