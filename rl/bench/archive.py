"""A generated archive of many answers: what it costs to choose and export pairs, and to append one more step to it.

Choosing and exporting have processes of their own (`python -m rl.bench.archive choose|export RUN PAIRS OUT` prints a
line of JSON), so that peak memory and bytes read, which Linux counts in /proc, are theirs. The smaller archives are the
first steps of the largest one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rl.bench.made_archive import PER_STEP, num_steps, step_groups, write_archive, write_config
from rl.config.pairs import PairExport, PairRule
from rl.pairs.export import export_pairs
from rl.pairs.index import write_index
from rl.pairs.select import choose
from rollout.archive.archive import RolloutArchive
from rollout.archive.table import TABLES, ShardTable

PEAK_BAR_MB = 1000.0
"""Most memory that choosing and exporting pairs may take."""
MADE = "made_archive"
"""Folder of the largest archive, where it is kept; a name that no run's archive has."""
QUICK_ANSWERS = 30_000
_PARTS = (4, 2, 1)


@dataclass(frozen=True)
class Chosen:
    """Pairs chosen from one archive, both masks of each written."""

    answers: int
    pairs: int
    seconds: float
    """Seconds of choosing; it reads the archive."""
    writing_seconds: float
    """Seconds of filling and writing the masks; it depends on the pairs alone."""
    peak_mb: float
    """Highest resident memory of the process, the imports' share included."""
    read_mb: float
    """Bytes that choosing read."""
    archive_mb: float
    """Bytes of the archive."""

    @property
    def seconds_a_million(self) -> float:
        """Seconds of choosing, for each million answers in the archive."""
        return self.seconds / self.answers * 1e6


@dataclass(frozen=True)
class Exported:
    """`polytrace export pairs` from the largest archive."""

    answers: int
    pairs: int
    seconds: float
    peak_mb: float
    """Highest resident memory of the process, the imports' share included."""
    written_mb: float
    """Bytes of the export: images and masks as PNG in Parquet shards, index, pages."""


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
    exported: Exported
    appended: list[Appended]

    @property
    def linearity(self) -> float:
        """Seconds a million answers in the largest archive over those in the smallest; 1 or less is no worse than
        linear."""
        return self.chosen[-1].seconds_a_million / self.chosen[0].seconds_a_million

    @property
    def share_read(self) -> float:
        """Bytes read of each byte by which the largest archive is larger than the smallest; 1 or more is not pruned.

        Both tables are read twice, once for what is chosen by, once for what is written.
        """
        first, last = self.chosen[0], self.chosen[-1]
        return (last.read_mb - first.read_mb) / max(1e-9, last.archive_mb - first.archive_mb)


def first_steps(folder: Path, num_answers: int, run: Path) -> None:
    """In the folder `run`, by hard links, a run of the first steps of an archive, of at least `num_answers` answers."""
    for name in TABLES:
        (run / "archive" / name).mkdir(parents=True)
        for shard in ShardTable(folder, name).shards():
            if shard.last < num_steps(num_answers):
                os.link(shard.path, run / "archive" / name / shard.path.name)
    write_config(run, num_answers)


def measure_choosing(run: Path, num_pairs: int) -> Chosen:
    """Choose pairs, then write both masks of each, in a process of its own."""
    shards = [shard for name in TABLES for shard in ShardTable(run / "archive", name).shards()]
    size = sum(shard.path.stat().st_size for shard in shards) / 1e6
    return Chosen(answers=_answers(run), archive_mb=size, **_apart("choose", run, num_pairs, "pairs.parquet"))


def measure_exporting(run: Path, num_pairs: int) -> Exported:
    """Export pairs with their images, in a process of its own."""
    return Exported(answers=_answers(run), **_apart("export", run, num_pairs, "pairs"))


def _answers(run: Path) -> int:
    return RolloutArchive(run / "archive").num_steps * PER_STEP


