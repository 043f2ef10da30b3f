"""Every object that was ever found, kept or refused, as rows of Parquet beside the shards: nothing vanishes.

An image that was refused as a whole has a row too, without an object.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.geometry.rle import runs_from_rle
from rollout.label.record import LabelImage, LabelObject, Refusal

OBJECTS = "objects"
"""Folder of the rows below that of the labels."""
SCHEMA = pa.schema(
    [
        pa.field("image", pa.int64(), False),
        pa.field("image_key", pa.string(), False),
        pa.field("image_file", pa.string()),
        pa.field("image_side", pa.int32()),
        pa.field("image_upright", pa.bool_()),
        pa.field("height", pa.int32(), False),
        pa.field("width", pa.int32(), False),
        pa.field("number", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("phrase", pa.string()),
        pa.field("box_px", pa.list_(pa.float64())),
        pa.field("mask", pa.string()),
        pa.field("area", pa.int64()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("numbers", pa.string()),
        pa.field("example_id", pa.string()),
    ]
)
"""`stage` and `reason` are null of an object that was kept, `number` of an image; `numbers` is a JSON mapping; `area`
is in pixels."""
AT_THE_END, UNLABELLED = "shards", "an object without a phrase or a mask at the end"


def object_rows(image: LabelImage, example_ids: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """The rows of an image; example_ids: by number of a kept object, the example that it became a part of.

    Objects of an image that was refused as a whole are refused with it.
    """
    origin = image.origin
    about = {
        "image": image.index,
        "image_key": origin.key,
        "image_file": origin.file,
        "image_side": origin.side,
        "image_upright": origin.upright,
        "height": image.height,
        "width": image.width,
    }
    whole = next((one for one in image.refused if one.found is None), Refusal(AT_THE_END, UNLABELLED))
    for found in image.objects:
        example_id = example_ids.get(found.number)
        told = {"example_id": example_id} if example_id else _told(whole)
        yield about | _object(found, image) | told
    for one in image.refused:
        yield about | (_object(one.found, image) if one.found else {}) | _told(one)
    if not image.objects and not image.refused:
        yield about  # nothing was found in it, which counts as well


def _told(one: Refusal) -> dict[str, Any]:
    return {"stage": one.stage, "reason": one.reason, "detail": one.detail}


def _object(found: LabelObject, image: LabelImage) -> dict[str, Any]:
    area = None if found.mask is None else int(runs_from_rle(found.mask, image.height, image.width)[1::2].sum())
    return {
        "number": found.number,
        "name": found.name,
        "phrase": found.phrase,
        "box_px": list(found.box_px),
        "mask": found.mask,
        "area": area,
        "numbers": json.dumps(dict(found.numbers)),
    }


def objects_path(out: Path, part: int) -> Path:
    """The file of the rows beside a shard."""
    return out / OBJECTS / f"objects-{part:05d}.parquet"


def read_objects(out: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All rows, a table a file, in the order of the images.

    Raises FileNotFoundError where the folder holds no labels, ValueError for a file that is torn.
    """
    files = sorted((out / OBJECTS).glob("objects-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{out} holds no labels; give the folder that `polytrace label CONFIG` wrote to.")
    for path in files:
        try:
            yield pq.read_table(path, columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is torn ({error}); label the images anew in another folder.") from error
