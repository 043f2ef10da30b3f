"""A generated archive of many answers: what it costs to choose pairs from it, and to append one more step to it.

Pairs are chosen and written in a process of its own, so that its peak memory and the bytes that it reads are its own
(as Linux counts them, in /proc). The smaller archives are the first steps of the largest one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.rle import rle_from_mask
from rl.bench.made_archive import PER_STEP, step_groups, write_archive
from rl.pair_rule import PairRule
from rl.pairs import select
from rollout.archive import RolloutArchive
from rollout.shard_table import TABLES, ShardTable
from rollout.shards import new_shard

PEAK_BAR_MB = 1000.0
"""Most memory that choosing and writing pairs may take."""
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Chosen:
    """Pairs chosen from one archive and written."""

    answers: int
    pairs: int
    seconds: float
    peak_mb: float
    """Highest resident memory of the process, the imports' share included."""
    read_mb: float
    """Bytes that the process read, those of its imports left out."""
    archive_mb: float
    """Bytes of the archive."""


@dataclass(frozen=True)
class Appended:
    """One more step written to an archive."""

    answers: int
    """Answers in the archive before."""
    open_seconds: float
    """What the first append costs more than the others: reading which examples are stored."""
    milliseconds: float
    """A step of PER_STEP answers, half of its examples new; median."""


@dataclass(frozen=True)
class ArchiveBench:
    """What was measured."""

    chosen: list[Chosen]
    appended: list[Appended]


def first_steps(folder: Path, num_answers: int, target: Path) -> None:
    """In `target`, by hard links, the first steps of an archive, of about `num_answers` answers."""
    for name in TABLES:
        (target / name).mkdir(parents=True)
        for shard in ShardTable(folder, name).shards():
            if shard.last < max(1, num_answers // PER_STEP):
                os.link(shard.path, target / name / shard.path.name)


def choose_and_write(archive: Path, num_pairs: int, out: Path) -> int:
    """Choose pairs and write both masks of each as COCO RLE to `out`; returns how many."""
    pairs = select(RolloutArchive(archive), PairRule(limit=num_pairs)).pairs
    with new_shard(out) as shard:
        for first in range(0, len(pairs), _ROWS_AT_ONCE):
            part = pairs[first : first + _ROWS_AT_ONCE]
            rows = {
                "example_id": [pair.example_id for pair in part],
                "coarse_rle": [rle_from_mask(pair.coarse_mask) for pair in part],
                "true_rle": [pair.true_rle for pair in part],
                "iou": [pair.iou for pair in part],
            }
            shard.add(pa.table(rows))
    return len(pairs)


_CHILD = """
import sys, time
from pathlib import Path
from rl.bench.archive import choose_and_write
from rl.bench.made_archive import step_groups
step_groups(0, "compiles the kernels")
def read(): return int(open("/proc/self/io").read().split()[1])
before, started = read(), time.perf_counter()
pairs = choose_and_write(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
seconds, peak = time.perf_counter() - started, open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(pairs, seconds, int(peak) * 1024 / 1e6, (read() - before) / 1e6)
"""


def measure_choosing(archive: Path, num_pairs: int) -> Chosen:
    """Choose and write pairs in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        command = [sys.executable, "-c", _CHILD, f"{archive}", f"{num_pairs}", f"{folder}/pairs.parquet"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    rollouts, examples = ShardTable(archive, "rollouts").shards(), ShardTable(archive, "examples").shards()
    size = sum(shard.path.stat().st_size for shard in [*rollouts, *examples]) / 1e6
    seconds, peak, read = map(float, said[1:])
    return Chosen(len(rollouts) * PER_STEP, int(said[0]), seconds, peak, read, size)


def measure_appending(folder: Path, rounds: int) -> Appended:
    """Append `rounds` steps to the archive in `folder`, which may be empty."""
    archive = RolloutArchive(folder)
    first, seconds = archive.num_steps, []
    before = first * PER_STEP
    for step in range(first, first + rounds + 1):
        groups = step_groups(step, "appended")
        started = time.perf_counter()
        archive.append(step, groups)
        seconds.append(time.perf_counter() - started)
    archive.close()
    median = float(np.median(seconds[1:]))
    return Appended(before, max(0.0, seconds[0] - median), 1000 * median)


def bench(num_answers: int, num_pairs: int, folder: Path, rounds: int = 15) -> ArchiveBench:
    """Measure in archives of a quarter, a half and all of `num_answers`.

    folder: where they are written, some 0.35 KB an answer.
    """
    write_archive(folder / "whole", num_answers)
    parts = {folder / f"part-{part}": num_answers // part for part in (4, 2, 1)}
    for part, num in parts.items():
        first_steps(folder / "whole", num, part)
    bar = track(parts, "choosing pairs", console=Console(stderr=True), transient=True)
    chosen = [measure_choosing(part, num_pairs) for part in bar]
    return ArchiveBench(chosen, [measure_appending(folder / name, rounds) for name in ("empty", "whole")])


def as_json(found: ArchiveBench) -> dict[str, object]:
    """What was measured, for a program; megabytes are of 1e6 bytes."""
    return {
        "peak_bar_mb": PEAK_BAR_MB,
        "chosen": [vars(one) for one in found.chosen],
        "appended": [vars(one) for one in found.appended],
    }


def tables(found: ArchiveBench) -> Iterator[Table]:
    """What was measured, for people: also seconds a million further answers, and bytes read of each further byte."""
    title = f"Pairs chosen from an archive and written, in at most {PEAK_BAR_MB:,.0f} MB"
    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers", "pairs", "s", "s a million", "peak MB", "MB", "MB read", "of a MB"):
        made.add_column(column, justify="right", no_wrap=True)
    for before, one in zip([None, *found.chosen], found.chosen, strict=False):
        more = "", ""
        if before is not None and one.answers > before.answers:
            seconds = (one.seconds - before.seconds) / (one.answers - before.answers) * 1e6
            more = f"{seconds:.1f}", f"{(one.read_mb - before.read_mb) / (one.archive_mb - before.archive_mb):.2f}"
        sizes = (f"{value:,.0f}" for value in (one.peak_mb, one.archive_mb, one.read_mb))
        made.add_row(f"{one.answers:,}", f"{one.pairs:,}", f"{one.seconds:.1f}", more[0], *sizes, more[1])
    yield made
    made = Table(title=f"A step of {PER_STEP:,} answers appended", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers before", "ms a step", "once, on opening"):
        made.add_column(column, justify="right")
    for step in found.appended:
        made.add_row(f"{step.answers:,}", f"{step.milliseconds:.1f}", f"{step.open_seconds:.2f} s")
    yield made
