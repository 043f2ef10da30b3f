"""Near-duplicate images: perceptual hashes of resized or recompressed copies differ in few bits.

ImageHash's phash: the low frequencies of the image's grey values, each above or below their median.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rollout.label.record import LabelImage, Shown


def look_of(shown: Shown) -> LabelImage:
    """The record of an image with its hash; of one that is not open as it is."""
    if not shown.image.is_open:
        return shown.image
    import imagehash  # only here: a pipeline that looks for no duplicates does not need it

    return replace(shown.image, look=str(imagehash.phash(Image.fromarray(shown.pixels))))


class Looks:
    """Hashes of the images so far."""

    def __init__(self, most_bits: int) -> None:
        """most_bits: bits of 64 that two hashes of the same picture may differ in."""
        self._most = most_bits
        self._hashes = np.zeros(1024, np.uint64)
        self._keys: list[str] = []

    def first_like(self, look: str) -> str | None:
        """Key of the first image like one of this hash; None where there is none."""
        differing = np.bitwise_count(self._held ^ np.uint64(int(look, 16)))
        places = np.flatnonzero(differing <= self._most)
        return self._keys[places[0]] if len(places) else None

    def add(self, key: str, look: str) -> None:
        """Take an image in."""
        if len(self._keys) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[len(self._keys)] = int(look, 16)
        self._keys.append(key)

    @property
    def _held(self) -> NDArray[np.uint64]:
        return self._hashes[: len(self._keys)]
