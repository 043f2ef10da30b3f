"""How far an export has come, in its own folder: export.json, rewritten whole after every shard.

It holds no clock, host or path, so that an export that was interrupted and continued is the same, byte for byte.
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.base import Env
from envs.geometry.rle import mask_from_rle, spans_from_rle
from rewards.kernels.bands import span_sums
from rl.pairs.index import INDEX, PAIR_SCHEMA, index_rows, row_image
from rollout.disk import publish


@dataclass(frozen=True)
class Shard:
    """A shard that is whole."""

    number: int
    first: int
    """Number of its first pair."""
    pairs: int


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


_ROWS_A_GROUP = 64
_BYTES_A_GROUP = 8 << 20

_SHOWN = [name for name in PAIR_SCHEMA.names if name not in RLE_COLUMNS]
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PICTURES = {"image": "image", "coarse_mask": "coarse", "true_mask": "true", "ignore_mask": "ignore"}
"""Columns of pictures, and what they hold."""


class ShardWriter(Protocol):
    """Writes one shard."""

    def add(self, pair: PairFiles) -> None:
        """Take in a pair."""
        ...

    def close(self) -> None:
        """Make the shard whole under its name."""
        ...


def _features() -> dict[str, Any]:
    """What Hugging Face `datasets` reads the columns as."""
    values: dict[str, Any] = {
        name: {"dtype": str(PAIR_SCHEMA.field(name).type), "_type": "Value"} for name in _SHOWN if name != "box_px"
    }
    values["box_px"] = {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"}
    return {name: {"_type": "Image"} for name in _PICTURES} | {name: values[name] for name in _SHOWN}


def _picture_schema() -> pa.Schema:
    fields = [pa.field(name, _PICTURE) for name in _PICTURES] + [PAIR_SCHEMA.field(name) for name in _SHOWN]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": _features()}})})


class ParquetShard:
    """data/train-00000.parquet: a row a pair, pictures as Hugging Face `Image` columns."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / "data" / f"train-{number:05d}.parquet"
        self._partial = _partial(self._path)
        # An image that several pairs of a row group share is stored once.
        self._writer = pq.ParquetWriter(
            self._partial, _picture_schema(), compression="zstd", dictionary_pagesize_limit=_BYTES_A_GROUP * 2
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, pair: PairFiles) -> None:
        """Take in a pair."""
        pictures = pair.masks | {"image": pair.image}
        row: dict[str, Any] = {
            column: {"bytes": pictures[kind], "path": f"{pair.key}.{kind}.png"} if kind in pictures else None
            for column, kind in _PICTURES.items()
        }
        self._rows.append(row | {name: pair.row[name] for name in _SHOWN})
        self._bytes += sum(map(len, pictures.values()))
        if len(self._rows) >= _ROWS_A_GROUP or self._bytes >= _BYTES_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_picture_schema()))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Make the shard whole under its name."""
        self._flush()
        self._writer.close()
        publish(self._partial, self._path)


class TarShard:
    """pairs-000000.tar: a WebDataset sample a pair, KEY.image.png, KEY.coarse.png, KEY.true.png and KEY.json."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"pairs-{number:06d}.tar"
        self._partial = _partial(self._path)
        self._tar = tarfile.open(self._partial, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # closed by close()

    def add(self, pair: PairFiles) -> None:
        """Take in a pair."""
        facts = json.dumps({name: pair.row[name] for name in _SHOWN}, ensure_ascii=False).encode()
        pictures = {f"{name}.png": data for name, data in ({"image": pair.image} | pair.masks).items()}
        for ending, data in (pictures | {"json": facts}).items():
            entry = tarfile.TarInfo(f"{pair.key}.{ending}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))

    def close(self) -> None:
        """Make the shard whole under its name."""
        self._tar.close()
        publish(self._partial, self._path)


class CocoShard:
    """A part of annotations.json, and its images in images/."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._lines: list[str] = []

    def add(self, pair: PairFiles) -> None:
        """Take in a pair."""
        _write_image(self._folder, pair)
        self._lines.append(json.dumps(dict(pair.row), ensure_ascii=False))

    def close(self) -> None:
        """Make the shard whole under its name."""
        write_text(part_path(self._folder, self._number), "".join(f"{line}\n" for line in self._lines))


class PngShard:
    """PNG files in images/, coarse/, true/ and ignore/, and a part of pairs.csv."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._number = folder, number
        self._rows: list[dict[str, Any]] = []

    def add(self, pair: PairFiles) -> None:
        """Take in a pair."""
        paths = {"image": _write_image(self._folder, pair)}
        for name, data in pair.masks.items():
            paths[name] = f"{name}/{pair.key}.png"
            _write_bytes(self._folder / paths[name], data)
        self._rows.append(csv_row(pair.key, paths, pair.row))

    def close(self) -> None:
        """Make the shard whole under its name."""
        text = io.StringIO()
        csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n").writerows(self._rows)
        write_text(part_path(self._folder, self._number), text.getvalue())


CSV_COLUMNS = ["key", "image", "coarse", "true", "ignore", *(name for name in _SHOWN if name != "box_px")]
"""Columns of pairs.csv: paths from its folder, then what is known of the pair."""

WRITERS: dict[str, type[ParquetShard | TarShard | CocoShard | PngShard]] = {
    "parquet": ParquetShard,
    "webdataset": TarShard,
    "coco": CocoShard,
    "png": PngShard,
}


def csv_row(key: str, paths: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of pairs.csv."""
    return {"key": key, "ignore": ""} | dict(paths) | {name: row[name] for name in CSV_COLUMNS if name in row}


def part_path(folder: Path, number: int) -> Path:
    """Where a shard of a format that ends in one file keeps its lines until then."""
    return folder / ".parts" / f"{number:06d}"


def image_name(row: Mapping[str, Any]) -> str:
    """File of a row's image in the formats that have files of images."""
    return f"images/{row['image_sha256'][:32]}.png"


def _write_image(folder: Path, pair: PairFiles) -> str:
    name = image_name(pair.row)
    if not (folder / name).exists():
        _write_bytes(folder / name, pair.image)
    return name


def _write_bytes(path: Path, data: bytes) -> None:
    partial = _partial(path)
    partial.write_bytes(data)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    publish(partial, path)


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.partial")


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
    number, writer, num, size = len(done), None, 0, _TAR_END
    for place, row in enumerate(index_rows(folder / INDEX, first), first):
        pair = pictures.files(place, row)
        if writer is not None and size + _size(pair) > shard_mb << 20:
            writer.close()
            yield Shard(number, first, num)
            number, writer, first, num, size = number + 1, None, place, 0, _TAR_END
        if writer is None:
            writer = WRITERS[format_name](folder, number)
        writer.add(pair)
        num, size = num + 1, size + _size(pair)
    if writer is not None:
        writer.close()
        yield Shard(number, first, num)


def _size(pair: PairFiles) -> int:
    """Bytes that a pair takes in a tar archive, and at most elsewhere."""
    files = [pair.image, *pair.masks.values()]
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in files) + 4 * _BLOCK


def finish(folder: Path, format_name: str, num_shards: int, licences: dict[str, int]) -> None:
    """Join the parts of a format that ends in one file; licences: COCO's licence ids by name."""
    parts = [part_path(folder, number) for number in range(num_shards)]
    if format_name == "png":
        header = io.StringIO()
        csv.DictWriter(header, CSV_COLUMNS, lineterminator="\n").writeheader()
        _join(folder / "pairs.csv", [header.getvalue()], (part.read_text(encoding="utf-8") for part in parts))
    elif format_name == "coco":
        _join(folder / "annotations.json", ["{"], _coco(parts, licences))


def clear_parts(folder: Path) -> None:
    """Delete the parts, once what they were joined to is whole and known to be."""
    for part in sorted(folder.glob(".parts/*")) + sorted(folder.rglob(".*.partial")):
        part.unlink()
    if (folder / ".parts").is_dir():
        (folder / ".parts").rmdir()


def _join(path: Path, head: list[str], rest: Iterator[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(head)
        file.writelines(rest)
    partial.replace(path)


def _coco(parts: list[Path], licences: dict[str, int]) -> Iterator[str]:
    """All of annotations.json after its first bracket, an entry a line."""
    yield '"info": {"description": "coarse and true masks, `segmentation` is the true one"},\n'
    yield f'"licenses": {json.dumps([{"id": k, "name": name, "url": ""} for name, k in licences.items()])},\n'
    yield '"categories": [{"id": 1, "name": "object"}],\n"images": [\n'
    numbers: dict[str, int] = {}
    for row in _rows(parts):
        if row["image_sha256"] in numbers:
            continue
        if numbers:
            yield ",\n"
        numbers[row["image_sha256"]] = len(numbers) + 1
        image = {"id": len(numbers), "file_name": image_name(row), "height": row["height"], "width": row["width"]}
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
