"""One table of an archive: its shards by name, what is read of them, and the ids of the examples that it holds.

Ids take 16 bytes each, since a run may ask millions of examples.
"""

import hashlib
import re
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rollout.archive.schema import current_schema
from rollout.archive.shards import open_shard, row_group_steps, whole_row_group
from rollout.disk import sync_folder

_SMALLEST_BATCH = 4096


class StoredIds:
    """A set of ids that only grows, kept as 128-bit hashes: two ids are taken for one with a chance below 1e-24."""

    def __init__(self) -> None:
        # Sorted by the first half; the newest are in a set, and join the sorted ones when they are an eighth of them:
        # then the cost of adding one id does not grow with their number.
        self._sorted: NDArray[np.uint64] = np.zeros((2, 0), np.uint64)
        self._newest: set[bytes] = set()

    def add(self, ids: Iterable[str]) -> None:
        """Take in ids."""
        for name in ids:
            self._newest.add(_hash(name))
            if len(self._newest) >= max(_SMALLEST_BATCH, self._sorted.shape[1] // 8):
                self._settle()

    def _settle(self) -> None:
        newest = np.frombuffer(b"".join(self._newest), "<u8").reshape(-1, 2).T
        joined = np.concatenate([self._sorted, newest], axis=1)
        self._sorted = joined[:, np.argsort(joined[0], kind="stable")]
        self._newest.clear()

    def __contains__(self, name: str) -> bool:
        """Whether an id was added."""
        hashed = _hash(name)
        first, second = np.frombuffer(hashed, "<u8")
        begin, end = np.searchsorted(self._sorted[0], first, "left"), np.searchsorted(self._sorted[0], first, "right")
        return hashed in self._newest or bool((self._sorted[1, begin:end] == second).any())


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


TABLES = ("examples", "rollouts")
"""The tables of an archive; examples are written before the answers to them."""

_SHARD = re.compile(r"step-(\d{8,})(?:-(\d{8,}))?\.parquet")


@dataclass(frozen=True, order=True)
class Shard:
    """A shard by its name."""

    first: int
    """First step that it may hold rows of."""
    last: int
    """Last step that it may hold rows of."""
    path: Path


def shard_name(first: int, last: int) -> str:
    """File name of the shard of steps first..last."""
    return f"step-{first:08d}.parquet" if first == last else f"step-{first:08d}-{last:08d}.parquet"


def shard_of(path: Path) -> Shard | None:
    """What the name of a file says; None where it is no shard's."""
    match = _SHARD.fullmatch(path.name)
    return Shard(int(match[1]), int(match[2] or match[1]), path) if match else None


class ShardTable:
    """One table of the archive in a folder."""

    def __init__(self, archive: Path, name: str) -> None:
        self.name = name
        self._own = archive / name
        # Both stand beside the table, hidden, so that whoever opens the table as a folder of Parquet sees neither.
        self._staged = archive / f".{name}.staged"
        self._replaced = archive / f".{name}.replaced"

    @property
    def folder(self) -> Path:
        """Where the shards are: also between the two renames of `replace`, whoever was killed there."""
        cut_short = not self._own.is_dir() and self._replaced.is_dir()
        return self._replaced if cut_short else self._own

    @property
    def leftovers(self) -> list[Path]:
        """What interrupted writes left behind."""
        beside = [path for path in (self._staged, self._replaced) if path.is_dir() and path != self.folder]
        return [*sorted(self.folder.glob(".*.partial")), *beside]

    def shards(self) -> list[Shard]:
        """All shards by step."""
        found = (shard_of(path) for path in self.folder.glob("step-*.parquet"))
        return sorted(shard for shard in found if shard)

    def path(self, step: int) -> Path:
        """Where the shard of one step is, before it is compacted."""
        return self._own / shard_name(step, step)

    def clean(self) -> None:
        """Finish or forget what was interrupted; for the one process that writes."""
        if self.folder == self._replaced:
            self._replaced.rename(self._own)
        for path in self.leftovers:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def stage(self) -> Path:
        """A new empty folder for the shards that `replace` puts in place."""
        self.clean()
        self._staged.mkdir()
        return self._staged

    def replace(self) -> None:
        """Put the staged folder in place of the table.

        Killed at any point, the table is what it was before or what was staged. Only between the two renames is there
        nothing under its name; `folder` knows where it is then.
        """
        sync_folder(self._staged)
        self._own.rename(self._replaced)
        self._staged.rename(self._own)
        sync_folder(self._own.parent)
        shutil.rmtree(self._replaced)

    def batches(
        self, columns: Sequence[str] | None = None, steps: Container[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows by step, those of one step a batch or more; only some columns or steps where these are given."""
        done = -1
        shards = self.shards()
        while shards:
            shard = shards.pop(0)
            if steps is not None and not any(step in steps for step in range(shard.first, shard.last + 1)):
                continue
            try:
                file = open_shard(shard.path)
            except FileNotFoundError:
                if shard.path.parent == self.folder and shard in (shards := self.shards()):
                    raise
                # Compacted since it was listed: go on where this reader is, in the shards of now.
                shards = [shard for shard in self.shards() if shard.last > done]
                continue
            with file:
                held = enumerate(row_group_steps(file, shard.first))
                for k in [k for k, step in held if step > done and (steps is None or step in steps)]:
                    yield from _row_group(file, k, columns, shard.path)
            done = shard.last


def whole_rows(file: pq.ParquetFile, k: int, path: Path) -> pa.Table:
    """Row group k, checked, as rows of today's schema. Raises ValueError where it is altered."""
    table = whole_row_group(file, k)
    if table is None:
        raise ValueError(f"{path} is altered; `polytrace archive verify RUN` says what can be saved.")
    schema = current_schema(table.column_names)
    arrays = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _row_group(file: pq.ParquetFile, k: int, columns: Sequence[str] | None, path: Path) -> Iterator[pa.RecordBatch]:
    """Rows of row group k as rows of today's schema."""
    stored = file.schema_arrow.names
    schema = current_schema(stored)
    wanted = schema.names if columns is None else list(columns)
    if unknown := [name for name in wanted if name not in schema.names]:
        raise ValueError(f"{path} has no column {unknown[0]}; it has {', '.join(schema.names)}.")
    present = [name for name in wanted if name in stored]
    # A batch needs a column to have a length.
    read = present or stored[:1]
    try:
        for batch in file.iter_batches(row_groups=[k], columns=read):
            arrays = [
                batch.column(name) if name in present else pa.nulls(len(batch), schema.field(name).type)
                for name in wanted
            ]
            yield pa.record_batch(arrays, schema=pa.schema([schema.field(name) for name in wanted]))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is altered: {error}; `polytrace archive verify RUN` says what can be saved."
        ) from error
