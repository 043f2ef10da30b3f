"""The four formats that pairs are exported in: Parquet, WebDataset, COCO, and PNG files with a table.

A format is a function that writes one shard of the pairs that it is handed. COCO and PNG end in one file for all pairs:
their shards leave lines in .parts/, which `finish` joins.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.geometry.rle import mask_from_rle, spans_from_rle
from rewards.kernels.bands import span_sums
from rl.pages.pictures import png
from rl.pairs.index import INDEX, PAIR_SCHEMA, index_rows, row_image
from rollout.disk import whole_file

RLE_COLUMNS = ("coarse_rle", "true_rle", "ignore_rle")


@dataclass(frozen=True)
class PairFiles:
    """One pair as every format needs it."""

    key: str
    """Number of the pair in the export, eight digits."""
    row: Mapping[str, Any]
    """Row of the index, columns of PAIR_SCHEMA."""
    image: bytes
    """Image as an RGB PNG."""
    coarse: bytes
    """Coarse mask as a PNG of 8 bits, 0 and 255, like the other masks."""
    true: bytes
    ignore: bytes | None
    """Mask of the pixels that count neither way; None where all count."""

    @property
    def masks(self) -> dict[str, bytes]:
        """The masks that there are, by name."""
        masks = {"coarse": self.coarse, "true": self.true}
        return masks if self.ignore is None else masks | {"ignore": self.ignore}


class PairPictures:
    """Reads images from the Envs of their runs; the image read last is kept, since pairs of one image are together."""

    def __init__(self, envs: Mapping[str, Env]) -> None:
        """envs: of the training split, by run."""
        self.envs = envs
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
        return row_image(self.envs, row)


_SHOWN = [name for name in PAIR_SCHEMA.names if name not in RLE_COLUMNS]
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PICTURES = {"image": "image", "coarse_mask": "coarse", "true_mask": "true", "ignore_mask": "ignore"}
"""Columns of pictures, and what they hold."""
_ROWS_PER_GROUP = 64
_BYTES_PER_GROUP = 8 << 20


def write_parquet(folder: Path, number: int, pairs: Iterable[PairFiles]) -> None:
    """data/train-00000.parquet: a row per pair, pictures as Hugging Face `Image` columns."""
    path, schema = folder / "data" / f"train-{number:05d}.parquet", _picture_schema()
    # An image that several pairs of a row group share is stored once.
    limit = 2 * _BYTES_PER_GROUP
    with (
        whole_file(path, lasting=True) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", dictionary_pagesize_limit=limit) as file,
    ):
        for rows in _row_groups(pairs):
            file.write_table(pa.Table.from_pylist(rows, schema=schema))


def _picture_schema() -> pa.Schema:
    """Columns of a Parquet shard, with what Hugging Face `datasets` reads them as."""
    fields = [pa.field(name, _PICTURE) for name in _PICTURES] + [PAIR_SCHEMA.field(name) for name in _SHOWN]
    features: dict[str, Any] = {name: {"_type": "Image"} for name in _PICTURES}
    for name in _SHOWN:
        features[name] = {"dtype": str(PAIR_SCHEMA.field(name).type), "_type": "Value"}
    features["box_px"] = {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _row_groups(pairs: Iterable[PairFiles]) -> Iterator[list[dict[str, Any]]]:
    rows, size = list[dict[str, Any]](), 0
    for pair in pairs:
        pictures = pair.masks | {"image": pair.image}
        row: dict[str, Any] = {
            column: {"bytes": pictures[kind], "path": f"{pair.key}.{kind}.png"} if kind in pictures else None
            for column, kind in _PICTURES.items()
        }
        rows.append(row | {name: pair.row[name] for name in _SHOWN})
        size += sum(map(len, pictures.values()))
        if len(rows) >= _ROWS_PER_GROUP or size >= _BYTES_PER_GROUP:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def write_tar(folder: Path, number: int, pairs: Iterable[PairFiles]) -> None:
    """pairs-000000.tar: a WebDataset sample per pair, KEY.image.png, KEY.coarse.png, KEY.true.png and KEY.json."""
    path = folder / f"pairs-{number:06d}.tar"
    with whole_file(path, lasting=True) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            facts = json.dumps({name: pair.row[name] for name in _SHOWN}, ensure_ascii=False).encode()
            pictures = {f"{name}.png": data for name, data in ({"image": pair.image} | pair.masks).items()}
            for ending, data in (pictures | {"json": facts}).items():
                entry = tarfile.TarInfo(f"{pair.key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_coco(folder: Path, number: int, pairs: Iterable[PairFiles]) -> None:
    """Images in images/, and a part of annotations.json."""
    lines = list[str]()
    for pair in pairs:
        _write_image(folder, pair)
        lines.append(json.dumps(dict(pair.row), ensure_ascii=False) + "\n")
    write_text(_part_path(folder, number), "".join(lines))


CSV_COLUMNS = ["key", "image", "coarse", "true", "ignore", *(name for name in _SHOWN if name != "box_px")]
"""Columns of pairs.csv: paths from its folder, then what is known of the pair."""


def write_png(folder: Path, number: int, pairs: Iterable[PairFiles]) -> None:
    """PNG files in images/, coarse/, true/ and ignore/, and a part of pairs.csv."""
    text = io.StringIO()
    table = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    for pair in pairs:
        paths = {"image": _write_image(folder, pair), "ignore": ""}
        for name, data in pair.masks.items():
            paths[name] = f"{name}/{pair.key}.png"
            _write_bytes(folder / paths[name], data)
        known = {name: pair.row[name] for name in CSV_COLUMNS if name in pair.row}
        table.writerow({"key": pair.key} | paths | known)
    write_text(_part_path(folder, number), text.getvalue())


WRITERS: dict[str, Callable[[Path, int, Iterable[PairFiles]], None]] = {
    "parquet": write_parquet,
    "webdataset": write_tar,
    "coco": write_coco,
    "png": write_png,
}


def _part_path(folder: Path, number: int) -> Path:
    """Where a shard of a format that ends in one file keeps its lines until then."""
    return folder / ".parts" / f"{number:06d}"


def _image_name(row: Mapping[str, Any]) -> str:
    """File of a row's image in the formats that have files of images."""
    return f"images/{row['image_sha256'][:32]}.png"


