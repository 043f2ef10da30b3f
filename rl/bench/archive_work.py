"""What the bench of an archive measures, each in a process of its own: choosing pairs, and exporting them with images.

`python -m rl.bench.archive_work choose|export RUN PAIRS OUT` prints a line of JSON. Peak memory and the bytes read are
those that Linux counts of the process, in /proc.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rl.bench.made_archive import write_archive
from rl.config.pairs import PairExport, PairRule
from rl.pairs.export import export_pairs
from rl.pairs.index import write_index
from rl.pairs.select import choose
from rollout.archive.archive import RolloutArchive


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


def _peak_mb() -> float:
    """Highest resident memory of this process so far, its imports' share included."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    _warm()
    kind, run, pairs, out = sys.argv[1:]
    print(json.dumps(WORK[kind](Path(run), int(pairs), Path(out)) | {"peak_mb": _peak_mb()}))
