"""What is true, as a benchmark stores it: run lengths in place of bitmaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.example import Example, MaskPart
from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.polygons import Box

MASK_REFERENCE = "mask reference"
"""Tag of an example whose prompt points at a mask."""


@dataclass(frozen=True)
class CodedTruth:
    """What a protocol wants of an example; a few hundred bytes, so that a whole data set can be held and sent."""

    example_id: str
    height: int
    """H of the photo, pixels."""
    width: int
    """W of the photo, pixels."""
    instances: tuple[str, ...]
    """[K] COCO run-length text of each true mask; none: nothing fits the phrase."""
    ignore: str | None = None
    """COCO run-length text of the pixels that count neither way; None where there are none."""
    box_px: Box | None = None
    """(x0, y0, x1, y1) of the object as the data set says it; None: the tight box of its mask."""
    tags: tuple[str, ...] = ()
    """What scores are split by, such as MASK_REFERENCE."""
    asked: str = "mask"
    """What was asked for, of ASKED of envs/example.py."""

    @classmethod
    def of(cls, example: Example) -> "CodedTruth":
        """From an example, whose masks [K, H, W] are read pixel by pixel: that takes longer than to judge an answer."""
        truth = example.truth
        height, width = truth.masks.shape[1:]
        instances = tuple(rle_from_mask(mask) for mask in truth.masks)
        ignore = None if truth.ignore is None else rle_from_mask(truth.ignore)
        tags = (MASK_REFERENCE,) if any(isinstance(part, MaskPart) for part in example.prompt.parts) else ()
        return cls(example.id, height, width, instances, ignore, tags=tags, asked=example.prompt.asked)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "CodedTruth":
        """From a row of a benchmark: example_id, height, width, masks, ignore, asked and points_at_a_mask."""
        tags = (MASK_REFERENCE,) if row["points_at_a_mask"] else ()
        masks = tuple(row["masks"])
        size = row["height"], row["width"]
        return cls(row["example_id"], *size, masks, row["ignore"], tags=tags, asked=row["asked"])

    @property
    def is_none(self) -> bool:
        """Whether nothing is true: no instance, or none with a pixel."""
        return all(_is_one_run(counts) for counts in self.instances)

    def with_ignore_as_target(self) -> "CodedTruth":
        """This truth with the ignored pixels true, as in sets that were packed again by "any value but 0"."""
        if self.ignore is None:
            return self
        return replace(self, instances=(*self.instances, self.ignore), ignore=None)

    def stretched(self, side_px: int) -> "CodedTruth":
        """This truth in an image stretched to side_px x side_px: each pixel takes the value under its centre."""
        instances = tuple(self._stretched(counts, side_px) for counts in self.instances)
        ignore = None if self.ignore is None else self._stretched(self.ignore, side_px)
        return replace(self, height=side_px, width=side_px, instances=instances, ignore=ignore)

    def _stretched(self, counts: str, side_px: int) -> str:
        return rle_from_mask(nearest(mask_from_rle(counts, self.height, self.width), side_px))


def coded(examples: Sequence[Example | CodedTruth]) -> list[CodedTruth]:
    """The examples as CodedTruth, those that are not yet; raises ValueError where two have one id."""
    truths = [example if isinstance(example, CodedTruth) else CodedTruth.of(example) for example in examples]
    refuse_duplicates([truth.example_id for truth in truths])
    return truths


def refuse_duplicates(example_ids: Sequence[str]) -> None:
    """Raise ValueError where an id comes twice, as where workers were given a share each, filled up with others'."""
    seen: set[str] = set()
    for example_id in example_ids:
        if example_id in seen:
            raise ValueError(f"example {example_id!r} is judged twice, and would count twice; give each one answer.")
        seen.add(example_id)


def nearest(mask: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
    """[side_px, side_px] mask [H, W] stretched: each pixel takes the value under its centre."""
    rows, columns = (((np.arange(side_px) + 0.5) * length / side_px).astype(np.int64) for length in mask.shape)
    return mask[np.ix_(rows, columns)]


def _is_one_run(counts: str) -> bool:
    """Whether a run-length text is that of a mask without a pixel: one number, of which all signs but the last go on.

    A number of pixels is 7 signs long at most: no image has 2 ^ 35 of them.
    """
    return len(counts) <= 7 and all(ord(sign) - 48 & 32 for sign in counts[:-1])
