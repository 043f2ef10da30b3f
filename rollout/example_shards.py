"""Example shards written: what envs/datasets/shards.py opens.

A split is a folder of Parquet files, each there whole or not at all. A preparation that was stopped goes on after the
last of them, and its card, without which nothing opens, is written at the end.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.datasets.base import Env, FromFiles
from envs.example import Example, ImageRef
from envs.images import ShownFile
from envs.shards.files import ABOUT, CARD, IMAGES, ORDER, Card, ShardFile, key_hashes
from envs.shards.rows import SCHEMA, SCHEMA_VERSION, Scene, example_row, png_of
from rollout.disk import replace_text, whole_file, writing

_BEGUN = "begun.json"
_GROUP_ROWS, _GROUP_BYTES = 64, 4 << 20
"""Most rows of a row group, and bytes of images after which it ends: what one example costs to read."""
_SHARD_ROWS, _SHARD_BYTES = 4096, 64 << 20
"""Rows, or bytes of images, after which a shard ends."""
_ONE_ROW = pa.schema([pa.field("row", pa.int64(), nullable=False)])


class SplitWriter:
    """One split of an Env, written scene by scene."""

    def __init__(self, folder: Path, env: Env, provenance: Mapping[str, Any], embed: bool) -> None:
        """Begin in `folder`, that of the split, or go on there.

        provenance: where the examples come from, in terms of JSON. embed: write pixels into the shards, also of an Env
        that has files. Raises ValueError where the folder holds something else.
        """
        self._folder, self._env = folder, env
        self._provenance = {**provenance, "embedded": embed or not isinstance(env, FromFiles)}
        self._files = env if isinstance(env, FromFiles) and not embed else None
        self._shards: list[ShardFile] = []
        self._num_rows = 0
        self._order: list[int] = []
        self._num_ordered = 0  # of these, how many stand beside the shards that are written
        self._rows: list[dict[str, Any]] = []
        self._image_bytes = 0
        self._row_of: dict[str, int] = {}
        self._scenes: dict[str, Scene] = {}
        self._image_folders: set[str] = set()
        self._refuse_other()
        if not self.is_whole:
            self._go_on()

    @property
    def is_whole(self) -> bool:
        """Whether the split is prepared already."""
        return (self._folder / CARD).is_file()

    @property
    def next_index(self) -> int:
        """The first example that is not written yet."""
        return len(self._order)

    def _refuse_other(self) -> None:
        now = json.loads(json.dumps({**self._provenance, "fingerprint": self._env.fingerprint}))
        for name in (CARD, _BEGUN):
            if (path := self._folder / name).is_file():
                held = json.loads(path.read_text(encoding="utf-8"))
                before = {**held["provenance"], "fingerprint": held["fingerprint"]}
                for key in (key for key in now if before.get(key) != now[key]):
                    raise ValueError(
                        f"{self._folder} holds examples of other data or settings: {key} there is {before.get(key)}, "
                        f"here {now[key]}; give another folder by --out, or delete this one."
                    )
                return
        if self._folder.is_dir() and any(self._folder.iterdir()):
            raise ValueError(f"{self._folder} holds files that are no example shards; give a new folder by --out.")
        begun = {"provenance": self._provenance, "fingerprint": self._env.fingerprint}
        replace_text(self._folder / _BEGUN, json.dumps(begun, indent=1) + "\n")

    def _go_on(self) -> None:
        """Take up what the shards that are whole hold; a shard counts where the part of the order beside it is there.

        What lies after the first that does not is written again.
        """
        while self._shard_path().is_file() and self._part_path().is_file():
            path = self._shard_path()
            table = pq.read_table(path, columns=["example_id", "image_key", "scene_row", "scene_size", "image_file"])
            for row in table.to_pylist():
                self._take(row)
            self._order += pq.read_table(self._part_path()).column("row").to_pylist()
            self._num_ordered = len(self._order)
            self._shards.append(ShardFile(path.name, table.num_rows, path.stat().st_size))

    def _take(self, row: Mapping[str, Any]) -> None:
        self._row_of[row["example_id"]] = self._num_rows
        self._scenes.setdefault(row["image_key"], Scene(row["scene_row"], row["scene_size"]))
        if row["image_file"] is not None:
            self._image_folders.add(os.path.dirname(row["image_file"]))
        self._num_rows += 1

    def add(self, index: int) -> None:
        """Write the example at `index`, which must be `next_index`, and its scene where its image is a new one."""
        example = self._env[index]
        if example.image.key not in self._scenes:
            self._add_scene(self._env.scene(index), example)
        if example.id not in self._row_of:
            self._add_row(example, self._scenes[example.image.key], None)
        self._order.append(self._row_of[example.id])
        if len(self._rows) >= _SHARD_ROWS or self._image_bytes >= _SHARD_BYTES:
            self._write_shard()

    def _add_scene(self, scene: list[Example], asked: Example) -> None:
        place = Scene(self._num_rows, len(scene))
        png = None if self._files else png_of(self._env.image(asked.image))
        for example in scene or [asked]:
            self._add_row(example, place, png)
            png = None

    def _add_row(self, example: Example, scene: Scene, png: bytes | None) -> None:
        row = example_row(example, scene, self._file_of(example.image), png)
        self._rows.append(row)
        self._take(row)
        self._image_bytes += len(png or b"")

    def _file_of(self, image: ImageRef) -> ShownFile | None:
        return self._files.image_file(image) if self._files else None

    def _shard_path(self) -> Path:
        return self._folder / f"examples-{len(self._shards):05d}.parquet"

    def _part_path(self) -> Path:
        return self._folder / f"order-{len(self._shards):05d}.parquet"

    def _write_shard(self) -> None:
        _write(self._part_path(), [pa.table({"row": self._order[self._num_ordered :]}, _ONE_ROW)], _ONE_ROW)
        notes = {"polytrace.schema_version": f"{SCHEMA_VERSION}", "polytrace.provenance": json.dumps(self._provenance)}
        tables = (pa.Table.from_pylist(rows, SCHEMA) for rows in _groups(self._rows))
        path = self._shard_path()
        _write(path, tables, SCHEMA.with_metadata(notes))
        self._shards.append(ShardFile(path.name, len(self._rows), path.stat().st_size))
        self._rows, self._image_bytes, self._num_ordered = [], 0, len(self._order)

    def finish(self) -> Card:
        """Write what is left and, last, the card; every example must have been added."""
        if self._rows or not self._shards:
            self._write_shard()
        order, images, about = self._folder / ORDER, self._folder / IMAGES, self._folder / ABOUT
        _write(order, [pa.table({"row": self._order}, _ONE_ROW)], _ONE_ROW)
        hashes, rows = key_hashes(list(self._scenes)), [scene.row for scene in self._scenes.values()]
        found = pa.table({"key_hash": hashes, "row": pa.array(rows, pa.int64())}).sort_by("key_hash")
        _write(images, [found], found.schema)
        notes = {what: list(which) for what, which in self._env.notes.items()}
        replace_text(about, json.dumps({"notes": notes, "phrase_words": sorted(self._env.phrase_words())}))
        sizes = {order: len(self._order), images: len(rows), about: 0}
        card = Card(
            schema_version=SCHEMA_VERSION,
            num_examples=len(self._order),
            shards=tuple(self._shards),
            others=tuple(ShardFile(path.name, rows, path.stat().st_size) for path, rows in sizes.items()),
            fingerprint=self._env.fingerprint,
            image_folder=os.path.commonpath(self._image_folders) if self._image_folders else None,
            provenance=self._provenance,
        )
        replace_text(self._folder / CARD, card.text())
        for path in (*self._folder.glob("order-*.parquet"), self._folder / _BEGUN):
            path.unlink()
        return card


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
