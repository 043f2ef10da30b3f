"""Files of one prepared split: its card, its shards read lazily by row number, and where each example and image is.

FOLDER/SPLIT/split.json             the card, written last: without it a preparation is not finished
FOLDER/SPLIT/about.json             notes of the original env, and the words of its phrases
FOLDER/SPLIT/examples-00000.parquet rows (envs/shards/rows.py), scene after scene
FOLDER/SPLIT/order.parquet          row of each example, in the order of the env
FOLDER/SPLIT/images.parquet         hash of each image's key, sorted, and the first row of its scene
"""

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.plugin import did_you_mean
from envs.shards.rows import READABLE_VERSIONS, SCHEMA_VERSION

CARD, ABOUT, ORDER, IMAGES = "split.json", "about.json", "order.parquet", "images.parquet"
_OPEN_FILES, _KEPT_GROUPS = 32, 16

T = TypeVar("T")


@dataclass(frozen=True)
class ShardFile:
    """One of the Parquet files of a split."""

    name: str
    """Name of the file."""
    rows: int
    """Examples in it."""
    num_bytes: int
    """Size of the file."""


@dataclass(frozen=True)
class Card:
    """What is known of a prepared split without opening a shard."""

    schema_version: int
    """Version of the rows (see SCHEMA_VERSION)."""
    num_examples: int
    """Length of the env."""
    shards: tuple[ShardFile, ...]
    """Files with the rows, in order; with those that only a whole scene asks, rows may be more than examples."""
    others: tuple[ShardFile, ...]
    """The other files of the split, but this one."""
    fingerprint: str
    """Fingerprint of the original env."""
    image_folder: str | None
    """Folder that all image files lay in; None where images are embedded."""
    provenance: dict[str, Any]
    """Name and settings of the original env, and the version of Polytrace that wrote it."""
    asked: tuple[str, ...] = ("mask",)
    """What its questions ask for: "mask", "box", "point"."""
    num_lost: int = 0
    """Questions that the data set has and that could not be asked; `about.json` says why."""
    candidates: tuple[int, int] | None = None
    """Fewest and most candidates of a question, 0 for one without; None where it was prepared before this was kept."""

    def text(self) -> str:
        """The card as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_card(folder: Path, split: str) -> Card:
    """The card of a prepared split.

    Raises FileNotFoundError where nothing is prepared, or a shard is missing; ValueError for another schema version, a
    split that was not prepared, or a shard that is not as it was written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; `polytrace data prepare CONFIG --out {folder}` makes it.")
    path = folder / split / CARD
    if not path.is_file():
        prepared = sorted(found.parent.name for found in folder.glob(f"*/{CARD}"))
        other = f", or env.names={{{split}: {prepared[0]}}} asks for one that is there" if prepared else ""
        begun = (folder / split).is_dir()
        what = "was not finished; the command that began it goes on with it" if begun else "is not there"
        raise ValueError(
            f"{folder}: the split {split!r} {what}{did_you_mean(split, prepared)} Prepared: "
            f"{', '.join(prepared) or 'none'}. `polytrace data prepare SOURCE --split {split} --out {folder}` adds it"
            f"{other}."
        )
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        version = held["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the split anew in another folder.") from error
    if version not in READABLE_VERSIONS:
        raise ValueError(
            f"{path}: the shards have schema version {version}, and this Polytrace reads {SCHEMA_VERSION}; prepare "
            "them anew in another folder, or read them with the version that wrote them, which `provenance` names."
        )
    held["asked"] = tuple(held.get("asked", ("mask",)))
    if held.get("candidates") is not None:
        held["candidates"] = tuple(held["candidates"])
    card = Card(**(held | {key: tuple(ShardFile(**file) for file in held[key]) for key in ("shards", "others")}))
    _refuse_torn(path.parent, (*card.shards, *card.others))
    return card


def _refuse_torn(folder: Path, files: Sequence[ShardFile]) -> None:
    anew = "restore it from a copy, or delete the folder of the split and prepare it anew"
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {anew}.")
        found = path.stat().st_size
        if found != file.num_bytes:
            raise ValueError(f"{path} has {found:,} bytes and was written with {file.num_bytes:,}: it is torn; {anew}.")


def key_hashes(keys: Sequence[str]) -> NDArray[np.int64]:
    """[N] the first eight bytes of the SHA-256 of each image key, by which `images.parquet` is sorted."""
    digests = (hashlib.sha256(key.encode()).digest()[:8] for key in keys)
    return np.array([int.from_bytes(digest, "big", signed=True) for digest in digests], np.int64)


def read_columns(path: Path, *names: str) -> list[NDArray[np.int64]]:
    """Columns of whole numbers of a Parquet file; ValueError, naming it, where it cannot be read."""
    table = _whole(path, lambda: pq.ParquetFile(path, memory_map=True).read(list(names)))
    return [_numbers(table.column(name).combine_chunks()) for name in names]


def _numbers(column: pa.Array) -> NDArray[np.int64]:
    """The values [N] of a column of int64 without nulls; to_numpy would import pandas for it."""
    if not len(column):
        return np.zeros(0, np.int64)
    return np.frombuffer(column.buffers()[1], np.int64, len(column), 8 * column.offset)


def _whole(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is torn ({error}); restore it from a copy, or delete the folder of the split and prepare it anew."
        ) from error


class Recent(OrderedDict[Any, T]):
    """A few things made when they are first asked for, the least recently used one dropped."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def got(self, key: Any, make: Callable[[], T]) -> T:
        """What `key` stands for."""
        if key not in self:
            self[key] = make()
            if len(self) > self._size:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


class ShardRows:
    """The rows of a split by number; a row group is read when one of its rows is asked for."""

    def __init__(self, folder: Path, card: Card) -> None:
        self._folder, self._shards = folder, card.shards
        self._ends = list(accumulate(shard.rows for shard in card.shards))
        self._files = Recent[tuple[pq.ParquetFile, list[int]]](_OPEN_FILES)
        self._groups = Recent[pa.Table](_KEPT_GROUPS)

    def rows(self, first: int, count: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """`count` rows from number `first` on, with these columns.

        Raises ValueError, naming the shard, where it cannot be read.
        """
        found: list[dict[str, Any]] = []
        while len(found) < count:
            table, place = self._group(first + len(found), tuple(columns))
            found += table.slice(place, count - len(found)).to_pylist()
        return found

    def _group(self, row: int, columns: tuple[str, ...]) -> tuple[pa.Table, int]:
        """The row group that holds `row`, and the row's place in it."""
        shard = bisect_right(self._ends, row)
        path = self._folder / self._shards[shard].name
        place = row - (self._ends[shard] - self._shards[shard].rows)
        file, ends = self._files.got(shard, lambda: _whole(path, lambda: _opened(path)))
        group = bisect_right(ends, place)
        there = [name for name in columns if name in file.schema_arrow.names]  # earlier schemas have fewer
        table = self._groups.got(
            (shard, group, columns), lambda: _whole(path, lambda: file.read_row_group(group, there))
        )
        return table, place - (ends[group] - table.num_rows)


def _opened(path: Path) -> tuple[pq.ParquetFile, list[int]]:
    """A shard, and how many rows it has up to the end of each row group."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    return file, list(accumulate(file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)))