def _apart(kind: str, run: Path, num_pairs: int, name: str) -> dict[str, Any]:
    """What a process of its own measures; what it writes lies beside the run meanwhile."""
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-", dir=run.parent) as folder:
        command = [sys.executable, "-m", "rl.bench.archive", kind, f"{run}", f"{num_pairs}", f"{folder}/{name}"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(said))


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
    """Measure choosing in archives of a quarter, a half and all of `num_answers`, the rest in the largest.

    folder: where the archive is written, and stays; one that is there is taken, or made longer.
    """
    write_archive(folder / MADE, num_answers)
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-", dir=folder) as beside:
        runs = {Path(beside) / f"part-{part}": num_answers // part for part in _PARTS}
        for run, num in runs.items():
            first_steps(folder / MADE, num, run)
        bar = track(runs, "choosing pairs", console=Console(stderr=True), transient=True)
        chosen = [measure_choosing(run, num_pairs) for run in bar]
        whole = list(runs)[-1]
        exported = measure_exporting(whole, num_pairs)
        appended = [measure_appending(run / "archive", rounds) for run in (Path(beside) / "empty", whole)]
    return ArchiveBench(chosen, exported, appended)


def as_json(found: ArchiveBench) -> dict[str, object]:
    """What was measured, for a program; megabytes are of 1e6 bytes."""
    return {
        "peak_bar_mb": PEAK_BAR_MB,
        "linearity": found.linearity,
        "share_read": found.share_read,
        "chosen": [asdict(one) | {"seconds_a_million": one.seconds_a_million} for one in found.chosen],
        "exported": asdict(found.exported),
        "appended": [asdict(one) for one in found.appended],
    }


def tables(found: ArchiveBench) -> Iterator[Table]:
    """What was measured, for people."""
    made = Table(title="Pairs chosen, both masks written", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers", "pairs", "s", "s a million", "writing s", "peak MB", "MB", "MB read"):
        made.add_column(column, justify="right", no_wrap=True)
    for one in found.chosen:
        seconds = (f"{value:.1f}" for value in (one.seconds, one.seconds_a_million, one.writing_seconds))
        sizes = (f"{value:,.0f}" for value in (one.peak_mb, one.archive_mb, one.read_mb))
        made.add_row(f"{one.answers:,}", f"{one.pairs:,}", *seconds, *sizes)
    yield made
    whole = found.exported
    made = Table(title="`export pairs` with images, from the largest", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers", "pairs", "s", "peak MB", "bar MB", "written MB"):
        made.add_column(column, justify="right")
    sizes = (f"{value:,.0f}" for value in (whole.peak_mb, PEAK_BAR_MB, whole.written_mb))
    made.add_row(f"{whole.answers:,}", f"{whole.pairs:,}", f"{whole.seconds:.1f}", *sizes)
    yield made
    made = Table(title=f"A step of {PER_STEP:,} answers appended", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers before", "ms per step", "once, on opening"):
        made.add_column(column, justify="right")
    for step in found.appended:
        made.add_row(f"{step.answers:,}", f"{step.milliseconds:.1f}", f"{step.open_seconds:.2f} s")
    yield made
    made = Table(title="Ratios", box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    made.add_row("s a million answers, largest archive over smallest (1: linear)", f"{found.linearity:.2f}")
    made.add_row("bytes read of each further byte, in two passes (below 1: pruned)", f"{found.share_read:.2f}")
    yield made


def measure_choice(run: Path, num_pairs: int, out: Path) -> dict[str, float]:
    """Choose pairs, then write both masks of each to the file `out`."""
    before, started = _bytes_read(), time.perf_counter()
    choice = choose([RolloutArchive(run / "archive")], PairRule(limit=num_pairs))
    seconds, read = time.perf_counter() - started, _bytes_read() - before
    write_index(out, choice.pairs())
    writing = time.perf_counter() - started - seconds
    return {"pairs": len(choice), "seconds": seconds, "writing_seconds": writing, "read_mb": read / 1e6}


def measure_export(run: Path, num_pairs: int, out: Path) -> dict[str, float]:
    """`polytrace export pairs` to the folder `out`: Parquet shards with images and masks, data card and pages."""
    started = time.perf_counter()
    report = export_pairs([run], out, PairExport(rule=PairRule(limit=num_pairs)))
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "pairs": report.pairs,
        "seconds": time.perf_counter() - started,
        "written_mb": written / 1e6,
    }


WORK: dict[str, Callable[[Path, int, Path], dict[str, float]]] = {"choose": measure_choice, "export": measure_export}


def _warm() -> None:
    """Compile or load the kernels."""
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        write_archive(Path(folder), 1, processes=1)
        choose([RolloutArchive(Path(folder))], PairRule(limit=1))


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def peak_mb() -> float:
    """Highest resident memory of this process so far, its imports' share included."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    _warm()
    kind, run, pairs, out = sys.argv[1:]
    print(json.dumps(WORK[kind](Path(run), int(pairs), Path(out)) | {"peak_mb": peak_mb()}))
