"""Near-duplicate images: perceptual hashes of resized or recompressed copies differ in few bits.

ImageHash's phash: the low frequencies of the image's grey values, each above or below their median. All images are
hashed before any stage sees one, so that no model works on a copy.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from rollout.disk import whole_file, writing
from rollout.label.record import Shown

NEAR_DUPLICATES = "near_duplicates"
"""What stands for the stage that refuses them."""
NEAR_DUPLICATE = "an image like an earlier one"
LOOKS_IMAGES = 65536
"""Images of a file of hashes."""

Look = tuple[str, str]
"""Key of an image, and its hash, 16 hex digits; "" of one that cannot be opened."""


def look_of(shown: Shown) -> Look:
    """Key and hash of an image."""
    key = shown.image.origin.key
    if not shown.image.is_open:
        return key, ""
    import imagehash  # only here: a pipeline that looks for no duplicates does not need it

    return key, str(imagehash.phash(Image.fromarray(shown.pixels)))


class Looks:
    """Hashes of the images so far, in their order."""

    def __init__(self, most_bits: int) -> None:
        """most_bits: bits of 64 that two hashes of the same picture may differ in."""
        self._most = most_bits
        self._hashes = np.zeros(1024, np.uint64)
        self._keys: list[str] = []
        self.num_images = 0
        """Images that were taken in, copies among them."""
        self.copies: dict[int, str] = {}
        """Of each image that is like an earlier one, by its number: the key of the first such."""

    def take(self, looks: Sequence[Look]) -> None:
        """Take in the next images."""
        for key, look in looks:
            if look and (like := self._first_like(look)) is not None:
                self.copies[self.num_images] = like
            elif look:
                self._add(key, look)
            self.num_images += 1

    def _first_like(self, look: str) -> str | None:
        differing = np.bitwise_count(self._held ^ np.uint64(int(look, 16)))
        places = np.flatnonzero(differing <= self._most)
        return self._keys[places[0]] if len(places) else None

    def _add(self, key: str, look: str) -> None:
        if len(self._keys) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[len(self._keys)] = int(look, 16)
        self._keys.append(key)

    @property
    def _held(self) -> NDArray[np.uint64]:
        return self._hashes[: len(self._keys)]


def looks_path(out: Path, part: int) -> Path:
    """File of the hashes of the images from number `part` times LOOKS_IMAGES on."""
    return out / "looks" / f"looks-{part:05d}.parquet"


def write_looks(path: Path, looks: Sequence[Look]) -> None:
    """Write hashes, whole or not at all."""
    keys, hashes = [key for key, _ in looks], [look for _, look in looks]
    with writing(path.name, path), whole_file(path) as partial:
        pq.write_table(pa.table({"key": keys, "look": hashes}), partial, compression="zstd")


def read_looks(path: Path) -> list[Look]:
    """Hashes as they were written."""
    table = pq.read_table(path)
    return list(zip(table.column("key").to_pylist(), table.column("look").to_pylist(), strict=True))
