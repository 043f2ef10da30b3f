"""The files of one pair: its row, and image and masks as PNG, from the index of an export and the runs' images."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from envs.example import Env, ImageRef
from envs.polygons import flatten_rings
from envs.rle import mask_from_rle, rle_from_rings
from rl.pair_candidates import PLACE_COLUMNS
from rl.pairs import Pair

PAIR_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt", pa.string()),
        ("image_key", pa.string()),
        ("image_sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("coarse_rle", pa.string()),
        ("true_rle", pa.string()),
        ("ignore_rle", pa.string()),
        ("iou", pa.float64()),
        ("boundary_iou", pa.float64()),
        ("damage", pa.string()),
        ("box_px", pa.list_(pa.float64())),
        ("run", pa.string()),
        *((name, pa.int64()) for name in (*PLACE_COLUMNS, "policy_version")),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Columns of pairs.parquet: the fields of Pair, its coarse mask as COCO RLE, and its box."""

RLE_COLUMNS = ("coarse_rle", "true_rle", "ignore_rle")
INDEX = "pairs.parquet"
"""Every pair of an export, images by reference: chosen once, then written in the format asked for."""

_ROWS_AT_ONCE = 256


def pair_row(pair: Pair) -> dict[str, object]:
    """The row of a pair in the index."""
    coarse = rle_from_rings(*flatten_rings(pair.coarse_rings), pair.height, pair.width)
    made = {"coarse_rle": coarse, "box_px": pair.box_px}
    fields = vars(pair)
    return {name: made[name] if name in made else fields[name] for name in PAIR_SCHEMA.names}


def index_rows(path: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of an index from number `first` on, in bounded memory; row groups before it are not read."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            num = file.metadata.row_group(group).num_rows
            rows = file.read_row_group(group).slice(first) if first < num else pa.table({})
            for batch in rows.to_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
            first = max(0, first - num)


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
        ref = ImageRef(row["image_key"], row["image_sha256"], row["height"], row["width"])
        return self._envs[row["run"]].image(ref)


def png(pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A picture [H, W, 3] uint8 or a mask [H, W] bool as PNG."""
    buffer = io.BytesIO()
    values = pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()
