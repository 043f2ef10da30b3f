"""Shards of an archive: one Parquet file each, written whole or not at all, and checked to the last byte.

A shard has a row group a step; its footer holds the versions that wrote it, the step and the SHA-256 of each row group,
and the SHA-256 of the whole file.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.geometry.raster import RASTER_VERSION
from rollout import disk

SCHEMA_VERSION = 4
"""Raised whenever a column or its meaning changes."""

READABLE_VERSIONS = (1, 2, 3, 4)
"""Schema versions that are read; docs/archive.md says how they differ."""

_SCHEMA_KEY, _RASTER_KEY, _WRITER_KEY = b"polytrace.schema_version", b"polytrace.raster_version", b"polytrace.version"
_HASH_KEY, _STEP_KEY = b"polytrace.row_group_sha256", b"polytrace.row_group_steps"
_SEAL_KEY, _UNSEALED = b"polytrace.file_sha256", b"not sealed".ljust(64, b"-")
_CHUNK = 1 << 20


@cache
def polytrace_version() -> str:
    """The version of this package."""
    return metadata.version("polytrace")


def content_sha256(table: pa.Table) -> str:
    """SHA-256 over names, types and values of a table (1 row or more), the same however they are encoded or chunked."""
    digest = hashlib.sha256(f"{table.num_rows}".encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"|{name}|".encode())
        _add_values(digest, pa.concat_arrays(column.chunks))
    return digest.hexdigest()


def _add_values(digest: "hashlib._Hash", values: pa.Array) -> None:
    """Nulls, then lengths where values have them, then the values themselves, as little-endian bytes."""
    digest.update(np.asarray(values.is_valid()).tobytes())
    if pa.types.is_list(values.type):
        digest.update(b"list" + np.asarray(values.value_lengths().fill_null(0), "<i8").tobytes())
        _add_values(digest, values.flatten())
    elif pa.types.is_string(values.type):
        texts = [text.encode() for text in values.fill_null("").to_pylist()]
        digest.update(b"string" + np.array([len(text) for text in texts], "<i8").tobytes() + b"".join(texts))
    else:
        numbers = np.asarray(values.fill_null(False if pa.types.is_boolean(values.type) else 0))
        digest.update(str(values.type).encode() + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())


class ShardWriter:
    """The row groups of a shard, one after another; made by `new_shard`."""

    def __init__(self, file: BinaryIO, raster_version: str) -> None:
        self._file, self._raster_version = file, raster_version
        self._parquet: pq.ParquetWriter | None = None
        self._hashes: list[str] = []
        self._steps: list[int] = []

    def add(self, table: pa.Table, step: int | None = None) -> None:
        """Write `table` (1 row or more) as one row group, the rows of `step` where these are rows of an archive."""
        table = table.replace_schema_metadata(None)
        if self._parquet is None:
            # No statistics: nothing checks them, and an altered one would hide rows from a filtering reader.
            self._parquet = pq.ParquetWriter(
                self._file, table.schema, compression="zstd", write_page_checksum=True, write_statistics=False
            )
        self._parquet.write_table(table, row_group_size=table.num_rows)
        self._hashes.append(content_sha256(table))
        if step is not None:
            self._steps.append(step)

    def close(self) -> None:
        """Write the footer, its seal still open. Raises ValueError where there is no row group."""
        if self._parquet is None:
            raise ValueError("A shard needs a row group; add one before it is closed.")
        notes = {_SCHEMA_KEY: f"{SCHEMA_VERSION}", _RASTER_KEY: self._raster_version, _WRITER_KEY: polytrace_version()}
        if self._steps:
            notes[_STEP_KEY] = " ".join(map(str, self._steps))
        self._parquet.add_key_value_metadata({**notes, _HASH_KEY: " ".join(self._hashes), _SEAL_KEY: _UNSEALED})
        self._parquet.close()

    def abandon(self) -> None:
        """End what an error left open, while its file still is; nothing to do after `close`."""
        if self._parquet is not None and self._parquet.is_open:
            with suppress(OSError, pa.ArrowException):  # the disk that refused before
                self._parquet.close()


@contextmanager
def new_shard(path: Path, raster_version: str = f"{RASTER_VERSION}") -> Iterator[ShardWriter]:
    """A shard to add row groups to: whole under `path` when the block ends well, nothing there otherwise.

    raster_version: of the rule by which the rows were scored, where they are copied.
    Raises OSError with `path` where the disk refuses (full, read-only).
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            shard = ShardWriter(file, raster_version)
            try:
                yield shard
                shard.close()
            finally:
                shard.abandon()
        _seal(partial)
        partial.replace(path)
        disk.sync_folder(path.parent)
    except OSError as error:
        raise disk.refused("this shard", path, error.strerror, error.errno) from error
    finally:
        with suppress(OSError):  # gone, or where there is no folder: the error above says more
            partial.unlink()


