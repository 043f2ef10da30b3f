"""`polytrace archive ls`: what is in the archives of some runs, a line per run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.polygons import AnswerStatus
from rollout.archive.archive import RolloutArchive
from rollout.archive.shards import open_shard, schema_version
from rollout.archive.table import TABLES, ShardTable

_VALID = pa.array([status.value for status in AnswerStatus if status.valid])


@dataclass(frozen=True)
class ArchivedRun:
    """What the archive of a run comes to."""

    run: str
    """Folder of the run."""
    steps: int
    answers: int
    examples: int
    mean_iou: float | None
    """Mean IoU over all answers; None where there is none."""
    valid_share: float | None
    """Share of the answers whose status is ok or empty."""
    shards: int
    """Number of shards of both tables."""
    size_bytes: int
    """Size of the shards of both tables; what was set aside is left out."""
    schema: str
    """Schema versions of the shards."""
    being_written: bool
    """Whether a run is writing to it now."""


def list_runs(runs: Sequence[Path], console: Console) -> list[ArchivedRun]:
    """A line per run, reading two columns of its answers; progress on `console`. Raises ValueError for a torn shard."""
    return [_summary(run, console) for run in runs]


def _summary(run: Path, console: Console) -> ArchivedRun:
    archive = RolloutArchive(run / "archive")
    paths = [shard.path for name in TABLES for shard in ShardTable(archive.folder, name).shards()]
    answers, iou, valid = 0, 0.0, 0
    for num, iou_sum, num_valid in track(
        _sums(archive), f"reading {run}", total=archive.num_steps, console=console, transient=True
    ):
        answers, iou, valid = answers + num, iou + iou_sum, valid + num_valid
    return ArchivedRun(
        run=str(run),
        steps=archive.num_steps,
        answers=answers,
        examples=sum(batch.num_rows for batch in archive.examples(["height"])),
        mean_iou=iou / answers if answers else None,
        valid_share=valid / answers if answers else None,
        shards=len(paths),
        size_bytes=sum(path.stat().st_size for path in paths),
        schema=" and ".join(sorted({_schema(path) for path in paths})),
        being_written=archive.being_written,
    )


def _sums(archive: RolloutArchive) -> Iterator[tuple[int, float, int]]:
    """Number, sum of IoU and number of valid answers of each batch."""
    for batch in archive.rollouts(["iou", "status"]):
        valid = pc.sum(pc.is_in(batch["status"], value_set=_VALID)).as_py()
        yield batch.num_rows, pc.sum(batch["iou"]).as_py(), valid


def _schema(path: Path) -> str:
    with open_shard(path) as file:
        return schema_version(file)


def table(found: Sequence[ArchivedRun]) -> Table:
    """The lines for people."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("run", overflow="fold", min_width=18)
    for column in ("steps", "answers", "examples", "mean IoU", "valid", "size", "schema"):
        made.add_column(column, justify="right", no_wrap=True)
    for one in found:
        name = f"{one.run} (being written)" if one.being_written else one.run
        iou = "none" if one.mean_iou is None else f"{one.mean_iou:.3f}"
        share = "none" if one.valid_share is None else f"{100 * one.valid_share:.1f} %"
        counts = (f"{count:,}" for count in (one.steps, one.answers, one.examples))
        made.add_row(name, *counts, iou, share, _size(one.size_bytes), one.schema)
    return made


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
