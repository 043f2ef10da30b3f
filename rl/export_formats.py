"""The four formats of an export, each a writer of one shard: pairs are added, then the shard is whole, or is not there.

docs/pairs.md has a loader for each. Equal pairs give equal bytes: nothing here knows a clock or a user.
"""

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rl.export_files import RLE_COLUMNS, PairFiles
from rl.pair_index import PAIR_SCHEMA
from rollout.disk import publish

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

FORMATS: dict[str, type[ParquetShard | TarShard | CocoShard | PngShard]] = {
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