def write_shard(path: Path, table: pa.Table, step: int | None = None) -> None:
    """Write `table` (1 row or more) as the one row group of a new shard; raises as `new_shard` does."""
    with new_shard(path) as shard:
        shard.add(table, step)


def _seal(path: Path) -> None:
    """Fill the place of the file's hash with the SHA-256 of the file before that, and bring the file to the disk."""
    with path.open("r+b") as file:
        place = _seal_place(file, _UNSEALED)
        sha256 = _sha256_with(file, place, _UNSEALED)
        file.seek(place)
        file.write(sha256)
        file.flush()
        os.fsync(file.fileno())


def seal_holds(path: Path) -> bool:
    """True where no byte of a shard has changed since it was sealed; the shard has a footer that reads."""
    seal = (pq.read_metadata(path).metadata or {}).get(_SEAL_KEY, b"")
    with path.open("rb") as file:
        place = _seal_place(file, seal)
        return len(seal) == len(_UNSEALED) and place >= 0 and _sha256_with(file, place, _UNSEALED) == seal


def _seal_place(file: BinaryIO, seal: bytes) -> int:
    """Where the last `seal` in the footer begins; -1 where there is none."""
    size = file.seek(-8, os.SEEK_END) + 8
    footer_size = min(int.from_bytes(file.read(4), "little") + 8, size)
    file.seek(size - footer_size)
    # The last occurrence is the file's: row group hashes stand before it.
    within = file.read(footer_size).rfind(seal)
    return -1 if within < 0 else size - footer_size + within


def _sha256_with(file: BinaryIO, place: int, text: bytes) -> bytes:
    """SHA-256, hex digits, of the file with `text` at `place`."""
    digest = hashlib.sha256()
    file.seek(0)
    while file.tell() < place:
        digest.update(file.read(min(_CHUNK, place - file.tell())))
    digest.update(text)
    file.seek(place + len(text))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest().encode()


def open_shard(path: Path) -> pq.ParquetFile:
    """A shard of a schema version that is read.

    Raises FileNotFoundError where there is no file, ValueError with the reason for anything else.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is torn: {error}; `polytrace archive verify RUN` says what can be saved.") from error
    if schema_version(file) not in map(str, READABLE_VERSIONS):
        version, writer = schema_version(file), _note(file, _WRITER_KEY)
        file.close()
        written = f"Polytrace {writer}" if writer else "the Polytrace that wrote it"
        raise ValueError(
            f"{path} has archive schema version {version or 'none'}, this Polytrace {polytrace_version()} reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; read it with {written}."
        )
    steps = _note(file, _STEP_KEY).split()
    if steps and (len(steps) != file.num_row_groups or not all(step.isdecimal() for step in steps)):
        file.close()
        raise ValueError(f"{path} is altered: its footer does not name a step for each row group.")
    return file


def _note(file: pq.ParquetFile, key: bytes) -> str:
    return (file.metadata.metadata or {}).get(key, b"").decode("utf-8", "replace")


def schema_version(file: pq.ParquetFile) -> str:
    """The schema version that a shard was written with; "" where it names none."""
    return _note(file, _SCHEMA_KEY)


def raster_version(file: pq.ParquetFile) -> str:
    """The version of the raster rule by which the rows of a shard were scored."""
    return _note(file, _RASTER_KEY)


def row_group_hashes(file: pq.ParquetFile) -> list[str]:
    """SHA-256 of the content of each row group (see `content_sha256`), as the shard has it."""
    return _note(file, _HASH_KEY).split()


def row_group_steps(file: pq.ParquetFile, first: int) -> list[int]:
    """The step of each row group; shards of schema 1 hold only the step `first` that their name says."""
    return [int(step) for step in _note(file, _STEP_KEY).split()] or [first]


def whole_row_group(file: pq.ParquetFile, number: int) -> pa.Table | None:
    """A row group as it was written; None where it cannot be read or its content is another."""
    try:
        table = file.read_row_group(number)
        return table if content_sha256(table) == row_group_hashes(file)[number] else None
    except (pa.ArrowException, OSError, UnicodeDecodeError, IndexError):
        return None
