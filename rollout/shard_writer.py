"""Example shards as files: rows gathered into Parquet, each file there whole or not at all, a card at the end.

A split that was stopped goes on after the last shard that is whole; without its card, which is written last, nothing
opens it (envs/shards/files.py).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs.shards.files import ABOUT, CARD, IMAGES, ORDER, Card, ShardFile, key_hashes
from envs.shards.rows import SCHEMA, SCHEMA_VERSION, Scene
from rollout.disk import replace_text, whole_file, writing

_BEGUN = "begun.json"
_GROUP_ROWS, _GROUP_BYTES = 64, 4 << 20
"""Most rows of a row group, and bytes of images after which it ends: what one example costs to read."""
SHARD_ROWS, SHARD_BYTES = 4096, 64 << 20
"""Rows, or bytes of images, after which a shard ends."""
_TAKEN = ("asked", "example_id", "image_key", "scene_row", "scene_size", "image_file")
_ONE_ROW = pa.schema([pa.field("row", pa.int64(), nullable=False)])


@dataclass(frozen=True)
class About:
    """What a split tells beside its rows."""

    fingerprint: str
    """SHA-256, 64 hex digits, of what is asked and what is true."""
    notes: Mapping[str, Sequence[str]]
    """What was left out or decided, and of each which entries."""
    phrase_words: Iterable[str]
    """Words of all phrases."""
    num_lost: int = 0
    """Questions that could not be asked."""


class ShardWriter:
    """The files of one split, written in the order of the rows."""

    def __init__(self, folder: Path, provenance: Mapping[str, Any], fingerprint: str | None) -> None:
        """Begin in `folder`, that of the split, or go on there.

        provenance: where the examples come from, in terms of JSON. fingerprint: that of the data where it is known
        before it is read. A preparation that goes on must agree in both. Raises ValueError where the folder holds
        something else.
        """
        self.folder, self._provenance = folder, dict(provenance)
        self._shards: list[ShardFile] = []
        self.order: list[int] = []
        """Row of each example so far, in the order of the data set."""
        self._num_ordered = 0  # of these, how many stand beside the shards that are written
        self._rows: list[dict[str, Any]] = []
        self._image_bytes = 0
        self.num_rows = 0
        """Rows so far."""
        self.row_of: dict[str, int] = {}
        """By id of an example, its row."""
        self.scenes: dict[str, Scene] = {}
        """By key of an image, the rows about it."""
        self._image_folders: set[str] = set()
        self._asked: set[str] = set()
        self._refuse_other(fingerprint)
        if not self.is_whole:
            self._go_on()

    @property
    def is_whole(self) -> bool:
        """Whether the split is prepared already."""
        return (self.folder / CARD).is_file()

    @property
    def num_shards(self) -> int:
        """Shards that are written."""
        return len(self._shards)

    @property
    def has_gathered(self) -> bool:
        """Whether rows are gathered that are not written yet."""
        return bool(self._rows)

    @property
    def is_full(self) -> bool:
        """Whether the rows that are gathered make a shard."""
        return len(self._rows) >= SHARD_ROWS or self._image_bytes >= SHARD_BYTES

    def _refuse_other(self, fingerprint: str | None) -> None:
        known = {} if fingerprint is None else {"fingerprint": fingerprint}
        now = json.loads(json.dumps({**self._provenance, **known}))
        for name in (CARD, _BEGUN):
            if (path := self.folder / name).is_file():
                held = json.loads(path.read_text(encoding="utf-8"))
                told = held["provenance"]
                before = {**told, "fingerprint": held["fingerprint"]}
                for key in (key for key in {**now, **told} if before.get(key) != now.get(key)):
                    raise ValueError(
                        f"{self.folder} holds examples of other data or settings: {key} there is {before.get(key)}, "
                        f"here {now.get(key)}; give another folder by --out, or delete this one."
                    )
                return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds files that are no example shards; give a new folder by --out.")
        begun = {"provenance": self._provenance, "fingerprint": fingerprint}
        replace_text(self.folder / _BEGUN, json.dumps(begun, indent=1) + "\n")

    def _go_on(self) -> None:
        """Take up what the shards that are whole hold; a shard counts where the part of the order beside it is there.

        What lies after the first that does not is written again.
        """
        while self._shard_path().is_file() and self._part_path().is_file():
            path = self._shard_path()
            table = pq.read_table(path, columns=list(_TAKEN))
            for row in table.to_pylist():
                self._take(row)
            self.order += pq.read_table(self._part_path()).column("row").to_pylist()
            self._num_ordered = len(self.order)
            self._shards.append(ShardFile(path.name, table.num_rows, path.stat().st_size))

    def _take(self, row: Mapping[str, Any]) -> None:
        self.row_of[row["example_id"]] = self.num_rows
        self.scenes.setdefault(row["image_key"], Scene(row["scene_row"], row["scene_size"]))
        self._asked.add(row["asked"])
        if row["image_file"] is not None:
            self._image_folders.add(os.path.dirname(row["image_file"]))
        self.num_rows += 1

    def add_row(self, row: dict[str, Any]) -> None:
        """Gather a row; `write_shard` writes what is gathered."""
        self._rows.append(row)
        self._take(row)
        self._image_bytes += len(row["image_png"] or b"")

    def _shard_path(self) -> Path:
        return self.folder / f"examples-{len(self._shards):05d}.parquet"

    def _part_path(self) -> Path:
        return self.folder / f"order-{len(self._shards):05d}.parquet"

    def write_shard(self) -> None:
        """Write the gathered rows, and which examples they are."""
        _write(self._part_path(), [pa.table({"row": self.order[self._num_ordered :]}, _ONE_ROW)], _ONE_ROW)
        notes = {"polytrace.schema_version": f"{SCHEMA_VERSION}", "polytrace.provenance": json.dumps(self._provenance)}
        tables = (pa.Table.from_pylist(rows, SCHEMA) for rows in _groups(self._rows))
        path = self._shard_path()
        _write(path, tables, SCHEMA.with_metadata(notes))
        self._shards.append(ShardFile(path.name, len(self._rows), path.stat().st_size))
        self._rows, self._image_bytes, self._num_ordered = [], 0, len(self.order)

    def finish(self, about: About) -> Card:
        """Write what is left and, last, the card; every example must have been added."""
        if self._rows or not self._shards:
            self.write_shard()
        order, images, beside = self.folder / ORDER, self.folder / IMAGES, self.folder / ABOUT
        _write(order, [pa.table({"row": self.order}, _ONE_ROW)], _ONE_ROW)
        hashes, rows = key_hashes(list(self.scenes)), [scene.row for scene in self.scenes.values()]
        found = pa.table({"key_hash": hashes, "row": pa.array(rows, pa.int64())}).sort_by("key_hash")
        _write(images, [found], found.schema)
        notes = {what: list(which) for what, which in about.notes.items()}
        replace_text(beside, json.dumps({"notes": notes, "phrase_words": sorted(about.phrase_words)}))
        sizes = {order: len(self.order), images: len(rows), beside: 0}
        card = Card(
            schema_version=SCHEMA_VERSION,
            num_examples=len(self.order),
            shards=tuple(self._shards),
            others=tuple(ShardFile(path.name, rows, path.stat().st_size) for path, rows in sizes.items()),
            fingerprint=about.fingerprint,
            image_folder=os.path.commonpath(self._image_folders) if self._image_folders else None,
            provenance=self._provenance,
            asked=tuple(sorted(self._asked)) or ("mask",),
            num_lost=about.num_lost,
            candidates=self._pool_sizes(),
        )
        replace_text(self.folder / CARD, card.text())
        for path in (*self.folder.glob("order-*.parquet"), self.folder / _BEGUN):
            path.unlink()
        return card

    def _pool_sizes(self) -> tuple[int, int]:
        """Fewest and most candidates of a row, read from the shards that are written."""
        sizes = [0] if not self.num_rows else []
        for shard in self._shards:
            column = pq.read_table(self.folder / shard.name, columns=["candidates"]).column("candidates")
            counts = pc.fill_null(pc.list_value_length(column), 0)
            sizes += pc.unique(counts).to_pylist()
        return min(sizes), max(sizes)


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in row groups."""
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += len(row["image_png"] or b"")
        if len(group) >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _write(path: Path, tables: Iterator[pa.Table] | list[pa.Table], schema: pa.Schema) -> None:
    """Write tables as the row groups of a Parquet file, whole or not at all; OSError with `path` on a full disk."""
    with (
        writing(path.name, path),
        whole_file(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
