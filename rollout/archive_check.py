"""Everything wrong with an archive: shards that are torn, altered, missing, doubled, misnamed or left over."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from rollout.shard_check import Finding, check_shard
from rollout.shard_table import TABLES, Shard, ShardTable, shard_of
from rollout.stored_ids import StoredIds


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
