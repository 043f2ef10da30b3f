"""Photos of held-out splits: what must not be trained on, whatever file or name it comes under.

Validation and test photos of the RefCOCO family are train photos of COCO, so every set over COCO may leak them. A photo
is the same by COCO's number in its name, under either release's spelling, or by the bytes of its file.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from envs.readers.base import AnnotatedPhoto, Findings
from envs.shards.files import CARD, read_card
from rl.sources.source import Source, source_of

LEAK = "photos that are held out elsewhere (--against)"
_COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:_\d+)?\.jpg")
_TRAIN = "train"


def is_held_out(split: str) -> bool:
    """Whether a split is for choosing or testing: every one that is not called train, such as Train or train2017."""
    return not split.casefold().startswith(_TRAIN)


class HeldOut:
    """Photos that must not be trained on, by number and by content."""

    def __init__(self) -> None:
        self._by_number: dict[str, str] = {}
        self._by_size: dict[int, list[tuple[Path, str]]] = {}
        self._sha256: dict[Path, bytes] = {}

    @classmethod
    def of(cls, against: Sequence[Path]) -> "HeldOut":
        """Photos of all held-out splits of data sets, each prepared shards or the files of a data set.

        Raises FileNotFoundError or ValueError for what is neither, and for one without a held-out photo that is there.
        """
        held = cls()
        for path in against:
            found = list(_held_out_photos(path))
            if not found:
                raise ValueError(
                    f"--against {path} has no held-out photo: its splits are for training alone, or their photos are "
                    "not where the format has them; give another data set, or prepare this one and give that."
                )
            for split, photo in found:
                held.add(photo, f"{path}, split {split}")
        return held

    @property
    def is_empty(self) -> bool:
        """Whether no photo is held out."""
        return not self._by_number and not self._by_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 over numbers, names and sizes of all photos, wherever they lie."""
        files = sorted(f"{photo.name}:{size}" for size, found in self._by_size.items() for photo, _ in found)
        told = "\n".join([*sorted(self._by_number), *files])
        return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()

    def add(self, photo: Path, where: str) -> None:
        """A photo that is held out; where: of which data set, for people."""
        if number := coco_number(photo):
            self._by_number.setdefault(number, where)
        if photo.is_file():
            self._by_size.setdefault(photo.stat().st_size, []).append((photo, where))

    def where(self, photo: Path) -> str | None:
        """Where a photo is held out, and by what it was known; None where it is not."""
        number = coco_number(photo)
        if number and number in self._by_number:
            return f"{self._by_number[number]}, by its number"
        alike = self._by_size.get(photo.stat().st_size, []) if photo.is_file() else []
        for other, where in alike:
            if self._content(other) == self._content(photo):
                return f"{where}, by its content"
        return None

    def _content(self, path: Path) -> bytes:
        if path not in self._sha256:
            self._sha256[path] = hashlib.sha256(path.read_bytes()).digest()
        return self._sha256[path]

    def without(self, photos: Iterator[AnnotatedPhoto], findings: Findings) -> Iterator[AnnotatedPhoto]:
        """The photos that are not held out; the others are told, with where they are."""
        for photo in photos:
            where = self.where(photo.photo.path)
            if where is None:
                yield photo
            else:
                findings.leave_out(LEAK, f"{photo.photo.path} ({where})")


def coco_number(photo: Path) -> str:
    """COCO's number of a photo by its name, twelve digits; "" for a name of another kind."""
    match = _COCO_NUMBER.fullmatch(photo.name)
    return match[1] if match else ""


def _held_out_photos(path: Path) -> Iterator[tuple[str, Path]]:
    if any(path.glob(f"*/{CARD}")):
        for card in sorted(path.glob(f"*/{CARD}")):
            if is_held_out(card.parent.name):
                yield from ((card.parent.name, photo) for photo in _prepared_photos(path, card.parent.name))
        return
    reader = source_of(path).reader()
    for split in filter(is_held_out, reader.splits()):
        yield from ((split, photo.photo.path) for photo in reader.photos(split, Findings()))


def _prepared_photos(folder: Path, split: str) -> Iterator[Path]:
    for shard in read_card(folder, split).shards:
        keys = pq.read_table(folder / split / shard.name, columns=["image_key", "image_file"])
        found = dict.fromkeys(row["image_file"] or row["image_key"] for row in keys.to_pylist())
        yield from map(Path, found)


def shared_photos(source: Source, splits: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Photos that are asked about in train and in a held-out split of one data set, by the held-out split."""
    reader = source.reader()
    photos = {split: {photo.photo.path for photo in reader.photos(split, Findings())} for split in splits}
    trained = set[Path]().union(*(found for split, found in photos.items() if not is_held_out(split)))
    shared = {split: sorted(map(str, found & trained)) for split, found in photos.items() if is_held_out(split)}
    return {split: found for split, found in shared.items() if found}
