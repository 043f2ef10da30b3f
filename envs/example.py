"""The question and its true answer: what every other module is about.

Frames: images are uint8 RGB [H, W, 3]; masks are bool [H, W]; pixel (row i, column j) has its centre at
(x, y) = (j + 0.5, i + 0.5), x to the right, y down.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test", "held_out_names")


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
class Prompt:
    """What is asked, as ordered parts; today every part is text."""

    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text parts joined by one space."""
        return " ".join(self.parts)


@dataclass(frozen=True)
class Truth:
    """The true answer: no instance at all means that nothing in the image fits the phrase."""

    masks: NDArray[np.bool_]
    """[K, H, W] one visible mask an instance; K may be 0."""
    ignore: NDArray[np.bool_] | None = None
    """[H, W] pixels that count neither way (crowds), or None."""

    @property
    def union(self) -> NDArray[np.bool_]:
        """[H, W] pixels of any instance."""
        return np.asarray(self.masks.any(axis=0))


@dataclass(frozen=True)
class Example:
    """One question about one image."""

    id: str
    """Unique over all data sets; never reused for another image or phrase."""
    image: ImageRef
    prompt: Prompt
    truth: Truth
    split: str
    """One of SPLITS."""
    source: str
    """Where image and annotation came from, for people."""
    licence: str
    """Licence of the image, as a short name (SPDX where there is one)."""


def image_sha256(image: NDArray[np.uint8]) -> str:
    """SHA-256 over "HxW:" and the RGB bytes of [H, W, 3] uint8 `image`, as 64 hex digits."""
    height, width, _ = image.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
