"""Rows of example shards: an example as what Parquet holds, and back; docs/data.md tells the columns to users.

Masks are COCO's run lengths in the frame of the image as it is shown, `height` x `width`; points and boxes are pixels.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from envs.example import BoxPart, Example, ImageRef, MaskPart, Part, PointPart, Prompt, TextPart, Truth
from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.images import ShownFile, View

SCHEMA_VERSION = 2
"""Raised whenever a column or its meaning changes."""
READABLE_VERSIONS = (1, 2)
"""Versions that are read; 1 has no candidates."""

_FLOATS = pa.list_(pa.float64())
_PART = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("point_px", _FLOATS),
        pa.field("box_px", _FLOATS),
        pa.field("mask", pa.string()),
    ]
)
_NULLABLE = {"ignore", "candidates", "image_file", "image_upright", "image_side", "image_square", "image_png"}

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in _NULLABLE)
        for name, kind in {
            "example_id": pa.string(),
            "split": pa.string(),
            "source": pa.string(),
            "licence": pa.string(),
            "prompt": pa.list_(_PART),
            "asked": pa.string(),
            "masks": pa.list_(pa.string()),
            "ignore": pa.string(),
            "candidates": pa.list_(pa.string()),
            "image_key": pa.string(),
            "image_sha256": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "image_file": pa.string(),
            "image_upright": pa.bool_(),
            "image_side": pa.int32(),
            "image_square": pa.bool_(),
            "image_png": pa.binary(),
            "scene_row": pa.int64(),
            "scene_size": pa.int32(),
        }.items()
    ]
)
IMAGE_COLUMNS = ("image_key", "image_file", "image_upright", "image_side", "image_square", "image_png")
"""What the pixels of an image are read from."""
EXAMPLE_COLUMNS = tuple(name for name in SCHEMA.names if name not in IMAGE_COLUMNS or name == "image_key")
"""What an example is read from."""


@dataclass(frozen=True)
class Scene:
    """Rows that ask about one image, one after the other in the order of `Env.scene`."""

    row: int
    """Number of the first of them in the split."""
    size: int
    """How many there are."""


def example_row(example: Example, scene: Scene, file: ShownFile | None, png: bytes | None) -> dict[str, Any]:
    """The row of an example.

    file: where its image is referred to; png: the pixels where they are embedded, which only the first row of a scene
    has.
    """
    truth = example.truth
    return {
        "example_id": example.id,
        "split": example.split,
        "source": example.source,
        "licence": example.licence,
        "prompt": prompt_rows(example.prompt),
        "asked": example.prompt.asked,
        "masks": [rle_from_mask(mask) for mask in truth.masks],
        "ignore": None if truth.ignore is None else rle_from_mask(truth.ignore),
        "candidates": None if example.candidates is None else [rle_from_mask(mask) for mask in example.candidates],
        "image_key": example.image.key,
        "image_sha256": example.image.sha256,
        "height": example.image.height,
        "width": example.image.width,
        "image_file": None if file is None else str(file.path.absolute()),
        "image_upright": None if file is None else file.upright,
        "image_side": None if file is None else file.view.side,
        "image_square": None if file is None else file.view.square,
        "image_png": png,
        "scene_row": scene.row,
        "scene_size": scene.size,
    }


def example_of(row: Mapping[str, Any]) -> Example:
    """The example of a row, which has at least EXAMPLE_COLUMNS; raises ValueError for a mask of another size."""
    height, width = row["height"], row["width"]
    masks, listed = _masks(row["masks"], height, width), row.get("candidates")
    candidates = None if listed is None else _masks(listed, height, width)
    ignore = None if row["ignore"] is None else mask_from_rle(row["ignore"], height, width)
    image = ImageRef(row["image_key"], row["image_sha256"], height, width)
    prompt = prompt_of(row["prompt"], row["asked"], height, width)
    truth = Truth(masks, ignore)
    return Example(row["example_id"], image, prompt, truth, row["split"], row["source"], row["licence"], candidates)


def _masks(runs: Sequence[str], height: int, width: int) -> NDArray[np.bool_]:
    """[N, height, width] masks of run lengths."""
    masks = np.zeros((len(runs), height, width), np.bool_)
    for mask, counts in zip(masks, runs, strict=True):
        mask[:] = mask_from_rle(counts, height, width)
    return masks


def prompt_rows(prompt: Prompt) -> list[dict[str, Any]]:
    """The parts of a prompt in order, in terms of JSON."""
    return [_part_row(part) for part in prompt.parts]


def prompt_of(rows: Sequence[Mapping[str, Any]], asked: str, height: int, width: int) -> Prompt:
    """The prompt of such parts about a height x width image; ValueError for a part of an unknown kind."""
    return Prompt(tuple(_part_of(row, height, width) for row in rows), asked)


def _part_row(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"kind": "text", "text": text}
        case PointPart(point_px):
            return {"kind": "point", "point_px": list(point_px)}
        case BoxPart(box_px):
            return {"kind": "box", "box_px": list(box_px)}
        case MaskPart(mask):
            return {"kind": "mask", "mask": rle_from_mask(mask)}


def _part_of(row: Mapping[str, Any], height: int, width: int) -> Part:
    match row["kind"]:
        case "text":
            return TextPart(row["text"])
        case "point":
            return PointPart(tuple(row["point_px"]))
        case "box":
            return BoxPart(tuple(row["box_px"]))
        case "mask":
            return MaskPart(mask_from_rle(row["mask"], height, width))
    raise ValueError(f"a prompt has a part of kind {row['kind']!r}, which this version of Polytrace does not know.")


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """An image [H, W, 3] uint8 RGB as PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def pixels_of(row: Mapping[str, Any], moved: tuple[str, str] | None) -> NDArray[np.uint8]:
    """The image [H, W, 3] uint8 RGB of a row, which has at least IMAGE_COLUMNS.

    moved: folder that the files lay in, and the one that they lie in now. Raises as `read_image`.
    """
    file = file_of(row, moved)
    return np.array(Image.open(io.BytesIO(row["image_png"])), np.uint8) if file is None else file.pixels()


def file_of(row: Mapping[str, Any], moved: tuple[str, str] | None) -> ShownFile | None:
    """The file of a row's image, and how it is shown; None where its pixels are embedded. Arguments: see pixels_of."""
    if row["image_file"] is None:
        return None
    path = Path(row["image_file"])
    if moved is not None:
        path = Path(moved[1]) / path.relative_to(moved[0])
    return ShownFile(path, row["image_upright"], View(row["image_side"], row["image_square"]))
