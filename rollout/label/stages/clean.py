"""Stage: masks cleaned, and what should not be learned from refused.

In order: holes and specks; fragments of a larger object, merged into it where nearly all of them lies in it (the
intersection over the fragment, as Qwen3-VL-Seg merges SA-1B's); two labels of one object; small, large and clipped
objects; images without a licence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.geometry.masks import iou
from envs.geometry.parts import edges_touched, without_holes, without_specks
from envs.ranges import at_least, between
from rollout.label.record import LabelImage, LabelObject, Refusal, Shown, kept, with_mask

FRAGMENT = "a fragment, merged into the object that it lies in"
TWICE = "the same object by the same name"
SMALL, LARGE, CLIPPED = "an object too small", "an object too large", "an object cut by the image's edges"
NO_LICENCE, OTHER_LICENCE = "an image without a licence", "an image of another licence"
_STAGE = "clean"


@dataclass(frozen=True)
class Labeller:
    """Rules for what is kept."""

    holes: Annotated[float, between(0, 1)] = 0.01
    """Holes of at most this share of a mask are filled."""
    specks: Annotated[float, between(0, 1)] = 0.02
    """Parts of less than this share of a mask are dropped."""
    fragment_share: Annotated[float | None, between(0, 1)] = 0.9
    """Share of a smaller object that lies in a larger one of the same name, or without a name, from which it is a
    fragment of that; null merges nothing."""
    same_iou: Annotated[float, between(0, 1)] = 0.85
    """IoU from which two objects of one name are the same; the first stays."""
    least_share: Annotated[float, between(0, 1)] = 0.001
    """Least share of the image that an object covers."""
    most_share: Annotated[float, between(0, 1)] = 0.95
    """Most share of the image that it covers."""
    most_edges: Annotated[int, at_least(0)] = 4
    """Most edges of the image that it touches; 0 keeps objects alone that are seen whole."""
    licences: tuple[str, ...] = ()
    """Licences of images that are taken; none takes all."""
    needs_licence: bool = False
    """Whether images that say no licence are refused."""
    HAS_MODEL: ClassVar[bool] = False

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Cleans the objects that have a mask; those without are left as they are."""
        return [self._cleaned(one.image) if one.image.is_open else one.image for one in images]

    def _cleaned(self, image: LabelImage) -> LabelImage:
        licence = image.origin.licence
        if (self.needs_licence or self.licences) and licence in ("", "unknown"):
            return image.refuse(_STAGE, NO_LICENCE)
        if self.licences and licence not in self.licences:
            return image.refuse(_STAGE, OTHER_LICENCE, licence)
        masked = [found for found in image.objects if found.mask is not None]
        masks = {
            found.number: without_specks(without_holes(image.mask(found), self.holes), self.specks) for found in masked
        }
        refused: list[Refusal] = []
        left = self._merged(masked, masks, refused)
        objects = []
        for found in left:
            mask = masks[found.number]
            measured = found.with_numbers(_STAGE, share=float(mask.mean()), edges=float(edges_touched(mask)))
            if reason := self._unfit(mask):
                refused.append(Refusal(_STAGE, reason, measured))
            else:
                objects.append(with_mask(measured, mask))
        unmasked = [found for found in image.objects if found.mask is None]
        return kept(image, sorted([*objects, *unmasked], key=lambda found: found.number), refused)

    def _merged(
        self, objects: Sequence[LabelObject], masks: dict[int, NDArray[np.bool_]], refused: list[Refusal]
    ) -> list[LabelObject]:
        """Objects without the fragments and repeats; masks of what took fragments in are grown. The largest is first
        asked to take others in, so that fragments of fragments end in it too."""
        left = list(objects)
        for taker in sorted(objects, key=lambda found: (-int(masks[found.number].sum()), found.number)):
            if taker not in left:
                continue
            for other in [each for each in left if each.number != taker.number]:
                reason = self._same(taker, other, masks)
                if reason is None:
                    continue
                goes = max(taker, other, key=lambda found: found.number) if reason == TWICE else other
                if reason == FRAGMENT:
                    masks[taker.number] = masks[taker.number] | masks[other.number]
                left.remove(goes)
                stays = other if goes is taker else taker
                refused.append(Refusal(_STAGE, reason, goes, f"{stays.number}"))
                if goes is taker:
                    break
        return left

    def _same(self, taker: LabelObject, other: LabelObject, masks: dict[int, NDArray[np.bool_]]) -> str | None:
        one, two = masks[taker.number], masks[other.number]
        if taker.name == other.name and iou(one, two) >= self.same_iou:
            return TWICE
        if self.fragment_share is None or other.name not in ("", taker.name) or two.sum() > one.sum():
            return None
        return FRAGMENT if (one & two).sum() >= self.fragment_share * two.sum() else None

    def _unfit(self, mask: NDArray[np.bool_]) -> str | None:
        share = mask.mean()
        if share < self.least_share or not mask.any():
            return SMALL
        if share > self.most_share:
            return LARGE
        return CLIPPED if edges_touched(mask) > self.most_edges else None
