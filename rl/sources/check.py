"""`polytrace data check`: what a data set is, what of it cannot be used and why, before anything is trained on it.

Every photo is opened and every mask filled, as preparing would do, but nothing is written; `quick` reads annotations
and looks for the photos alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs.images import View
from envs.readers.base import AnnotatedPhoto, Finding, Findings, Reference
from envs.shapes import PolygonShape
from envs.shards.from_photos import Shown
from rl.pages.progress import StepProgress
from rl.sources.leaks import HeldOut, is_held_out, shared_photos
from rl.sources.outlines import crossings
from rl.sources.prepare import by_count, share_lost
from rl.sources.source import Source
from rollout.photo_shards import drawn_in_order

CROSSES = "rings that cross themselves, filled by the rule of the format"
OUTSIDE = "rings with a vertex more than a pixel outside of the photo"
SAID_TWICE = "questions that a photo is asked twice, with the same masks"
TWO_TRUTHS = "questions that a photo is asked twice, with other masks"
_MOST_SHOWN, _FEW = 12, 4


@dataclass
class SplitCount:
    """How much a split holds."""

    photos: int = 0
    """Photos that are asked about."""
    questions: int = 0
    """Questions that can be asked."""
    nothing: int = 0
    """Questions among these that mean nothing in the photo."""
    masks: int = 0
    """Masks of all questions; one that several questions mean counts for each."""
    lost: int = 0
    """Questions that cannot be asked."""


@dataclass
class Report:
    """What was found of one data set."""

    path: str
    format: str
    what: str
    """What the reader sees there, in words."""
    splits: dict[str, SplitCount] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    shared: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Photos of train that a held-out split asks about too, by that split."""

    @property
    def questions(self) -> int:
        """Questions of all splits that can be asked."""
        return sum(split.questions for split in self.splits.values())

    @property
    def exit_status(self) -> int:
        """0 for a clean data set, 1 where something was left out, is held out and trained on, or a split is empty, 2
        where nothing can be used."""
        if not self.questions:
            return 2
        empty = any(not split.questions for split in self.splits.values())
        return 1 if empty or self.findings.lost or self.findings.left_out or self.shared else 0

    def as_json(self) -> dict[str, Any]:
        """The report in terms of JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "what": self.what,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "share_lost": share_lost(self.findings.num_lost, self.questions),
            "findings": self.findings.as_json(),
            "photos_of_train_that_are_held_out": dict(self.shared),
            "problem": None,
            "exit_status": self.exit_status,
        }


def unreadable_json(path: Path, error: Exception) -> dict[str, Any]:
    """What stands in place of a Report in terms of JSON where a data set cannot be read at all; error: why not."""
    return {"path": f"{path}", "problem": f"{error}", "exit_status": 2}


def check_source(
    source: Source, splits: Sequence[str], held_out: HeldOut, processes: int, quick: bool, console: Console
) -> Report:
    """Read a data set, and, unless `quick`, open its photos and fill its masks.

    held_out: photos that no train split may have. Raises what the reader raises where nothing can be read.
    """
    report = Report(str(source.path), source.format, source.what)
    reader = source.reader()
    for split in splits:
        findings, count = Findings(), SplitCount()
        photos = _looked_at(reader.photos(split, findings), findings)
        if not is_held_out(split):
            photos = held_out.without(photos, findings)
        with StepProgress(console, f"checking {split}", None, transient=True) as progress:
            for done, kept in enumerate(_kept(photos, Shown(View(), "check", split), findings, processes, quick), 1):
                _count(kept, count)
                progress.update(done)
        count.lost = findings.num_lost
        report.splits[split] = count
        report.findings.add(findings)
    report.shared = shared_photos(source, splits)
    return report


def _kept(
    photos: Iterator[AnnotatedPhoto], shown: Shown, findings: Findings, processes: int, quick: bool
) -> Iterator[list[Reference]]:
    """Questions of every photo that can be asked; what drawing finds is told."""
    if quick:
        yield from (list(photo.references) for photo in photos)
        return
    for photo, made in drawn_in_order(photos, shown, False, processes):
        findings.add(made.findings)
        drawn = {row["example_id"] for row in made.rows}
        yield [one for one in photo.references if f"{shown.data_set}/{one.id}" in drawn]


def _count(kept: Sequence[Reference], count: SplitCount) -> None:
    count.photos += bool(kept)
    count.questions += len(kept)
    count.nothing += sum(not one.masks for one in kept)
    count.masks += sum(len(one.masks) for one in kept)


def _looked_at(photos: Iterator[AnnotatedPhoto], findings: Findings) -> Iterator[AnnotatedPhoto]:
    """The photos as they come, what looks odd about their outlines and questions told."""
    for photo in photos:
        _note_outlines(photo, findings)
        _note_repeated(photo, findings)
        yield photo


def _note_outlines(photo: AnnotatedPhoto, findings: Findings) -> None:
    height, width = photo.photo.height, photo.photo.width
    if not height:
        return
    drawn = {id(shape): (one.id, shape) for one in photo.references for shape in one.masks}
    for question, shape in drawn.values():
        if not isinstance(shape, PolygonShape) or not len(shape.vertices):
            continue
        for found in crossings(shape, height, width):
            findings.note(CROSSES, f"{question} ({found.told})")
        low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
        if (low < -1).any() or high[0] > width + 1 or high[1] > height + 1:
            findings.note(OUTSIDE, question)


def _note_repeated(photo: AnnotatedPhoto, findings: Findings) -> None:
    first: dict[tuple[object, ...], Reference] = {}
    for one in photo.references:
        words = tuple(part.casefold() if isinstance(part, str) else id(part) for part in one.parts)
        other = first.setdefault(words, one)
        if other is not one:
            same = [*map(id, other.masks)] == [*map(id, one.masks)]
            findings.note(SAID_TWICE if same else TWO_TRUTHS, f"{one.id} and {other.id}")


def report_tables(report: Report) -> Iterator[Table]:
    """Counts by split, then what was found, the most frequent first."""
    named = report.what.casefold().startswith(report.format)
    title = escape(report.what if named else f"{report.format}: {report.what}")
    counts = Table("split", "photos", "questions", "nothing true", "masks", "lost", title=title)
    for column in counts.columns[1:]:
        column.justify = "right"
    for name, split in report.splits.items():
        share = f"{split.lost:,} ({share_lost(split.lost, split.questions):.1%})"
        cells = (f"{number:,}" for number in (split.photos, split.questions, split.nothing, split.masks))
        counts.add_row(escape(name), *cells, share)
    yield counts
    found = report.findings
    for title, kind in (
        ("Questions that cannot be asked", found.lost),
        ("Not used", found.left_out),
        ("Used, but worth a look", found.noted),
    ):
        if kind:
            yield _findings_table(title, kind)
    if report.shared:
        shared = {f"photos of train that {split} asks about too": which for split, which in report.shared.items()}
        yield _findings_table("Held out and trained on", {k: Finding(len(v), list(v)) for k, v in shared.items()})


def _findings_table(title: str, found: Mapping[str, Finding]) -> Table:
    table = Table("how many", "what", "which", title=title)
    table.columns[0].justify = "right"
    for reason, one in by_count(found)[:_MOST_SHOWN]:
        more = f" and {one.count - _FEW:,} more" if one.count > _FEW else ""
        table.add_row(f"{one.count:,}", escape(reason), escape(", ".join(one.which[:_FEW])) + more)
    return table
