"""What a resumed run does with steps past its checkpoint: they are moved out of the tables, and never read again."""

import os
import shutil
from pathlib import Path

from rollout.disk import sync_folder
from rollout.shard_table import TABLES, Shard, ShardTable, shard_name, whole_rows
from rollout.shards import new_shard, open_shard, raster_version, row_group_steps


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
    """The same file under a second name, or a copy where the file system has no hard links; returns `target`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    return target
