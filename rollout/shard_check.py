"""What is wrong with a shard, found by reading all of it once, a row group at a time."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from rollout.shards import open_shard, row_group_hashes, row_group_steps, seal_holds, whole_row_group


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
    """Of its whole row groups."""
    steps: list[int] = field(default_factory=list)
    """Of its whole row groups, as the rows say, or the footer where rows do not."""


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
