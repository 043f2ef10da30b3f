"""The archive of a run: every answer, beside the truth, in Parquet shards that any reader opens (docs/archive.md).

Two tables: `rollouts/`, a shard a step, and `examples/`, each example once, in the shard of its first step.
A shard is absent or whole: it is written under a temporary name, synced, then renamed. One process writes, many read.
"""

import hashlib
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.raster import RASTER_VERSION
from rollout.records import Group, example_table, reward_names, rollout_table

SCHEMA_VERSION = 1
"""Raised whenever a column or its meaning changes."""

_VERSION_KEY, _HASH_KEY = b"polytrace.schema_version", b"polytrace.row_group_sha256"
_SEAL_KEY, _UNSEALED = b"polytrace.file_sha256", b"not sealed".ljust(64, b"-")
_SHARD = re.compile(r"step-(\d{8,})\.parquet")


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
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = f"{error.strerror}: this shard was not written, those before it are whole; free the disk, then resume"
        raise OSError(error.errno, reason, str(path)) from error


def _seal(encoded: bytes) -> bytes:
    """The bytes of a shard, its place for the file's hash filled with the SHA-256 of the file before that."""
    # The last occurrence is the one in the footer; row group hashes and page checksums do not cover footers.
    head, _, tail = encoded.rpartition(_UNSEALED)
    return head + hashlib.sha256(encoded).hexdigest().encode() + tail


