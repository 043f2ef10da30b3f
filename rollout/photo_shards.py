"""Example shards written of a reader's photos, as they are read: many processes draw, one writes, and none holds all.

The files are the same for any number of processes. A preparation that was stopped reads the annotations again, passes
over the photos that are written, and goes on with the next.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from envs.readers.base import AnnotatedPhoto, Finding, Findings, Reference
from envs.shards.from_photos import Shown, shown_photo
from envs.shards.rows import Scene, example_row, png_of
from rollout.disk import replace_text
from rollout.shard_writer import About, ShardWriter

_PHOTOS_A_TASK = 16
_TASKS_AHEAD = 4
"""Tasks of a process that wait or are done: what bounds the memory."""
_PROGRESS = "photos-{:05d}.json"


@dataclass(frozen=True)
class Drawn:
    """What one photo became."""

    rows: list[dict[str, Any]]
    """Rows of the photo's examples, their place in the split still open."""
    findings: Findings


@dataclass
class _Progress:
    """How far a split is written; kept beside each shard."""

    photos: int = 0
    """Photos that were read and drawn."""
    digest: str = ""
    """SHA-256 over their questions, in words and numbers of masks, by which it shows that the files are the same."""
    fingerprint: str = ""
    """SHA-256 over the rows."""
    lost: dict[str, Any] = field(default_factory=dict)
    """What drawing found, as JSON."""


def drawn(photos: Iterable[AnnotatedPhoto], shown: Shown, embed: bool) -> list[Drawn]:
    """Rows of some photos; embed: with their pixels as PNG in the first row of each."""
    return [_drawn(photo, shown, embed) for photo in photos]


def _drawn(photo: AnnotatedPhoto, shown: Shown, embed: bool) -> Drawn:
    findings = Findings()
    found = shown_photo(photo, shown, findings)
    if found is None:
        return Drawn([], findings)
    file, size = None if embed else found.file, len(found.examples)
    png = png_of(found.image) if embed and size else None
    rows = [
        example_row(example, Scene(0, size), file, None if place else png)
        for place, example in enumerate(found.examples)
    ]
    return Drawn(rows, findings)


def drawn_in_order(
    photos: Iterator[AnnotatedPhoto], shown: Shown, embed: bool, processes: int
) -> Iterator[tuple[AnnotatedPhoto, Drawn]]:
    """Every photo with what it became, in the order of the photos; in this process alone where `processes` is 1."""
    tasks = iter(lambda: list(islice(photos, _PHOTOS_A_TASK)), [])
    if processes <= 1:
        for task in tasks:
            yield from zip(task, drawn(task, shown, embed), strict=True)
        return
    waiting: deque[tuple[list[AnnotatedPhoto], Future[list[Drawn]]]] = deque()
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        for task in tasks:
            waiting.append((task, pool.submit(drawn, task, shown, embed)))
            if len(waiting) > processes * _TASKS_AHEAD:
                begun, result = waiting.popleft()
                yield from zip(begun, result.result(), strict=True)
        for begun, result in waiting:
            yield from zip(begun, result.result(), strict=True)


