"""An image on its way to labels: the objects found in it, what stages say of them, and what they refused and why.

Frames: pixels [H, W, 3] uint8 RGB as the image is shown; boxes (x0, y0, x1, y1) px of that; masks as COCO's run lengths
of H x W, so that a record stays small between two stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from envs.geometry.masks import tight_box_px
from envs.geometry.rle import mask_from_rle, rle_from_mask

Box = tuple[float, float, float, float]
DECODED = "decode"
"""What stands for the stage that opens an image."""


@dataclass(frozen=True)
class LabelObject:
    """One object of an image, as far as stages have come with it."""

    number: int
    """Its number among all that was ever found in the image, from 0; never given twice."""
    name: str
    """Name or words by which it was found; "" of one that nobody named."""
    box_px: Box
    """Where it is."""
    mask: str | None = None
    """Its mask; None before a segmenter saw it."""
    phrase: str | None = None
    """Words that ask for it; None before it was captioned."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What stages measured of it, by stage and number, such as `zero_shot.score`."""

    def with_numbers(self, stage: str, **numbers: float) -> "LabelObject":
        """The same with numbers of a stage."""
        return replace(self, numbers={**self.numbers, **{f"{stage}.{key}": value for key, value in numbers.items()}})


@dataclass(frozen=True)
class Refusal:
    """What a stage did not let pass."""

    stage: str
    """Name of the stage."""
    reason: str
    """Why, in words; the same words for the same reason, so that they can be counted."""
    found: LabelObject | None = None
    """The object; None where it is the whole image."""
    detail: str = ""
    """What is particular to this one."""


@dataclass(frozen=True)
class Group:
    """Several objects that one phrase means."""

    phrase: str
    members: tuple[int, ...]
    """Numbers of the objects; none where the phrase means nothing in this image."""
    criterion: str
    """What groups by: category, attribute, place or free."""


@dataclass(frozen=True)
class HiddenTruth:
    """What is known to be true of an image, which no stage looks at: by it labels are judged."""

    phrase: str
    mask: str
    """All that the phrase means."""


@dataclass(frozen=True)
class Origin:
    """Where an image comes from."""

    key: str
    """Path of its file, or the name under which it is composed or stored."""
    file: str | None = None
    """Path of its file; None where the shards hold its pixels."""
    side: int | None = None
    """Longer side at which it is shown; None as it is. Of a file."""
    upright: bool = True
    """Whether an EXIF orientation of the file is applied."""
    source: str = "unlabelled"
    """Where the image came from, for people."""
    licence: str = ""
    """Licence of the image; "" where nobody says."""
    address: str = ""
    """Address on the web; "" where nobody says."""
    tags: tuple[str, ...] = ()
    """Words that came with the image: an alternative text, keywords, what a tagger saw."""
    truths: tuple[HiddenTruth, ...] | None = None
    """What is true, to judge labels by; None where it is not known, as mostly."""


@dataclass(frozen=True)
class LabelImage:
    """One image with its objects."""

    index: int
    """Its place among the images."""
    origin: Origin
    height: int = 0
    """H, pixels as it is shown; 0 where it could not be opened."""
    width: int = 0
    sha256: str = ""
    """Hash of size and pixels (envs.example.image_sha256)."""
    objects: tuple[LabelObject, ...] = ()
    """Objects that are still kept, in the order of their numbers."""
    groups: tuple[Group, ...] = ()
    refused: tuple[Refusal, ...] = ()
    """What was refused, in the order in which it was."""
    next_number: int = 0
    """Number of the next object that is found."""

    @property
    def is_open(self) -> bool:
        """Whether it can be looked at; an image that was refused as a whole has no pixels that count."""
        return self.height > 0 and not any(one.found is None for one in self.refused)

    def refuse(self, stage: str, reason: str, detail: str = "") -> "LabelImage":
        """The image refused as a whole."""
        return replace(self, refused=(*self.refused, Refusal(stage, reason, None, detail)))

    def refuse_unseen(self, stage: str, reason: str, name: str) -> "LabelImage":
        """With a refused object of a name that nobody could look for, over the whole image."""
        unseen = LabelObject(self.next_number, name, (0.0, 0.0, float(self.width), float(self.height)))
        refused = (*self.refused, Refusal(stage, reason, unseen))
        return replace(self, refused=refused, next_number=self.next_number + 1)

    def mask(self, found: LabelObject) -> NDArray[np.bool_]:
        """[H, W] the mask of one of its objects that has one."""
        assert found.mask is not None
        return mask_from_rle(found.mask, self.height, self.width)

    def add(self, boxes: Sequence[tuple[str, Box]], numbers: Sequence[Mapping[str, float]], stage: str) -> "LabelImage":
        """With objects by name and box, and what a stage measured of each."""
        new = [
            LabelObject(self.next_number + k, name, box).with_numbers(stage, **measured)
            for k, ((name, box), measured) in enumerate(zip(boxes, numbers, strict=True))
        ]
        return replace(self, objects=(*self.objects, *new), next_number=self.next_number + len(new))


@dataclass(frozen=True)
class Shown:
    """An image with its pixels, as a stage is given it."""

    image: LabelImage
    pixels: NDArray[np.uint8]
    """[H, W, 3] RGB; [0, 0, 3] of an image that could not be opened."""


def kept(image: LabelImage, objects: Sequence[LabelObject], refused: Sequence[Refusal]) -> LabelImage:
    """The image with these objects in place of its own, and what is refused of those."""
    return replace(image, objects=tuple(objects), refused=(*image.refused, *refused))


def tight(mask: NDArray[np.bool_]) -> Box:
    """The box around the pixels of a mask that has some."""
    box = tight_box_px(mask)
    assert box is not None
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def with_mask(found: LabelObject, mask: NDArray[np.bool_]) -> LabelObject:
    """The object with a mask that has a pixel, and the box around it."""
    return replace(found, mask=rle_from_mask(mask), box_px=tight(mask))


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(LabelImage)
_COLUMNS = pa.schema([pa.field("record", pa.binary(), False), pa.field("pixels", pa.large_binary(), False)])


def to_block(shown: Sequence[Shown], with_pixels: bool = True) -> pa.Table:
    """A block of Ray Data of some images; with_pixels False where no later stage looks at them."""
    records = [_ENCODER.encode(one.image) for one in shown]
    pixels = [one.pixels.tobytes() if with_pixels and one.image.is_open else b"" for one in shown]
    return pa.table([pa.array(records, pa.binary()), pa.array(pixels, pa.large_binary())], _COLUMNS)


def from_block(block: pa.Table) -> list[Shown]:
    """The images of a block; their pixels are read only, and not copied."""
    shown = []
    for image, pixels in zip(records_of(block), block.column("pixels"), strict=True):
        held = np.frombuffer(pixels.as_buffer(), np.uint8)
        size = (image.height, image.width, 3) if len(held) else (0, 0, 3)
        shown.append(Shown(image, held.reshape(size)))
    return shown


def records_of(block: pa.Table) -> list[LabelImage]:
    """The records of a block, without their pixels."""
    return [_DECODER.decode(record.as_py()) for record in block.column("record")]
