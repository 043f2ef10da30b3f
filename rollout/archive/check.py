"""What is wrong with an archive: every shard read once, a row group at a time, and its tables held together."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from rollout.archive.shards import open_shard, row_group_hashes, row_group_steps, seal_holds, whole_row_group
from rollout.archive.table import TABLES, Shard, ShardTable, StoredIds, shard_of


@dataclass(frozen=True)
class Finding:
    """Something wrong with an archive."""

    path: Path
    """The file, or the place where one is missing."""
    problem: str
    """What is wrong."""
    savable: str
    """What can be saved, and how to go on."""


@dataclass
class CheckedShard:
    """A shard that was read, and what is wrong with it."""

    findings: list[Finding] = field(default_factory=list)
    example_ids: set[str] = field(default_factory=set)
    """Ids of the examples in its whole row groups."""
    steps: list[int] = field(default_factory=list)
    """Steps of its whole row groups, as the rows say, or the footer where rows do not."""


def check_shard(path: Path, first: int) -> CheckedShard:
    """Read the shard that begins at step `first`, row group by row group, and check each and the file."""
    found = CheckedShard()
    try:
        with open_shard(path) as file:
            num_groups = max(file.num_row_groups, len(row_group_hashes(file)), 1)
            whole = [_read(file, k, first, found) for k in range(file.num_row_groups)]
    except (ValueError, FileNotFoundError) as error:
        found.findings.append(Finding(path, str(error), "the other shards"))
        return found
    num_whole = sum(rows > 0 for rows in whole)
    if num_whole < num_groups:
        problem = f"altered: {num_groups - num_whole} of {num_groups} row groups differ from their checksum"
    elif not seal_holds(path):
        problem = "altered: its footer differs from the file's checksum"
    else:
        return found
    saved = f"{sum(whole)} rows in whole row groups"
    if num_whole and num_groups > 1:
        saved += f", of steps {_spans(found.steps)}"
    found.findings.append(Finding(path, problem, f"{saved}; or resume from before step {first}"))
    return found


def _read(file: pq.ParquetFile, k: int, first: int, found: CheckedShard) -> int:
    """Take in row group k; its number of rows, 0 where it is not whole."""
    table = whole_row_group(file, k)
    if table is None:
        return 0
    has_steps = "step" in table.column_names
    found.example_ids.update(table["example_id"].to_pylist())
    found.steps += sorted(set(table["step"].to_pylist())) if has_steps else [row_group_steps(file, first)[k]]
    return len(table)


def _spans(steps: list[int]) -> str:
    """Numbers in order as "0 to 4, 6"."""
    parts: list[list[int]] = []
    for step in sorted(set(steps)):
        if parts and step == parts[-1][-1] + 1:
            parts[-1][1:] = [step]
        else:
            parts.append([step])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def num_shards(archive: Path) -> int:
    """Shards in both tables."""
    return sum(len(ShardTable(archive, name).shards()) for name in TABLES)


def check_archive(archive: Path) -> Iterator[list[Finding]]:
    """What is wrong: with the files there are, with each shard of both tables once it has been read, with the steps."""
    examples, rollouts = (ShardTable(archive, name) for name in TABLES)
    yield [*_leftovers(examples), *_leftovers(rollouts), *_doubled(examples), *_doubled(rollouts)]
    stored = StoredIds()
    for shard in examples.shards():
        checked = check_shard(shard.path, shard.first)
        stored.add(checked.example_ids)
        yield checked.findings
    for shard in rollouts.shards():
        yield _check_answers(shard, stored)
    yield _missing(rollouts)


def _check_answers(shard: Shard, stored: StoredIds) -> list[Finding]:
    checked = check_shard(shard.path, shard.first)
    findings = checked.findings
    if not findings and checked.steps != list(range(shard.first, shard.last + 1)):
        said = f"step {shard.first}" if shard.first == shard.last else f"steps {shard.first} to {shard.last}"
        problem = f"holds answers of steps {checked.steps}, not of {said}"
        findings.append(Finding(shard.path, problem, "all of it; give the file back its name"))
    if missing := sorted(name for name in checked.example_ids if name not in stored):
        problem = f"{len(missing)} of its examples are not in the examples table, {missing[0]} first"
        findings.append(Finding(shard.path, problem, "answers and scores; the truth from the data set, by example_id"))
    return findings


def _leftovers(table: ShardTable) -> list[Finding]:
    """Files and folders that interrupted writes left, and files in the table that are no shards."""
    problem, savable = "left from a write that was interrupted", "nothing is lost; a resumed run deletes it"
    findings = [Finding(path, problem, f"{savable}, or do so by hand") for path in table.leftovers]
    strangers = (path for path in sorted(table.folder.glob("*")) if not shard_of(path) and path.suffix != ".partial")
    savable = "move it elsewhere; readers would stumble on it"
    return findings + [Finding(path, "not a shard of this archive", savable) for path in strangers]


def _doubled(table: ShardTable) -> list[Finding]:
    return [
        Finding(later.path, f"its steps are also those of {earlier.path.name}", "move one of the two elsewhere")
        for earlier, later in pairwise(table.shards())
        if later.first <= earlier.last
    ]


def _missing(rollouts: ShardTable) -> list[Finding]:
    """Steps between the first and the last that no shard holds.

    A run begins at step 0. Examples may be one step ahead: they are written before the answers to them.
    """
    findings, expected = [], 0
    for shard in rollouts.shards():
        for step in range(expected, shard.first):
            savable = "the other steps; to fill it, resume from a checkpoint before it"
            findings.append(Finding(rollouts.path(step), f"step {step} is missing", savable))
        expected = max(expected, shard.last + 1)
    return findings
