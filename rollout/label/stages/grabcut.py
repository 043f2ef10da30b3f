"""Stage: the mask of each box by GrabCut, a segmenter that needs no weights (Rother, Kolmogorov and Blake 2004).

Colours inside and outside of the box are two mixtures of Gaussians, and a cut through the graph of pixels parts them;
OpenCV's own, over a crop around the box, so that a large photo costs no more than its objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from envs.geometry.parts import largest_part
from envs.ranges import above, at_least, between
from rollout.label.record import Box, LabelImage, LabelObject, Refusal, Shown, kept, with_mask

NOTHING = "GrabCut finds nothing in the box"
_STAGE = "grabcut"
_ADDED = 1.2
"""A cut of not more than so much of the pixels that it was told says nothing."""


@dataclass(frozen=True)
class Labeller:
    """Masks by GrabCut."""

    iterations: Annotated[int, at_least(1)] = 3
    """Rounds of mixtures and cuts."""
    seed: Annotated[float, between(0, 1)] = 0.5
    """Share of the box's sides of the ellipse in its middle that is surely the object; without one, 0, the cut ends as
    nothing for near half of the objects of photos."""
    around: Annotated[float, above(0)] = 0.5
    """Share of the box's sides by which the crop is larger on each side: the background that is learned from."""
    side: Annotated[int, at_least(16)] = 256
    """Longer side, pixels, at which a crop is cut; a larger one is shrunk to it."""
    least_share: Annotated[float, between(0, 1)] = 0.02
    """Least share of the box that a mask covers."""
    HAS_MODEL: ClassVar[bool] = False

    def check(self) -> None:
        """Raise ValueError where OpenCV is not installed."""
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "the stage grabcut needs OpenCV, which is not installed; install polytrace[label], or name another "
                "segmenter."
            ) from error

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """A mask for each object, its largest part; objects in whose box nothing is found are refused."""
        return [self._segmented(one) if one.image.is_open else one.image for one in images]

    def _segmented(self, shown: Shown) -> LabelImage:
        masked, refused = list[LabelObject](), list[Refusal]()
        for found in shown.image.objects:
            mask = largest_part(self._cut(shown.pixels, found.box_px))
            share = mask.sum() / max(1.0, _area(found.box_px))
            measured = found.with_numbers(_STAGE, share_of_box=float(share))
            if mask.any() and share >= self.least_share:
                masked.append(with_mask(measured, mask))
            else:
                refused.append(Refusal(_STAGE, NOTHING, measured))
        return kept(shown.image, masked, refused)

    def _cut(self, pixels: NDArray[np.uint8], box: Box) -> NDArray[np.bool_]:
        """[H, W] what GrabCut takes for the object in a box."""
        import cv2

        height, width = pixels.shape[:2]
        left, top, right, bottom = crop_around(box, self.around, height, width)
        crop = np.ascontiguousarray(pixels[top:bottom, left:right])
        scale = min(1.0, self.side / max(crop.shape[:2]))
        size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
        small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA) if scale < 1 else crop
        scales = (size[0] / crop.shape[1], size[1] / crop.shape[0])
        start = trimap(box, (left, top), scales, (size[1], size[0]), self.seed)
        sure = start == cv2.GC_FGD
        if not (start == cv2.GC_BGD).any() or not (start == cv2.GC_PR_FGD).any():
            return np.zeros((height, width), np.bool_)  # nothing to tell the object from
        cv2.setRNGSeed(0)  # its mixtures begin with k-means
        try:
            cv2.grabCut(
                small, start, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), self.iterations, cv2.GC_INIT_WITH_MASK
            )
        except cv2.error:  # a crop of one colour gives mixtures that are none
            return np.zeros((height, width), np.bool_)
        cut = ((start == cv2.GC_FGD) | (start == cv2.GC_PR_FGD)).astype(np.uint8)
        if cut.sum() <= _ADDED * sure.sum():
            return np.zeros((height, width), np.bool_)
        large = cv2.resize(cut, crop.shape[1::-1], interpolation=cv2.INTER_NEAREST) if scale < 1 else cut
        mask = np.zeros((height, width), np.bool_)
        mask[top:bottom, left:right] = large > 0
        return mask


def crop_around(box: Box, around: float, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) whole pixels of a box grown by a share of its sides, cut at the image's edges."""
    x, y = around * (box[2] - box[0]), around * (box[3] - box[1])
    left, top = max(0, int(np.floor(box[0] - x))), max(0, int(np.floor(box[1] - y)))
    return left, top, min(width, int(np.ceil(box[2] + x))), min(height, int(np.ceil(box[3] + y)))


def trimap(
    box: Box, corner: tuple[int, int], scale: tuple[float, float], size: tuple[int, int], seed: float
) -> NDArray[np.uint8]:
    """[h, w] of a crop: 3, perhaps the object, where a pixel's centre lies in the box, else 0, surely background; 1,
    surely the object, in the ellipse of a share of the box's sides in its middle."""
    rows = (np.arange(size[0]) + 0.5) / scale[1] + corner[1]
    columns = (np.arange(size[1]) + 0.5) / scale[0] + corner[0]
    inside = ((rows > box[1]) & (rows < box[3]))[:, None] & ((columns > box[0]) & (columns < box[2]))[None]
    marks = np.where(inside, 3, 0).astype(np.uint8)
    if seed:
        across = (columns - (box[0] + box[2]) / 2) / max(1e-9, seed * (box[2] - box[0]) / 2)
        down = (rows - (box[1] + box[3]) / 2) / max(1e-9, seed * (box[3] - box[1]) / 2)
        marks[inside & (down[:, None] ** 2 + across[None] ** 2 <= 1)] = 1
    return marks


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
