"""Shards rearranged: steps past the checkpoint of a resumed run set aside, many shards merged into few."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rollout.archive.lock import WriterLock
from rollout.archive.shards import ShardWriter, new_shard, open_shard, raster_version, row_group_steps
from rollout.archive.table import TABLES, Shard, ShardTable, shard_name, whole_rows
from rollout.disk import sync_folder


def set_aside_after(archive: Path, step: int) -> list[Path]:
    """Move rows of steps after `step` to a new folder in `set_aside/`, delete leftovers of writes; the new paths.

    For the one process that writes. Interrupted, no step is lost or doubled, and the next call does the rest. Raises
    ValueError where a shard has to be cut and cannot be read.
    """
    used = [int(path.name) for path in archive.glob("set_aside/*") if path.name.isdigit()]
    target = archive / "set_aside" / f"{max(used, default=0) + 1:04d}"
    moved = []
    for name in TABLES:
        table = ShardTable(archive, name)
        table.clean()
        later = [shard for shard in table.shards() if shard.last > step]
        if later:
            (target / name).mkdir(parents=True, exist_ok=True)
            cut = later[0].first <= step
            moved += _cut(table, step, target / name) if cut else _move(later, target / name)
            sync_folder(target / name)
            sync_folder(table.folder)
    return moved


def _move(later: list[Shard], target: Path) -> list[Path]:
    # Last first, so that an interrupted move leaves no gap.
    return [shard.path.rename(target / shard.path.name) for shard in reversed(later)]


def _cut(table: ShardTable, step: int, target: Path) -> list[Path]:
    """Where the first later shard also holds steps that stay: copies of what is later, then a table without it."""
    staged, moved = table.stage(), []
    for shard in table.shards():
        if shard.last <= step:
            link(shard.path, staged / shard.path.name)
        elif shard.first > step:
            moved.append(link(shard.path, target / shard.path.name))
        else:
            _copy_steps(shard, shard.first, step, staged)
            moved += _copy_steps(shard, step + 1, shard.last, target)
    table.replace()
    return moved


def _copy_steps(shard: Shard, first: int, last: int, folder: Path) -> list[Path]:
    """A new shard of the rows of steps first..last; none where there are no such rows, as may be in examples."""
    with open_shard(shard.path) as file:
        places = [(k, step) for k, step in enumerate(row_group_steps(file, shard.first)) if first <= step <= last]
        if not places:
            return []
        path = folder / shard_name(first, last)
        with new_shard(path, raster_version(file)) as part:
            for k, step in places:
                part.add(whole_rows(file, k, shard.path), step)
    return [path]


def link(source: Path, target: Path) -> Path:
    """A file under a second name, or a copy where the file system has no hard links; returns `target`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    return target


class Compaction:
    """Merging the shards of one archive so that each holds the steps of one stretch of `steps_per_shard`."""

    def __init__(self, archive: Path, steps_per_shard: int = 64) -> None:
        """Become the writer of the archive; nothing is changed before `run`.

        Raises FileNotFoundError where there is no archive, ValueError where a run still writes it.
        """
        if steps_per_shard < 2:
            raise ValueError(f"steps_per_shard is {steps_per_shard}; set it to 2 or more.")
        self._tables = [ShardTable(archive, name) for name in TABLES]
        if not any(table.folder.is_dir() for table in self._tables):
            raise FileNotFoundError(f"No archive in {archive}; give the folder of a run.")
        self._steps_per_shard = steps_per_shard
        self._lock = WriterLock(archive)
        self._lock.take()

    @property
    def num_shards(self) -> int:
        """Shards of both tables, as they are now."""
        return sum(len(table.shards()) for table in self._tables)

    def run(self) -> Iterator[Shard]:
        """Merge; yields each old shard once its rows are copied.

        Stopped at any point, an archive has every row once: a table is the old one or the new one. Raises ValueError,
        the table being as before, where a shard is torn or altered, OSError where the disk refuses.
        """
        for table in self._tables:
            table.clean()
            parts = self._parts(table)
            if any(len(part) > 1 for part in parts):
                staged = table.stage()
                for part in parts:
                    yield from _merge(part, staged)
                table.replace()
            else:
                yield from table.shards()
        self._lock.release()

    def _parts(self, table: ShardTable) -> list[list[Shard]]:
        """The shards that become one: of one stretch of steps, scored by one raster rule."""
        parts: list[list[Shard]] = []
        before = None
        for shard in table.shards():
            with open_shard(shard.path) as file:
                kind = shard.first // self._steps_per_shard, raster_version(file)
            # Answers that are missing must stay missing, not vanish in a name. Not every step has new examples.
            follows = table.name == "examples" or (parts and shard.first == parts[-1][-1].last + 1)
            if kind == before and follows:
                parts[-1].append(shard)
            else:
                parts.append([shard])
            before = kind
        return parts


def _merge(part: list[Shard], folder: Path) -> Iterator[Shard]:
    """Write the rows of the shards to one shard in `folder`; yields each that was read."""
    if len(part) == 1:
        link(part[0].path, folder / part[0].path.name)
        yield part[0]
        return
    with open_shard(part[0].path) as file:
        version = raster_version(file)
    with new_shard(folder / shard_name(part[0].first, part[-1].last), version) as merged:
        for shard in part:
            _copy(shard, merged)
            yield shard


def _copy(shard: Shard, merged: ShardWriter) -> None:
    with open_shard(shard.path) as file:
        for k, step in enumerate(row_group_steps(file, shard.first)):
            merged.add(whole_rows(file, k, shard.path), step)
