"""What a reader of a data set's files is: it tells photos one after the other, each with all that is asked about it.

A reader is one file of this folder whose class `Reader` is a frozen dataclass of its settings. It reads what the files
say and nothing else: no photo is opened and no pixel filled, so that it can be asked in one process and the photos be
worked on in many. What cannot be used is left out and told to `Findings`, with its id; a reader raises only where
nothing at all can be read.

Frames: pixels of the photo as it was annotated, x right, y down (envs/example.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MOST_KEPT = 1000
"""Ids that are kept of one kind of finding; more are only counted."""


class Shape(Protocol):
    """What an annotation covers, filled by the rule of its own format."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] its pixels, these being the size of the photo as it was annotated."""
        ...


@dataclass(frozen=True)
class PhotoFile:
    """One photo of a data set, by reference."""

    id: str
    """Id of the photo in the data set."""
    path: Path
    """The file."""
    height: int = 0
    """H that it was annotated at, pixels; 0 where the files do not say."""
    width: int = 0
    """W that it was annotated at, pixels; 0 where the files do not say."""
    source: str = ""
    """Address of the photo, or its name, for people."""
    licence: str = "unknown"
    """Short name of its licence (SPDX where there is one)."""
    upright: bool | None = None
    """Whether outlines lie on the photo turned upright by EXIF; None: as the recorded size says, else as stored."""


@dataclass(frozen=True)
class Reference:
    """One question about a photo, and what is true."""

    id: str
    """Unique in the data set, such as "22758/64727" (object and sentence)."""
    parts: tuple[str | Shape, ...]
    """The prompt in order: words, and regions that it points at."""
    masks: tuple[Shape, ...]
    """One for each object that is meant; () where nothing in the photo fits."""
    ignore: tuple[Shape, ...] = ()
    """What counts neither way, less the objects that are meant."""
    candidates: tuple[Shape, ...] = ()
    """Masks to choose from; () for a data set without."""


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo with every question of a split about it."""

    photo: PhotoFile
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class Found:
    """What a reader sees in a folder or a file."""

    what: str
    """In words, such as "RefCOCO: refs(unc).p and instances.json"."""
    certainty: int
    """How particular it is: 3, names or fields of this format alone; 2, its form; 1, a form that others have too."""


@dataclass
class Finding:
    """One kind of thing that was found, and of which entries."""

    count: int = 0
    """How many entries."""
    which: list[str] = field(default_factory=list)
    """The first MOST_KEPT of them."""

    def add(self, which: str) -> None:
        """One entry more."""
        self.count += 1
        if len(self.which) < MOST_KEPT:
            self.which.append(which)


class Findings:
    """What is wrong with the files of a data set, counted by reason while they are read."""

    def __init__(self) -> None:
        self.lost: dict[str, Finding] = {}
        """By reason, questions that cannot be asked: what the data set is thinned by."""
        self.left_out: dict[str, Finding] = {}
        """By reason, annotations, photos or parts that are not used; no question is lost by that alone."""
        self.noted: dict[str, Finding] = {}
        """By reason, what is used, but not as it stands, or what a user should look at."""

    def lose(self, reason: str, which: object) -> None:
        """A question that cannot be asked."""
        self.lost.setdefault(reason, Finding()).add(f"{which}")

    def leave_out(self, reason: str, which: object) -> None:
        """Something that is not used."""
        self.left_out.setdefault(reason, Finding()).add(f"{which}")

    def note(self, reason: str, which: object) -> None:
        """Something that is used otherwise than it stands, or looks odd."""
        self.noted.setdefault(reason, Finding()).add(f"{which}")

    @property
    def num_lost(self) -> int:
        """Questions that cannot be asked, over all reasons."""
        return sum(finding.count for finding in self.lost.values())

    def add(self, others: "Findings") -> None:
        """Take in what was found elsewhere, as by another process."""
        for mine, theirs in ((self.lost, others.lost), (self.left_out, others.left_out), (self.noted, others.noted)):
            for reason, finding in theirs.items():
                kept = mine.setdefault(reason, Finding())
                kept.count += finding.count
                kept.which += finding.which[: MOST_KEPT - len(kept.which)]

    def as_json(self) -> dict[str, Mapping[str, Mapping[str, object]]]:
        """{lost, left_out, noted}: by reason {count, which}, in terms of JSON."""
        return {
            name: {reason: {"count": one.count, "which": one.which} for reason, one in kind.items()}
            for name, kind in (("lost", self.lost), ("left_out", self.left_out), ("noted", self.noted))
        }


class Reader(Protocol):
    """The files of one data set, as its users have them on disk."""

    path: str
    """Folder or file of the data set."""
    images: str | None
    """Folder of the photos where they do not lie where this format has them; None to look there."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """What of `path`, a folder or a file, is of this format, told by names and the first bytes of files alone."""
        ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, as the data set has them.

        Raises FileNotFoundError or ValueError where nothing can be read: what was looked for, what was found, and the
        nearest thing to it.
        """
        ...

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """The photos that a split asks about, each once, in an order that depends on the files alone.

        A photo whose file is missing is told to `findings` with the questions that are lost by it, and not given.
        Raises ValueError for a split that is not there, naming those that are.
        """
        ...