def _write_image(folder: Path, pair: PairFiles) -> str:
    name = _image_name(pair.row)
    if not (folder / name).exists():
        _write_bytes(folder / name, pair.image)
    return name


def _write_bytes(path: Path, data: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, so that a power cut leaves it whole as well."""
    with whole_file(path, lasting=True) as partial:
        partial.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Shard:
    """A shard that is whole."""

    number: int
    first: int
    """Number of the shard's first pair."""
    pairs: int


_BLOCK = 512
"""A tar archive pads each file to blocks of this size and puts one before it."""
_TAR_END = 20 * _BLOCK


def write_shards(
    folder: Path, pictures: PairPictures, format_name: str, shard_mb: int, done: tuple[Shard, ...]
) -> Iterator[Shard]:
    """Write the pairs of folder/pairs.parquet that are not done, yielding each shard when it is whole.

    A shard holds as many pairs as fit into `shard_mb` MiB, and at least one.
    """
    first = sum(shard.pairs for shard in done)
    rows = enumerate(index_rows(folder / INDEX, first), first)
    queue, number = _Queue(pictures.files(place, row) for place, row in rows), len(done)
    while queue.waiting is not None:
        before = queue.taken
        WRITERS[format_name](folder, number, queue.take(shard_mb << 20))
        yield Shard(number, first + before, queue.taken - before)
        number += 1


class _Queue:
    """Pairs to be written, of which each shard takes as many as fit."""

    def __init__(self, pairs: Iterator[PairFiles]) -> None:
        self._pairs = pairs
        self.waiting = next(pairs, None)
        self.taken = 0

    def take(self, most_bytes: int) -> Iterator[PairFiles]:
        """The next pairs, of at most so many bytes together, but at least one."""
        size, before = _TAR_END, self.taken
        while self.waiting is not None and (self.taken == before or size + _size(self.waiting) <= most_bytes):
            size += _size(self.waiting)
            self.taken += 1
            yield self.waiting
            self.waiting = next(self._pairs, None)


def _size(pair: PairFiles) -> int:
    """Bytes that a pair takes in a tar archive, and at most elsewhere."""
    files = [pair.image, *pair.masks.values()]
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in files) + 4 * _BLOCK