def _seal_holds(data: bytes, seal: bytes) -> bool:
    """True where no byte of a shard has changed since it was sealed."""
    head, _, tail = data.rpartition(seal)
    return _seal(head + _UNSEALED + tail) == data


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open(path: Path) -> pq.ParquetFile:
    """A shard of this schema version; raises ValueError with the reason for anything else."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is torn: {error}; see what verify() can save.") from error
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


def _check(path: Path) -> tuple[list[Finding], set[str], set[int]]:
    """What is wrong with one shard, and the example ids and steps of its whole row groups (a step 0 for examples)."""
    ids: set[str] = set()
    steps: set[int] = set()
    try:
        with _open(path) as file:
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


def _strangers(folder: Path) -> list[Finding]:
    """Files in the tables that are not shards."""
    findings = []
    for path in sorted([*folder.glob("rollouts/*"), *folder.glob("examples/*")]):
        if path.name.endswith(".partial"):
            problem = "left from a write that was interrupted"
            findings.append(Finding(path, problem, "nothing is lost; a resumed run deletes it, or do so by hand"))
        elif not _SHARD.fullmatch(path.name):
            findings.append(
                Finding(path, "not a shard of this archive", "move it elsewhere; readers would stumble on it")
            )
    return findings


class RolloutArchive:
    """Append, read and check the archive in one folder."""

    def __init__(self, folder: Path) -> None:
        """Open the archive in `folder`; nothing is created before the first `append`."""
        self.folder = folder
        self._stored_ids: set[str] | None = None  # examples in the archive; read at the first append
        self._last_step: int | None = None
        self._reward_names: tuple[str, ...] | None = None

    @property
    def last_step(self) -> int | None:
        """The last step in the archive; None where there is none."""
        return max(self._shards("rollouts"), default=None)

    def append(self, step: int, groups: Sequence[Group]) -> None:
        """Store the answers of a step, and its examples that were not stored yet.

        Raises ValueError where step, groups or rewards do not fit what is stored, OSError where the disk refuses.
        """
        stored = self._open_for_append()
        groups = sorted(groups, key=lambda group: group.position)
        self._refuse_unfit(step, groups)
        new = {group.example.id: group.example for group in groups if group.example.id not in stored}
        examples_path = self._path("examples", step)
        if new and examples_path.exists():
            raise ValueError(
                f"{examples_path} is left from a write of step {step} that was interrupted; "
                f"call set_aside_after({step - 1}) before the step is appended again."
            )
        if new:  # before the answers: an answer is never stored without its example
            write_shard(examples_path, example_table(list(new.values())))
            stored.update(new)
        write_shard(self._path("rollouts", step), rollout_table(groups))
        self._last_step, self._reward_names = step, reward_names(groups)

    def rollouts(
        self, columns: Sequence[str] | None = None, steps: Container[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Answers by step, position and index, in bounded memory; only some columns or steps where these are given."""
        return self._batches("rollouts", columns, steps)

    def examples(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Examples in the order in which they were first asked."""
        return self._batches("examples", columns, None)

    def verify(self) -> list[Finding]:
        """Everything wrong with the archive, by reading all of it once, a shard at a time; empty where it is whole."""
        self._refuse_absent()
        findings = _strangers(self.folder)
        example_ids: set[str] = set()
        for path in self._shards("examples").values():
            problems, ids, _ = _check(path)
            findings += problems
            example_ids |= ids
        shards = self._shards("rollouts")
        for step, path in shards.items():
            problems, ids, steps = _check(path)
            findings += problems
            if not problems and steps != {step}:
                problem = f"holds answers of steps {sorted(steps)}, not of step {step}"
                findings.append(Finding(path, problem, "all of it; give the file back its name"))
            if missing := sorted(ids - example_ids):
                problem = f"{len(missing)} of its examples are not in the examples table, {missing[0]} first"
                findings.append(
                    Finding(path, problem, "answers and scores; the truth from the data set, by example_id")
                )
        for step in sorted(set(range(min(shards, default=0), max(shards, default=-1))) - set(shards)):
            lost = "the other steps; to fill it, resume from a checkpoint before it"
            findings.append(Finding(self._path("rollouts", step), f"step {step} is missing", lost))
        return findings

    def set_aside_after(self, step: int) -> list[Path]:
        """Move shards of later steps to a new folder in `set_aside/`, delete leftovers of writes; the new paths."""
        for table in ("rollouts", "examples"):
            for leftover in (self.folder / table).glob(".*.partial"):
                leftover.unlink()
        used = [int(path.name) for path in self.folder.glob("set_aside/*") if path.name.isdigit()]
        target = self.folder / "set_aside" / f"{max(used, default=0) + 1:04d}"
        moved = []
        for table in ("rollouts", "examples"):
            # Last first, so that an interrupted move leaves no gap.
            later = [path for number, path in reversed(self._shards(table).items()) if number > step]
            for path in later:
                (target / table).mkdir(parents=True, exist_ok=True)
                moved.append(path.rename(target / table / path.name))
            if later:
                _sync(target / table)
                _sync(self.folder / table)
        self._stored_ids = self._last_step = self._reward_names = None
        return moved

    def _path(self, table: str, step: int) -> Path:
        return self.folder / table / f"step-{step:08d}.parquet"

    def _shards(self, table: str) -> dict[int, Path]:
        """Shards of a table by step, in order."""
        matches = [(_SHARD.fullmatch(path.name), path) for path in (self.folder / table).glob("step-*.parquet")]
        return dict(sorted((int(match[1]), path) for match, path in matches if match))

    def _refuse_absent(self) -> None:
        if not any((self.folder / table).is_dir() for table in ("rollouts", "examples")):
            raise FileNotFoundError(f"No archive in {self.folder}; give the `archive` folder of a run.")

    def _open_for_append(self) -> set[str]:
        """Ids of the stored examples; what is kept for `append` is read once, so that its cost does not grow."""
        if self._stored_ids is None:
            self._last_step = self.last_step
            if self._last_step is not None:
                with _open(self._path("rollouts", self._last_step)) as file:
                    names = file.schema_arrow.names
                self._reward_names = tuple(name.removeprefix("reward_") for name in names if name.startswith("reward_"))
            batches = self.examples(["example_id"]) if self._shards("examples") else ()
            self._stored_ids = {name for batch in batches for name in batch["example_id"].to_pylist()}
        return self._stored_ids

    def _refuse_unfit(self, step: int, groups: Sequence[Group]) -> None:
        last, names = self._last_step, reward_names(groups)
        if last is not None and step <= last:
            raise ValueError(
                f"Step {step} cannot be appended to {self.folder}, which reaches step {last}; to run it again, "
                f"resume with set_aside_after({step - 1}), or use another run folder."
            )
        if not any(group.rollouts for group in groups):
            raise ValueError(f"Step {step} has no answer to archive; ask at least one example a step.")
        if names != (self._reward_names or names):
            raise ValueError(
                f"Step {step} has the rewards {names}, the archive in {self.folder} has {self._reward_names}; "
                "use another run folder where the rewards change."
            )
        for group in groups:
            if group.step != step or len(group.totals) != len(group.rollouts):
                raise ValueError(
                    f"The group at position {group.position} is of step {group.step}, with {len(group.totals)} totals "
                    f"for {len(group.rollouts)} answers; append groups of step {step}, with a total an answer."
                )

    def _batches(
        self, table: str, columns: Sequence[str] | None, steps: Container[int] | None
    ) -> Iterator[pa.RecordBatch]:
        self._refuse_absent()
        for step, path in self._shards(table).items():
            if steps is not None and step not in steps:
                continue
            with _open(path) as file:
                if unknown := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                    raise ValueError(f"{path} has no column {unknown[0]}; it has {', '.join(file.schema_arrow.names)}.")
                try:
                    yield from file.iter_batches(columns=None if columns is None else list(columns))
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(f"{path} is altered: {error}; see what verify() can save.") from error
