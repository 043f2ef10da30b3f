"""The question and its true answer: what every other module is about.

Frames: images are uint8 RGB [H, W, 3]; masks are bool [H, W]; pixel (row i, column j) has its centre at
(x, y) = (j + 0.5, i + 0.5), x to the right, y down.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PART_END = "::"
"""Ends the name of a part at the beginning of an example's id, where an env asks several data sets or tasks."""
SPLITS = ("train", "validation", "test", "held_out_names")
ASKED = ("mask", "box", "point")


@dataclass(frozen=True)
class ImageRef:
    """An image by reference: enough to find it again and to prove that it is the same one."""

    key: str
    """Path of the file, or the name under which an Env composes the image."""
    sha256: str
    """Hash of the image's size and uint8 RGB pixels (see `image_sha256`), not of the file around them."""
    height: int
    """H, pixels."""
    width: int
    """W, pixels."""


@dataclass(frozen=True)
class TextPart:
    """Words of a prompt."""

    text: str
    """Text as the user wrote it: data, never control tokens."""


@dataclass(frozen=True)
class PointPart:
    """A place that a prompt points at."""

    point_px: tuple[float, float]
    """(x, y), pixels."""


@dataclass(frozen=True)
class BoxPart:
    """A box that a prompt points at."""

    box_px: tuple[float, float, float, float]
    """(x0, y0, x1, y1), pixels."""


@dataclass(frozen=True)
class MaskPart:
    """A region that a prompt points at."""

    mask: NDArray[np.bool_]
    """[H, W] pixels of the region."""


Part = TextPart | PointPart | BoxPart | MaskPart


@dataclass(frozen=True)
class Prompt:
    """What is asked, as ordered parts; today's data sets write text alone."""

    parts: tuple[Part, ...]
    """Parts in the order in which they are read; at least one."""
    asked: str = "mask"
    """Form of the answer: one of ASKED."""

    def __post_init__(self) -> None:
        if self.asked not in ASKED:
            raise ValueError(f"a prompt asks for {self.asked!r}; it can ask for {', '.join(ASKED)}.")

    @classmethod
    def of_text(cls, *texts: str) -> "Prompt":
        """A prompt of words alone that asks for a mask."""
        return cls(tuple(TextPart(text) for text in texts))

    @property
    def text(self) -> str:
        """Texts of all text parts joined by one space."""
        return " ".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def told(self) -> str:
        """The prompt for people: words as they are, points and boxes in whole pixels, a mask by that name."""
        return " ".join(map(_told, self.parts))

    @property
    def text_alone(self) -> str:
        """`text`, for a family that reads nothing else and answers with masks.

        Raises ValueError, naming the part, where the prompt has another one or asks for something else.
        """
        for part in self.parts:
            if not isinstance(part, TextPart):
                raise ValueError(
                    f"the prompt {self.text!r} has a {type(part).__name__}, and this model family reads text parts "
                    "alone; ask in words, or choose a policy that reads such parts."
                )
        if self.asked != "mask":
            raise ValueError(
                f"the prompt {self.text!r} asks for a {self.asked}, and this model family answers with masks alone; "
                "ask for a mask."
            )
        return self.text


def _told(part: Part) -> str:
    match part:
        case TextPart(text):
            return text
        case PointPart(point_px):
            return f"<point {', '.join(f'{number:.0f}' for number in point_px)}>"
        case BoxPart(box_px):
            return f"<box {', '.join(f'{number:.0f}' for number in box_px)}>"
        case MaskPart():
            return "<mask>"


@dataclass(frozen=True)
class Truth:
    """The true answer: no instance at all means that nothing in the image fits the phrase."""

    masks: NDArray[np.bool_]
    """[K, H, W] one visible mask per instance; K may be 0."""
    ignore: NDArray[np.bool_] | None = None
    """[H, W] pixels that count neither way (crowds), or None."""

    @property
    def union(self) -> NDArray[np.bool_]:
        """[H, W] pixels of any instance."""
        return np.asarray(self.masks.any(axis=0))


@dataclass(frozen=True)
class Question:
    """All that a policy is shown."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    prompt: Prompt
    """What is asked about the image."""
    candidates: NDArray[np.bool_] | None = None
    """[N, H, W] masks to choose from; None where there are none, as mostly."""


@dataclass(frozen=True)
class Example:
    """One question about one image, with its true answer."""

    id: str
    """Unique over all data sets; never reused for another image or phrase."""
    image: ImageRef
    prompt: Prompt
    truth: Truth
    split: str
    """Split, as the data set calls it; composed scenes have those of SPLITS."""
    source: str
    """Where image and annotation came from, for people."""
    licence: str
    """Licence of the image, as a short name (SPDX where there is one)."""
    candidates: NDArray[np.bool_] | None = None
    """[N, H, W] masks to choose from; None for a data set without."""

    def question(self, image: NDArray[np.uint8]) -> Question:
        """What a policy is shown of it; image: its pixels [H, W, 3]."""
        return Question(image, self.prompt, self.candidates)


def image_sha256(image: NDArray[np.uint8]) -> str:
    """SHA-256 over "HxW:" and the RGB bytes of [H, W, 3] uint8 `image`, as 64 hex digits."""
    height, width, _ = image.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
