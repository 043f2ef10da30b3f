"""Masks that are pixels of an image file: indices of a palette, ids in its colours, or whatever is not zero.

A file is decoded when a mask of it is asked for, and once for all masks of it that are asked for in a row.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.images import image_header

INDEX, COLOUR_ID = "index", "colour id"
_DEEP = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
_DROPPED = {"LA": "L", "PA": "P", "RGBA": "RGB"}
_NEARLY_WHITE = 254
"""What some sets of masks write in place of 255 where parts overlap."""
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError)
"""What Pillow raises for a file that is cut off, damaged, or meant to do harm."""


@dataclass(frozen=True)
class FilePixels:
    """The pixels of a file that have some of the values; all that are not 0 where no value is named."""

    path: Path
    values: tuple[int, ...] = ()
    kind: str = INDEX
    """INDEX: the palette index or grey value; COLOUR_ID: R + 256 G + 65536 B."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels; raises ValueError where the file is of another size or cannot be read."""
        found = pixels_of(self.path, self.kind)
        if found.shape != (height, width):
            raise ValueError(
                f"{self.path} is {found.shape[1]} x {found.shape[0]} pixels and its photo {width} x {height}; "
                "a mask must have the size of its photo."
            )
        if not self.values:
            return np.asarray(found != 0)
        return np.asarray(found == self.values[0]) if len(self.values) == 1 else np.isin(found, self.values)

    @property
    def is_soft(self) -> bool:
        """Whether all that is not 0 counts, though the file has several such values, as soft edges or numbers have."""
        if self.values or self.kind != INDEX:
            return False
        shades = _shades(self.path)
        counted = shades[shades != 0]
        return bool(len(counted) and counted.min() != counted.max() and counted.min() < _NEARLY_WHITE)


def pixels_of(path: Path, kind: str) -> NDArray[np.int32]:
    """[H, W] the values of a file, as `FilePixels` names them; not to be written to.

    In a file of colours, a pixel's INDEX is 1 where any colour is not 0; transparent pixels are 0. Raises
    FileNotFoundError where there is none, ValueError where it is no image that can be read whole.
    """
    there = path.stat() if path.is_file() else None
    return _decoded(path, kind, (there.st_mtime_ns, there.st_size) if there else None)


def size_of(path: Path) -> tuple[int, int]:
    """(H, W) of the pixels of a file as they are stored, read from its header; raises as `pixels_of`."""
    header = image_header(path)
    return header.height, header.width


def is_indexed(path: Path) -> bool:
    """Whether a file has one value a pixel, as a palette or grey image; raises as `pixels_of`."""
    with path.open("rb") as file, opened_mask(file, str(path)) as image:
        return image.mode in _DEEP


def indices_of(file: IO[bytes], where: str) -> NDArray[np.int32]:
    """[H, W] the values of an opened image, as `pixels_of`; raises ValueError, telling `where`."""
    with opened_mask(file, where) as image:
        return _indices(image)


@contextmanager
def opened_mask(file: IO[bytes], where: str) -> Iterator[Image.Image]:
    """An image of which pixels are read as they are stored.

    Raises ValueError, telling `where`, for what cannot be read, within the block too.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            yield image
    except _UNREADABLE as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{where} is cut off, damaged or no image ({said}); export it again.") from error


def _shades(path: Path) -> NDArray[np.int32]:
    """[H, W] the values of a file as `pixels_of`, or the brightness of its colours."""
    if is_indexed(path):
        return pixels_of(path, INDEX)
    with path.open("rb") as file, opened_mask(file, str(path)) as image:
        return np.asarray(np.array(image.convert("L")), np.int32)


@lru_cache(maxsize=2)  # of one photo, VOC has two files; a phrase of several masks asks for each once
def _decoded(path: Path, kind: str, there: tuple[int, int] | None) -> NDArray[np.int32]:
    with path.open("rb") as file, opened_mask(file, str(path)) as image:
        values = _colour_ids(image) if kind == COLOUR_ID else _indices(image)
    values.flags.writeable = False
    return values


def _indices(image: Image.Image) -> NDArray[np.int32]:
    if image.mode in _DEEP:
        return np.asarray(np.array(image), np.int32)
    opaque = np.array(image.getchannel("A")) > 0 if image.mode in _DROPPED else True
    colours = np.array(image.convert(_DROPPED.get(image.mode, image.mode)))
    coloured = colours.reshape(*colours.shape[:2], -1).any(axis=2)
    return np.asarray(coloured & opaque, np.int32)


def _colour_ids(image: Image.Image) -> NDArray[np.int32]:
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), 2, 0)
    return np.asarray(red + 256 * green + 65536 * blue)
