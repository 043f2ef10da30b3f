"""Shards of an archive: one Parquet file each, written whole or not at all, and checked to the last byte.

A shard is one row group; its footer holds the schema version and the SHA-256 of the row group and of the whole file.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.raster import RASTER_VERSION
from rollout import disk

SCHEMA_VERSION = 1
"""Raised whenever a column or its meaning changes."""

_VERSION_KEY, _HASH_KEY = b"polytrace.schema_version", b"polytrace.row_group_sha256"
_SEAL_KEY, _UNSEALED = b"polytrace.file_sha256", b"not sealed".ljust(64, b"-")


@dataclass(frozen=True)
class Finding:
    """Something wrong with an archive."""

    path: Path
    """The file, or the place where one is missing."""
    problem: str
    """What is wrong."""
    savable: str
    """What can be saved, and how to go on."""


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
        numbers = np.asarray(values.fill_null(0))
        digest.update(str(values.type).encode() + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())


def write_shard(path: Path, table: pa.Table) -> None:
    """Write `table` (1 row or more) as one row group of a new file.

    Raises OSError with `path` where the disk refuses (full, read-only); then nothing is left there.
    """
    versions = {_VERSION_KEY: f"{SCHEMA_VERSION}", b"polytrace.raster_version": f"{RASTER_VERSION}"}
    table = table.replace_schema_metadata({**versions, _HASH_KEY: content_sha256(table), _SEAL_KEY: _UNSEALED})
    encoded = pa.BufferOutputStream()
    # No statistics: nothing checks them, and an altered one would hide rows from a filtering reader.
    settings = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
    pq.write_table(table, encoded, row_group_size=table.num_rows, **settings)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(_seal(encoded.getvalue().to_pybytes()))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk.refused("this shard", path, error.strerror, error.errno) from error


def _seal(encoded: bytes) -> bytes:
    """The bytes of a shard, its place for the file's hash filled with the SHA-256 of the file before that."""
    # The last occurrence is the one in the footer; row group hashes and page checksums do not cover footers.
    head, _, tail = encoded.rpartition(_UNSEALED)
    return head + hashlib.sha256(encoded).hexdigest().encode() + tail


def _seal_holds(data: bytes, seal: bytes) -> bool:
    """True where no byte of a shard has changed since it was sealed."""
    head, _, tail = data.rpartition(seal)
    return _seal(head + _UNSEALED + tail) == data


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_shard(path: Path) -> pq.ParquetFile:
    """A shard of this schema version; raises ValueError with the reason for anything else."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is torn: {error}; `polytrace archive verify RUN` says what can be saved.") from error
    version = (file.metadata.metadata or {}).get(_VERSION_KEY, b"none").decode("utf-8", "replace")
    if version != f"{SCHEMA_VERSION}":
        file.close()
        raise ValueError(
            f"{path} has archive schema version {version}, this Polytrace reads {SCHEMA_VERSION}; "
            "read it with the Polytrace that wrote it."
        )
    return file


def _row_group(file: pq.ParquetFile, number: int, sha256: str) -> pa.Table | None:
    """A row group as it was written; None where it cannot be read or its content is another."""
    try:
        table = file.read_row_group(number)
        return table if content_sha256(table) == sha256 else None
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None


def check_shard(path: Path) -> tuple[list[Finding], set[str], set[int]]:
    """What is wrong with one shard, and the example ids and steps of its whole row groups (a step 0 for examples)."""
    ids: set[str] = set()
    steps: set[int] = set()
    try:
        with open_shard(path) as file:
            notes = file.metadata.metadata
            hashes = notes.get(_HASH_KEY, b"").decode("utf-8", "replace").split()
            tables = [_row_group(file, k, sha) for k, sha in enumerate(hashes[: file.num_row_groups])]
            num_groups = max(file.num_row_groups, len(hashes), 1)
    except ValueError as error:
        return [Finding(path, str(error), "the other shards")], ids, steps
    whole = [table for table in tables if table is not None]
    for table in whole:
        ids |= set(table["example_id"].to_pylist())
        steps |= set(table["step"].to_pylist()) if "step" in table.column_names else set()
    if len(whole) == num_groups and _seal_holds(path.read_bytes(), notes.get(_SEAL_KEY) or _UNSEALED):
        return [], ids, steps
    problem = f"altered: {num_groups - len(whole)} of {num_groups} row groups differ from their checksum"
    if len(whole) == num_groups:
        problem = "altered: its footer differs from the file's checksum"
    rows = sum(len(table) for table in whole)
    return [Finding(path, problem, f"{rows} rows in whole row groups; or resume from before this step")], ids, steps