class PhotoWriter:
    """One split of a data set, written photo by photo."""

    def __init__(self, folder: Path, shown: Shown, provenance: Mapping[str, Any], embed: bool) -> None:
        """Begin in `folder`, that of the split, or go on there.

        provenance: the reader and its settings, in terms of JSON. embed: write pixels into the shards. Raises
        ValueError where the folder holds something else.
        """
        view = asdict(shown.view) | {"data_set": shown.data_set}
        self._shards = ShardWriter(folder, {**provenance, **view, "embedded": embed}, None)
        self._shown, self._embed = shown, embed
        self._progress, self._findings, self._words = _Progress(), Findings(), set[str]()
        if self._shards.num_shards and not self.is_whole:
            self._go_on()

    @property
    def is_whole(self) -> bool:
        """Whether the split is prepared already."""
        return self._shards.is_whole

    @property
    def num_photos(self) -> int:
        """Photos that are written."""
        return self._progress.photos

    def _go_on(self) -> None:
        path = self._shards.folder / _PROGRESS.format(self._shards.num_shards - 1)
        held = json.loads(path.read_text(encoding="utf-8"))
        self._progress = _Progress(**held)
        self._findings.add(findings_of(self._progress.lost))
        for shard in range(self._shards.num_shards):
            table = pq.read_table(self._shards.folder / f"examples-{shard:05d}.parquet", columns=["prompt"])
            self._words |= {word for parts in table.column("prompt").to_pylist() for word in _words(parts)}

    def write(self, photos: Iterator[AnnotatedPhoto], findings: Findings, processes: int) -> Iterator[int]:
        """Write what is not written yet, and the card; gives the number of photos after each of them.

        findings: what reading and drawing found wrong goes there. Raises ValueError where photos that were written
        before are not those that are read now.
        """
        self._pass_over(photos)
        for photo, made in drawn_in_order(photos, self._shown, self._embed, processes):
            self._add(photo, made)
            yield self._progress.photos
        if self._shards.has_gathered or not self._shards.num_shards:
            self._end_shard()
        findings.add(self._findings)
        notes = {reason: one.which for kind in (findings.lost, findings.left_out) for reason, one in kind.items()}
        notes |= {reason: one.which for reason, one in findings.noted.items()}
        self._shards.finish(About(self._progress.fingerprint, notes, self._words, findings.num_lost))
        for path in self._shards.folder.glob("photos-*.json"):
            path.unlink()

    def _pass_over(self, photos: Iterator[AnnotatedPhoto]) -> None:
        digest = ""
        for photo in islice(photos, self._progress.photos):
            digest = _next_digest(digest, photo)
        if digest != self._progress.digest:
            raise ValueError(
                f"{self._shards.folder} was begun with other annotations: the first {self._progress.photos:,} photos "
                "asked something else; delete the folder of the split, or give another by --out."
            )

    def _add(self, photo: AnnotatedPhoto, made: Drawn) -> None:
        progress, place = self._progress, self._shards.num_rows
        key = made.rows[0]["image_key"] if made.rows else ""
        if key in self._shards.scenes:
            raise ValueError(f"{key} comes a second time; a reader gives each photo once, with all that is asked.")
        for row in made.rows:
            self._shards.order.append(self._shards.num_rows)
            self._words.update(_words(row["prompt"]))
            progress.fingerprint = next_fingerprint(progress.fingerprint, row)
            self._shards.add_row(row | {"scene_row": place})
        self._findings.add(made.findings)
        progress.photos, progress.digest = progress.photos + 1, _next_digest(progress.digest, photo)
        if self._shards.is_full:
            self._end_shard()

    def _end_shard(self) -> None:
        """Write how far the split is, then the shard; the last one too, since the card comes after it."""
        self._progress.lost = self._findings.as_json()
        path = self._shards.folder / _PROGRESS.format(self._shards.num_shards)
        replace_text(path, json.dumps(asdict(self._progress)))
        self._shards.write_shard()


def findings_of(kept: Mapping[str, Any]) -> Findings:
    """Findings from their JSON."""
    findings = Findings()
    for name, mine in (("lost", findings.lost), ("left_out", findings.left_out), ("noted", findings.noted)):
        mine.update({reason: Finding(one["count"], one["which"]) for reason, one in kept.get(name, {}).items()})
    return findings


def next_fingerprint(fingerprint: str, row: Mapping[str, Any]) -> str:
    """SHA-256 over the one before and what a row asks and holds true; for its pixels stands their hash."""
    apart = {"image_png", "image_key", "image_file", "scene_row"}
    told = [(name, value) for name, value in row.items() if name not in apart]
    return hashlib.sha256(f"{fingerprint}{told!r}".encode("utf-8", "surrogateescape")).hexdigest()


def _next_digest(digest: str, photo: AnnotatedPhoto) -> str:
    told = [f"{photo.photo.path}", *map(_told, photo.references)]
    return hashlib.sha256(f"{digest}{told!r}".encode("utf-8", "surrogateescape")).hexdigest()


def _told(one: Reference) -> tuple[object, ...]:
    """What a question says before any mask of it is filled."""
    words = [part if isinstance(part, str) else None for part in one.parts]
    return one.id, words, len(one.masks), len(one.ignore), len(one.candidates)


def _words(parts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (word for part in parts if part["kind"] == "text" for word in part["text"].split())
