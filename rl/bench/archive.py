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
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import answer_from_rings
from envs.raster import fill
from envs.rle import rle_from_mask
from policies.base import Response
from rl.bench.outlines import smooth
from rl.pair_rule import PairRule
from rl.pairs import select
from rollout.archive import RolloutArchive
from rollout.records import Group, Rollout, example_table, rollout_table
from rollout.shard_table import TABLES, ShardTable
from rollout.shards import new_shard, write_shard

PEAK_BAR_MB = 1000.0
"""Most memory that choosing and writing pairs may take."""
_GROUPS, _ANSWERS, _VERTICES, _TOKENS, _SIDE = 128, 8, 12, 32, 64
_PER_STEP, _ROWS_AT_ONCE = _GROUPS * _ANSWERS, 10_000


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
    """A step of _PER_STEP answers, half of its examples new; median."""


@dataclass(frozen=True)
class ArchiveBench:
    """What was measured."""

    chosen: list[Chosen]
    appended: list[Appended]


def write_archive(folder: Path, num_answers: int) -> None:
    """An archive of about `num_answers` generated answers: columns as in a run of small images, values drawn anew."""
    rng, groups = np.random.default_rng(0), step_groups(0, "made")
    answers, examples = rollout_table(groups), example_table([group.example for group in groups])
    steps = range(max(1, num_answers // _PER_STEP))
    for step in track(steps, "writing an archive", console=Console(stderr=True), transient=True):
        ids = [f"a drawn scene {step}/{k}" for k in range(_GROUPS)]
        hashes = [f"{step:08x}{k:08x}" * 4 for k in range(_GROUPS)]
        write_shard(folder / "examples" / f"step-{step:08d}.parquet", _examples(examples, ids, hashes), step)
        write_shard(folder / "rollouts" / f"step-{step:08d}.parquet", _answers(answers, ids, step, rng), step)


def _examples(table: pa.Table, ids: list[str], hashes: list[str]) -> pa.Table:
    return _with(table, {"example_id": pa.array(ids), "image_key": pa.array(ids), "image_sha256": pa.array(hashes)})


def _answers(table: pa.Table, ids: list[str], step: int, rng: np.random.Generator) -> pa.Table:
    num = len(table)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (num, _VERTICES)), axis=1)
    radius = rng.uniform(8, 28, (num, _VERTICES))
    vertices = np.stack([32 + radius * np.cos(angles), 32 + radius * np.sin(angles)], axis=-1)
    iou = rng.beta(4, 2, num)
    columns = {
        "step": pa.array(np.full(num, step)),
        "example_id": pa.array(np.repeat(ids, _ANSWERS)),
        "tokens": _lists(rng.integers(0, 200, (num, _TOKENS), np.int32)),
        "logprobs": _lists(-rng.random((num, _TOKENS), np.float32)),
        "policy_version": pa.array(np.full(num, step)),
        "seed": pa.array(rng.integers(0, 2**63, num).astype(np.uint64)),
        "status": pa.array(np.where(rng.random(num) < 0.1, "unparsable", "ok")),
        "vertices_px": _lists(np.round(vertices.reshape(num, -1) * 32) / 32),
        "iou": pa.array(iou),
        "reward_mask_iou": pa.array(iou),
        "total": pa.array(iou),
    }
    return _with(table, columns)


def _lists(rows: NDArray[np.generic]) -> pa.Array:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))


def _with(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    arrays = [columns.get(field.name, table[field.name]) for field in table.schema]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, table.schema, strict=True)], table.schema)


def step_groups(step: int, name: str) -> list[Group]:
    """A step as a run makes it, of _GROUPS groups; the odd ones of a later step ask examples of step 0 again."""
    rng, outline = np.random.default_rng(step), np.array([0, _VERTICES])
    groups = []
    for position in range(_GROUPS):
        mask = fill(smooth(rng, _VERTICES, _SIDE, _SIDE), outline, _SIDE, _SIDE)
        asked = f"{name} {0 if position % 2 else step}/{position}"
        example = Example(
            *(asked, ImageRef(asked, "0" * 64, _SIDE, _SIDE), Prompt(("the thing",)), Truth(mask[None])),
            *("train", "drawn for a bench", "CC0-1.0"),
        )
        response = Response(np.arange(_TOKENS), np.zeros(_TOKENS, np.float32), "stop")
        answer = answer_from_rings([smooth(rng, _VERTICES, _SIDE, _SIDE)])
        terms: dict[str, float | None] = {"mask_iou": 0.5}
        rollouts = [Rollout(k, response, "drawn", answer, 9, 12, 0.5, terms, step, k) for k in range(_ANSWERS)]
        totals = (0.5,) * _ANSWERS
        numbers = np.arange(70)
        groups.append(
            Group("bench", step, position, example, numbers, "0" * 64, 1.0, tuple(rollouts), totals, 64, True)
        )
    return groups


def first_steps(folder: Path, num_answers: int, target: Path) -> None:
    """In `target`, by hard links, the first steps of an archive, of about `num_answers` answers."""
    for name in TABLES:
        (target / name).mkdir(parents=True)
        for shard in ShardTable(folder, name).shards():
            if shard.last < max(1, num_answers // _PER_STEP):
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
from rl.bench.archive import choose_and_write, step_groups
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
    return Chosen(len(rollouts) * _PER_STEP, int(said[0]), seconds, peak, read, size)


def measure_appending(folder: Path, rounds: int) -> Appended:
    """Append `rounds` steps to the archive in `folder`, which may be empty."""
    archive = RolloutArchive(folder)
    first, seconds = archive.num_steps, []
    before = first * _PER_STEP
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

    folder: where they are written, some 0.9 KB an answer.
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
    """What was measured, for people; seconds and bytes of further answers say whether both are linear and pruned."""
    made = Table(title="Pairs chosen from an archive and written", box=SIMPLE_HEAD, pad_edge=False)
    for column in (
        "answers",
        "pairs",
        "seconds",
        "s a million more",
        "peak MB",
        "bar",
        "of MB",
        "read",
        "of a MB more",
    ):
        made.add_column(column, justify="right")
    for before, one in zip([None, *found.chosen], found.chosen, strict=False):
        more = "", ""
        if before is not None and one.answers > before.answers:
            seconds = (one.seconds - before.seconds) / (one.answers - before.answers) * 1e6
            more = f"{seconds:.1f}", f"{(one.read_mb - before.read_mb) / (one.archive_mb - before.archive_mb):.2f}"
        sizes = (f"{value:,.0f}" for value in (one.peak_mb, PEAK_BAR_MB, one.archive_mb, one.read_mb))
        made.add_row(f"{one.answers:,}", f"{one.pairs:,}", f"{one.seconds:.1f}", more[0], *sizes, more[1])
    yield made
    made = Table(title=f"A step of {_PER_STEP:,} answers appended", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("answers before", "ms a step", "once, on opening"):
        made.add_column(column, justify="right")
    for step in found.appended:
        made.add_row(f"{step.answers:,}", f"{step.milliseconds:.1f}", f"{step.open_seconds:.2f} s")
    yield made