def finish(folder: Path, format_name: str, num_shards: int, licences: dict[str, int]) -> None:
    """Join the parts of a format that ends in one file; licences: COCO's licence ids by name."""
    parts = [_part_path(folder, number) for number in range(num_shards)]
    if format_name == "png":
        header = ",".join(CSV_COLUMNS) + "\n"
        _join(folder / "pairs.csv", chain([header], (part.read_text(encoding="utf-8") for part in parts)))
    elif format_name == "coco":
        _join(folder / "annotations.json", _coco(parts, licences))


def _join(path: Path, texts: Iterable[str]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(texts)


def clear_parts(folder: Path) -> None:
    """Delete the parts, once what they were joined to is whole and known to be."""
    for part in sorted(folder.glob(".parts/*")) + sorted(folder.rglob(".*.partial")):
        part.unlink()
    if (folder / ".parts").is_dir():
        (folder / ".parts").rmdir()


def _coco(parts: list[Path], licences: dict[str, int]) -> Iterator[str]:
    """All of annotations.json, an entry per line."""
    yield '{"info": {"description": "coarse and true masks, `segmentation` is the true one"},\n'
    yield f'"licenses": {json.dumps([{"id": k, "name": name, "url": ""} for name, k in licences.items()])},\n'
    yield '"categories": [{"id": 1, "name": "object"}],\n"images": [\n'
    numbers: dict[str, int] = {}
    for row in _rows(parts):
        if row["image_sha256"] in numbers:
            continue
        if numbers:
            yield ",\n"
        numbers[row["image_sha256"]] = len(numbers) + 1
        image = {"id": len(numbers), "file_name": _image_name(row), "height": row["height"], "width": row["width"]}
        yield json.dumps(image | {"license": licences[row["licence"]], "sha256": row["image_sha256"]})
    yield '\n],\n"annotations": [\n'
    for k, row in enumerate(_rows(parts)):
        yield ",\n" * bool(k) + json.dumps(_annotation(k, row, numbers[row["image_sha256"]]), ensure_ascii=False)
    yield "\n]}\n"


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with part.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _annotation(k: int, row: dict[str, Any], image_id: int) -> dict[str, Any]:
    size = [row["height"], row["width"]]
    spans = spans_from_rle(row["true_rle"], *size)
    x0, x1 = int(spans.bounds[::2].min()), int(spans.bounds[1::2].max())
    rows = [i for i in range(size[0]) if spans.starts[i + 1] > spans.starts[i]]
    made = {
        "id": k + 1,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(span_sums(spans)[0]),
        "bbox": [x0, rows[0], x1 - x0, rows[-1] + 1 - rows[0]],
        "segmentation": {"size": size, "counts": row["true_rle"]},
        "coarse_segmentation": {"size": size, "counts": row["coarse_rle"]},
    }
    if row["ignore_rle"] is not None:
        made["ignore_segmentation"] = {"size": size, "counts": row["ignore_rle"]}
    ours = ("example_id", "prompt", "iou", "boundary_iou", "damage", "run", "step", "position", "index")
    return made | {name: row[name] for name in (*ours, "policy_version", "source")}
