"""Reader: ReasonSeg, as `train`, `val` and `test` folders of photos, each with a JSON file in labelme's form beside it.

The rule of its authors is kept: shapes are drawn by OpenCV's rule over one another, the largest first, so that what is
small lies above; a label with "ignore" in it counts neither way, one that is "flag" is passed over, all others are the
target. The target is one mask, as the files do not tell objects apart. A file without shapes has an empty truth.
Outlines lie on the photo turned upright; the size in the file is not looked at.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from envs.ranges import one_of
from envs.readers._by_photo import refuse_unknown_split
from envs.readers._drawn import IGNORED, TARGET, DrawnShape, cut_to_pixels, flat_corners
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._loose_json import json_of, points_of
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text

NO_TEXT = "files without a text to ask"
UNREADABLE = "files that cannot be read"
BAD_SHAPE = "questions about a photo of which a shape cannot be read"
NO_SHAPE = "files without a shape, whose truth is empty"
_SPLITS = ("train", "val", "test")
_ROOTS = ("", "ReasonSeg", "reason_seg/ReasonSeg", "reason_seg")
_LOOKED_AT, _NUM_BYTES = 3, 1 << 16
"""Files of a folder that are looked at, and bytes of their beginnings and ends."""
_SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png")


@dataclass(frozen=True)
class Reader:
    """The folder `ReasonSeg` with one folder for each split, or the folder of one split."""

    path: str
    """The folder."""
    images: str | None = None
    """Folder of the photos, or of folders for each split; None where they lie beside their JSON files."""
    text: Annotated[str, one_of("auto", "all", "first")] = "auto"
    """Which texts of a photo are asked: all, the first, or for `auto` all of train and the first of the others."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Folders of splits, or one, whose JSON files have a text and shapes."""
        found = _folders(path)
        return Found(f"ReasonSeg: photos with a text and shapes ({', '.join(found)})", 3) if found else None

    def splits(self) -> tuple[str, ...]:
        """Splits among train, val and test that are there; the name of the folder where it is of one split."""
        return tuple(self._found)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of the names of their files."""
        refuse_unknown_split(split, self.splits(), self.path)
        folder = self._found[split]
        images = [Path(self.images) / split, Path(self.images)] if self.images is not None else []
        files = ImageFiles([*images, folder])
        for file in sorted(folder.glob("*.json")):
            entry = _entry(file, findings)
            found = tuple(self._references(split, file, entry, findings)) if entry is not None else ()
            path = found and _photo_file(file.stem, files, [one.id for one in found], findings)
            if path:
                yield AnnotatedPhoto(PhotoFile(f"{split}/{file.stem}", path, source=path.name, upright=True), found)

    def _references(self, split: str, file: Path, entry: Mapping[str, Any], findings: Findings) -> Iterator[Reference]:
        said = entry.get("text")
        texts = [plain_text(text).strip() for text in (said if isinstance(said, list) else [said])]
        wanted = texts if self.text == "all" or (self.text == "auto" and split == "train") else texts[:1]
        questions = [(f"{split}/{file.stem}/{place}", text) for place, text in enumerate(wanted) if text]
        if not questions:
            findings.lose(NO_TEXT, f"{split}/{file.stem}")
            return
        try:
            masks, ignore = _shapes(entry.get("shapes"))
        except ValueError as error:
            for question, _ in questions:
                findings.lose(BAD_SHAPE, f"{question} ({error})")
            return
        if not masks and not ignore:
            findings.note(NO_SHAPE, f"{split}/{file.stem}")
        yield from (Reference(question, (text,), masks, ignore) for question, text in questions)

    @cached_property
    def _found(self) -> dict[str, Path]:
        found = _folders(Path(self.path))
        if not found:
            wanted = (
                "the folder ReasonSeg with folders train, val or test of <name>.jpg and <name>.json with text, shapes"
            )
            raise nothing_here(Path(self.path), wanted, self.recognise)
        return found


def _folders(path: Path) -> dict[str, Path]:
    """Folders of splits by name."""
    for root in _ROOTS:
        found = {split: path / root / split for split in _SPLITS if _is_split(path / root / split)}
        if found:
            return found
    return {path.name or path.resolve().name: path} if _is_split(path) else {}


def _is_split(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_of_this_format, islice(folder.glob("*.json"), _LOOKED_AT)))


def _is_of_this_format(file: Path) -> bool:
    """Whether a file has the field that no other format has, before its shapes or behind them."""
    with file.open("rb") as opened:
        start = opened.read(_NUM_BYTES)
        opened.seek(max(file.stat().st_size - _NUM_BYTES, 0))
        return b'"is_sentence"' in start or b'"is_sentence"' in opened.read()


def _entry(file: Path, findings: Findings) -> Mapping[str, Any] | None:
    """What a file says, in UTF-8 or, as some of the set are, in cp1252."""
    try:
        found = json_of(file)
    except ValueError as error:
        try:
            found = json.loads(file.read_bytes().decode("cp1252"))
        except (ValueError, RecursionError):
            findings.lose(UNREADABLE, f"{file} ({error})")
            return None
    if isinstance(found, dict):
        return found
    findings.lose(UNREADABLE, f"{file} (it holds no mapping)")
    return None


def _shapes(listed: Any) -> tuple[tuple[DrawnShape, ...], tuple[DrawnShape, ...]]:
    """(target, what counts neither way), each one shape or none.

    Raises ValueError where a shape cannot be read: without it nobody knows what is true.
    """
    if listed is not None and not isinstance(listed, list):
        raise ValueError("shapes is no list")
    drawn, kinds = [], []
    for shape in listed or []:
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise ValueError("a shape has no label")
        if label.lower() != "flag":
            drawn.append(cut_to_pixels(_corners(shape.get("points"))))
            kinds.append(IGNORED if "ignore" in label.lower() else TARGET)
    corners, offsets = flat_corners(iter(drawn))
    masks = (DrawnShape(corners, offsets, tuple(kinds), TARGET),) if TARGET in kinds else ()
    return masks, (DrawnShape(corners, offsets, tuple(kinds), IGNORED),) if IGNORED in kinds else ()


def _corners(points: Any) -> list[tuple[float, float]]:
    corners = points_of(points)
    if not corners:
        raise ValueError("a shape has no points")
    return corners


def _photo_file(stem: str, files: ImageFiles, questions: list[str], findings: Findings) -> Path | None:
    found = next(filter(None, (files.find(f"{stem}{suffix}") for suffix in _SUFFIXES)), None)
    return found or files.found(f"{stem}.jpg", questions, findings)
