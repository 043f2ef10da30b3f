"""Examples of annotated photos: the photo opened and shown, its annotations filled, all in one frame.

Masks are filled at the size at which the photo was annotated, by the rule of their own format. Where the photo is shown
smaller or larger, a pixel of the mask is the one under its centre.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.example import Example, ImageRef, MaskPart, Part, Prompt, TextPart, Truth, image_sha256
from envs.images import ImageHeader, ShownFile, View, image_header
from envs.readers._pixels import FilePixels
from envs.readers.base import AnnotatedPhoto, Findings, PhotoFile, Reference, Shape

UNREADABLE = "photos that cannot be opened"
OTHER_SIZE = "photos of another size than they were annotated at"
UNKNOWN_TURN = "photos with an EXIF turn that their recorded size cannot confirm, taken as stored"
NOT_DRAWN = "questions about a mask that cannot be drawn"
SOFT = "mask pictures of several values, as soft edges or numbers of objects are, of which all that are not 0 count"
NO_PIXEL = "questions about an object without a pixel at this size"


@dataclass(frozen=True)
class Shown:
    """How photos are shown, and how their examples are called."""

    view: View
    """How photos are resized and padded."""
    data_set: str
    """First part of the examples' ids."""
    split: str
    """Their split."""


@dataclass(frozen=True)
class ShownPhoto:
    """The examples of a photo, in the order of its questions."""

    examples: tuple[Example, ...]
    file: ShownFile
    image: NDArray[np.uint8]
    """[H, W, 3] RGB as it is shown."""


def shown_photo(photo: AnnotatedPhoto, shown: Shown, findings: Findings) -> ShownPhoto | None:
    """The examples of a photo; None, and told to `findings`, where it cannot be used."""
    try:
        header = image_header(photo.photo.path)
        upright = annotated_upright(photo.photo, header, findings)
        file = ShownFile(photo.photo.path, upright, shown.view)
        size = _frame(header, upright)
        recorded = (photo.photo.height, photo.photo.width)
        if all(recorded) and recorded != size:
            lose(photo, f"{OTHER_SIZE}", f"{size[1]} x {size[0]}, annotated at {recorded[1]} x {recorded[0]}", findings)
            return None
        image = file.pixels()
    except (ValueError, OSError) as error:
        lose(photo, UNREADABLE, f"{error}", findings)
        return None
    reference = ImageRef(str(photo.photo.path), image_sha256(image), *image.shape[:2])
    builder = _Builder(photo.photo, size, reference, shown)
    examples, soft = [], dict[Path, None]()
    for one in photo.references:
        example = builder.example(one, findings)
        if example:
            examples.append(example)
            soft |= {shape.path: None for shape in one.masks if isinstance(shape, FilePixels) and shape.is_soft}
    for path in soft:
        findings.note(SOFT, path)
    return ShownPhoto(tuple(examples), file, image)


def lose(photo: AnnotatedPhoto, reason: str, detail: str, findings: Findings) -> None:
    """Tell that a photo is left out, and which questions are lost by that."""
    findings.leave_out(reason, f"{photo.photo.path} ({detail})")
    for one in photo.references:
        findings.lose(f"questions about {reason}", one.id)


def annotated_upright(photo: PhotoFile, header: ImageHeader, findings: Findings) -> bool:
    """Whether outlines lie on the photo turned upright by EXIF: as the reader says, else as the recorded size tells."""
    if photo.upright is not None or header.orientation == 1:
        return bool(photo.upright)
    if photo.height and header.lies_on_its_side and header.height != header.width:
        return (photo.height, photo.width) == (header.width, header.height)
    findings.note(UNKNOWN_TURN, photo.path)
    return False


def _frame(header: ImageHeader, upright: bool) -> tuple[int, int]:
    size = (header.height, header.width)
    return size[::-1] if upright and header.lies_on_its_side else size


@dataclass(frozen=True)
class _Builder:
    """Makes the examples of one photo."""

    photo: PhotoFile
    size: tuple[int, int]
    """(H, W) at which it was annotated."""
    image: ImageRef
    shown: Shown

    def example(self, one: Reference, findings: Findings) -> Example | None:
        """The example of a question; None, and told, where its masks cannot be drawn or have no pixel."""
        try:
            masks, candidates = self._masks(one.masks), self._masks(one.candidates)
            ignore, parts = self._ignored(one.ignore, masks), tuple(self._parts(one.parts))
        except (ValueError, OSError) as error:
            findings.lose(NOT_DRAWN, f"{one.id} ({error})")
            return None
        if not masks.any(axis=(1, 2)).all():
            findings.lose(NO_PIXEL, one.id)
            return None
        name, photo = f"{self.shown.data_set}/{one.id}", self.photo
        pool = candidates if len(candidates) else None
        truth, split = Truth(masks, ignore), self.shown.split
        return Example(name, self.image, Prompt(parts), truth, split, photo.source, photo.licence, pool)

    def _masks(self, shapes: Sequence[Shape]) -> NDArray[np.bool_]:
        masks = np.zeros((len(shapes), self.image.height, self.image.width), np.bool_)
        for mask, shape in zip(masks, shapes, strict=True):
            mask[:] = self.shown.view.mask(shape.mask(*self.size))
        return masks

    def _ignored(self, shapes: Sequence[Shape], masks: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        ignored = np.asarray(self._masks(shapes).any(axis=0) & ~masks.any(axis=0))
        return ignored if ignored.any() else None

    def _parts(self, parts: Sequence[str | Shape]) -> Iterator[Part]:
        for part in parts:
            yield TextPart(part) if isinstance(part, str) else MaskPart(self._masks([part])[0])
