"""Stage: phrases that mean another object too are refused: one that names another, or that two objects share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept

NAMES_ANOTHER = "a phrase that names another object of the image"
SHARED = "a phrase that means several objects"
_STAGE = "own_name"


@dataclass(frozen=True)
class Labeller:
    """Checks of phrases by the names around."""

    shared: bool = True
    """Whether several objects may share a phrase, which then means all of them."""
    HAS_MODEL: ClassVar[bool] = False

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Refuses objects by their phrases; one without a phrase is left as it is."""
        return [self._checked(one.image) if one.image.is_open else one.image for one in images]

    def _checked(self, image: LabelImage) -> LabelImage:
        names = {found.name for found in image.objects if found.name}
        counts = Counter(found.phrase for found in image.objects)
        objects, refused = list[LabelObject](), list[Refusal]()
        for found in image.objects:
            other = named_instead(found.phrase or "", found.name, names)
            if other is not None:
                refused.append(Refusal(_STAGE, NAMES_ANOTHER, found, other))
            elif found.phrase and not self.shared and counts[found.phrase] > 1:
                refused.append(Refusal(_STAGE, SHARED, found))
            else:
                objects.append(found)
        return kept(image, objects, refused)


def named_instead(phrase: str, name: str, names: set[str]) -> str | None:
    """A name of the image that a phrase has among its words where it lacks its own; None where it has its own, or
    none. A name inside a longer one of the phrase is none: "apple" is not in "the pineapple"."""
    words = f" {' '.join(phrase.lower().split())} "
    if not name or f" {name.lower()} " in words:
        return None
    return next((other for other in sorted(names - {name}) if f" {other.lower()} " in words), None)
