"""Rows of Parquet files, by split, and the photos that lie inside of them."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.readers._image_files import ImageFiles
from envs.readers.base import Findings

UNREADABLE = "files that cannot be read"
PACKED = "questions about a photo that lies in the Parquet file alone; set `unpack` to a folder for them"
_PART = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_COCO_OF_OBJECT = re.compile(r"(COCO_(?:train|val|test)20\d\d_\d{12})_\d+(\.jpg)")


def split_files(path: Path) -> dict[str, list[Path]]:
    """Parquet files by split, as their names tell it: those of a folder, of its `data` folder or of folders in it."""
    if path.is_file():
        found = [path] if path.suffix == ".parquet" else []
    else:
        found = next(filter(None, (sorted(path.glob(f"{under}*.parquet")) for under in ("", "data/", "*/"))), [])
    splits: dict[str, list[Path]] = {}
    for file in found:
        splits.setdefault(_split(file), []).append(file)
    return splits


def columns_of(splits: dict[str, list[Path]]) -> frozenset[str]:
    """Names of the columns of the first file that can be read."""
    for file in (file for files in splits.values() for file in files):
        try:
            return frozenset(pq.read_schema(file).names)
        except (OSError, pa.ArrowException):
            continue
    return frozenset()


def photo_name(file_name: str) -> str:
    """The name of a photo's file: COCO's, without the object that RefCOCO's names carry before their end."""
    return _COCO_OF_OBJECT.sub(r"\1\2", file_name)


@dataclass(frozen=True)
class Row:
    """Where a row lies."""

    file: Path
    group: int
    """Row group of the file."""
    place: int
    """Row of the row group."""


class Rows:
    """Rows of some files, read a row group at a time; the last few groups are kept."""

    def __init__(self, files: Sequence[Path], findings: Findings, groups_kept: int = 4) -> None:
        self._kept: dict[tuple[Path, int, tuple[str, ...]], Any] = {}
        self._most = groups_kept
        self.files: list[Path] = []
        """Rows that can be read."""
        for file in files:
            try:
                pq.read_schema(file)
                self.files.append(file)
            except (OSError, pa.ArrowException) as error:
                findings.leave_out(UNREADABLE, f"{file} ({error})")

    def columns(self, *names: str) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Each row, with what it has in these columns; a column that is not there is left out."""
        for file in self.files:
            for group in range(pq.ParquetFile(file).num_row_groups):
                table = self._group(file, group, names)
                for place in range(table.num_rows):
                    yield Row(file, group, place), table.slice(place, 1).to_pylist()[0]

    def values(self, row: Row, *names: str) -> dict[str, Any]:
        """What one row has in these columns; a column that is not there is left out."""
        found: dict[str, Any] = self._group(row.file, row.group, names).slice(row.place, 1).to_pylist()[0]
        return found

    def _group(self, file: Path, group: int, names: tuple[str, ...]) -> Any:
        key = (file, group, names)
        if key not in self._kept:
            opened = pq.ParquetFile(file)
            there = [name for name in names if name in opened.schema_arrow.names]
            while len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = opened.read_row_group(group, columns=there)
        return self._kept[key]


class PhotosOfRows:
    """Photos of rows: files where there are some, else what the column `image` holds."""

    def __init__(self, rows: Rows, files: ImageFiles, unpack: str | None) -> None:
        """unpack: folder that photos are written to that lie in a row alone; None to do without those."""
        self._rows, self._files = rows, files
        self._unpack = Path(unpack) if unpack is not None else None

    def found(self, name: str, row: Row, questions: Sequence[str], findings: Findings) -> Path | None:
        """The file of a row's photo; None where there is none, which is told with the questions that are lost by it."""
        path = self._files.find(name)
        if path is not None:
            return path
        if "image" not in pq.read_schema(row.file).names:
            return self._files.found(name, questions, findings)
        if self._unpack is None:
            for question in questions:
                findings.lose(PACKED, question)
            return None
        path = self._unpack / Path(name).name
        pixels = None if path.is_file() else _bytes(self._rows.values(row, "image").get("image"))
        if pixels is not None:
            _write(path, pixels)
        return path if path.is_file() else self._files.found(name, questions, findings)


def _split(file: Path) -> str:
    match = _PART.fullmatch(file.stem)
    return match["split"] if match else file.parent.name if file.stem.isdigit() else file.stem


def _bytes(value: Any) -> bytes | None:
    """The bytes of an image's file, as the hub has them: alone, or beside its path."""
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) and found else None


def _write(path: Path, content: bytes) -> None:
    """A file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
