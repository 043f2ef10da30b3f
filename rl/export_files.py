"""The files of one pair: its row, and image and masks as PNG, from the index of an export and the runs' images."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.example import Env
from envs.rle import mask_from_rle
from rl.pair_index import row_image

RLE_COLUMNS = ("coarse_rle", "true_rle", "ignore_rle")


@dataclass(frozen=True)
class PairFiles:
    """One pair as every format needs it."""

    key: str
    """Its number in the export, eight digits."""
    row: Mapping[str, Any]
    """Columns of PAIR_SCHEMA."""
    image: bytes
    """PNG, RGB."""
    coarse: bytes
    """PNG, 0 and 255 of 8 bits, like the other masks."""
    true: bytes
    ignore: bytes | None
    """Pixels that count neither way; None where all count."""

    @property
    def masks(self) -> dict[str, bytes]:
        """The masks that there are, by name."""
        masks = {"coarse": self.coarse, "true": self.true}
        return masks if self.ignore is None else masks | {"ignore": self.ignore}


class PairPictures:
    """Reads images from the Envs of their runs; the image read last is kept, since pairs of one image are together."""

    def __init__(self, envs: Mapping[str, Env]) -> None:
        """envs: of the training split, by run."""
        self._envs = envs
        self._last = ("", b"")

    def files(self, number: int, row: Mapping[str, Any]) -> PairFiles:
        """All files of pair `number`; raises ValueError or OSError where its image is another one, or gone."""
        if self._last[0] != row["image_sha256"]:
            self._last = row["image_sha256"], png(self.image(row))
        masks = [
            None if row[name] is None else png(mask_from_rle(row[name], row["height"], row["width"]))
            for name in RLE_COLUMNS
        ]
        assert masks[0] is not None and masks[1] is not None
        return PairFiles(f"{number:08d}", row, self._last[1], masks[0], masks[1], masks[2])

    def image(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] of a row's image."""
        return row_image(self._envs, row)


def png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A picture [H, W, 3] uint8 or a mask [H, W] bool as PNG."""
    buffer = io.BytesIO()
    values = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()
