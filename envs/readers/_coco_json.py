"""Files in COCO's form for readers: entries found in one pass over the bytes, each parsed when it is asked for.

A file of a million annotations takes a second or two to open and little memory beyond its own bytes, which stay on
disk. Ids are text here, so that 7, 7.0 and "7" are one id and the text ids of some exports are ids too.
"""

import codecs
import json
import mmap
import reprlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from envs.readers._image_files import ImageFiles
from envs.readers.base import Findings, PhotoFile
from envs.reading import licence_names, plain_text, refuse_no_text
from envs.shapes import Shape, polygon_parts, shape_of

NO_MASK = "annotations without a mask (box alone)"
NO_PIXEL = "annotations that no pixel's centre is in"
NOT_READ = "annotations that cannot be read"
NO_PHOTO = "annotations of an image that is not in the file"
REPEATED = "entries whose id was there before"
SHORT_PART = "annotations with polygon parts of fewer than three points, those parts left out"
_REASONS = {
    "RLE size": f"{NOT_READ}: run lengths of another size than the image",
    "polygon part": f"{NOT_READ}: polygon parts that are no x, y, x, y, ... in pixels",
    "RLE counts": f"{NOT_READ}: run lengths that are none",
    "neither polygons nor RLE": f"{NOT_READ}: neither polygons nor run lengths",
}
"""By what an error of `shape_of` says, the reason for which an annotation is left out."""
_BIG = 256 << 20
"""Bytes from which on a file that is not strict JSON is refused: Python's own reader would take all memory."""


_LONGEST = 1 << 20
"""Pixels of a side from which on it is a mistake."""


class _File(msgspec.Struct):
    """The lists of a file, their entries unread."""

    images: list[msgspec.Raw] = []
    annotations: list[msgspec.Raw] = []
    categories: list[Any] = []
    licenses: Any = None


class _Head(msgspec.Struct):
    """What places an annotation."""

    id: int | float | str | None = None
    image_id: int | float | str | None = None


_HEAD = msgspec.json.Decoder(_Head)


@dataclass(frozen=True)
class CocoAnnotation:
    """One annotation that can be used."""

    id: str
    image_id: str
    category_id: str
    """Id of its class; "" where it has none."""
    crowd: bool
    """Whether `iscrowd` is 1."""
    shape: Shape
    """What it covers, by COCO's rule."""
    entry: Mapping[str, Any]
    """All that the file says of it."""


def id_text(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are "7"; "" for what is no id."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else ""
    return str(value) if isinstance(value, int) else value if isinstance(value, str) else ""


def file_bytes(path: Path) -> Any:
    """The bytes of a text file as UTF-8 without a byte order mark, left on disk where they can be.

    Raises FileNotFoundError, naming the path, where there is none.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; check the path (relative ones start from the working folder).")
    with path.open("rb") as file:
        head = file.read(4)
        if not head:
            return b""
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            return _as_utf8(path, json.detect_encoding(head))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped)[3:] if head.startswith(codecs.BOM_UTF8) else mapped


def _as_utf8(path: Path, encoding: str) -> bytes:
    try:
        return path.read_bytes().decode(encoding).lstrip("\ufeff").encode()
    except UnicodeError as error:
        raise ValueError(f"{path} is cut off or no text in {encoding} ({error}); export it again.") from error


class CocoJson:
    """One file with `images`, `annotations` and `categories`."""

    def __init__(self, path: Path, findings: Findings) -> None:
        """Open the file and index it.

        Raises FileNotFoundError where there is none, ValueError where it is not JSON of this form.
        """
        self.path, self._findings = path, findings
        data = _opened(path)
        self._annotations = data.annotations
        self.classes = {id_text(entry.get("id")): entry for entry in data.categories if isinstance(entry, dict)}
        """Entries of `categories` by id."""
        self._licences = licence_names({"licenses": data.licenses})
        self.images: dict[str, Mapping[str, Any]] = {}
        """Entries of `images` by id, in the order of the file."""
        for raw in data.images:
            entry = _parsed_or_none(raw)
            image_id = id_text(entry.get("id")) if isinstance(entry, dict) else ""
            if image_id and image_id not in self.images:
                self.images[image_id] = entry
            else:
                findings.leave_out(REPEATED if image_id else "images that cannot be read", reprlib.repr(entry))
        self._index()

    def _index(self) -> None:
        """Where the annotations of each image are."""
        self._ids: list[str] = []
        self._of_image: dict[str, array[int]] = {}
        seen = set()
        for place, raw in enumerate(self._annotations):
            try:
                head = _HEAD.decode(raw) if isinstance(raw, msgspec.Raw) else msgspec.convert(raw, _Head)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                head = _Head()
            ann_id, image_id = id_text(head.id), id_text(head.image_id)
            self._ids.append(ann_id)
            if not ann_id or ann_id in seen:
                self._findings.leave_out(REPEATED if ann_id else NOT_READ, ann_id or f"annotations[{place}]")
            elif image_id not in self.images:
                self._findings.leave_out(NO_PHOTO, f"{ann_id} (image {image_id or '?'})")
            else:
                seen.add(ann_id)
                self._of_image.setdefault(image_id, array("l")).append(place)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self._ids[place]: place for places in self._of_image.values() for place in places}

    def class_name(self, category_id: str) -> str:
        """The name of a class; "" where it has none."""
        return plain_text(self.classes.get(category_id, {}).get("name")).strip()

    def annotation_ids(self, image_id: str) -> list[str]:
        """Ids of all annotations of an image, those that cannot be used among them."""
        return [self._ids[place] for place in self._of_image.get(image_id, ())]

    def has(self, ann_id: str) -> bool:
        """Whether there is such an annotation, of an image that is there."""
        return ann_id in self._places

    def entry(self, ann_id: str) -> Mapping[str, Any]:
        """All that the file says of an annotation that is there; {} where it cannot be read."""
        found = _parsed_or_none(self._annotations[self._places[ann_id]])
        return found if isinstance(found, dict) else {}

    def annotation(self, ann_id: str) -> CocoAnnotation | str:
        """An annotation that is there; or, where it cannot be used, why, in words to count by."""
        entry = _parsed_or_none(self._annotations[self._places[ann_id]])
        if not isinstance(entry, dict):
            return NOT_READ
        image_id = id_text(entry.get("image_id"))
        height, width = sides(self.images[image_id])
        segmentation = entry.get("segmentation")
        if segmentation in (None, [], [[]], {}):
            return NO_MASK
        if not height:
            return "annotations of an image whose size is not recorded"
        try:
            shape = shape_of(segmentation, height, width, f"{self.path}: annotation {ann_id}")
        except ValueError as error:
            return _reason(error)
        if any(len(part) < 3 if _has_points(part) else len(part) < 6 for part in _lists(segmentation)):
            self._findings.note(SHORT_PART, ann_id)
        if not shape.holds_a_pixel(height, width):
            return NO_PIXEL
        crowd = entry.get("iscrowd") in (1, True, 1.0, "1")
        return CocoAnnotation(ann_id, image_id, id_text(entry.get("category_id")), crowd, shape, entry)

    def usable(self, image_id: str) -> Iterator[CocoAnnotation]:
        """The annotations of an image that can be used, in the order of the file; the others are told."""
        for ann_id in self.annotation_ids(image_id):
            found = self.annotation(ann_id)
            if isinstance(found, str):
                self._findings.leave_out(found, ann_id)
            else:
                yield found

    def photo(self, image_id: str, path: Path, upright: bool | None = None) -> PhotoFile:
        """The photo of an image entry, which lies in the file `path`."""
        entry = self.images[image_id]
        height, width = sides(entry)
        address = plain_text(entry.get("flickr_url")) or plain_text(entry.get("coco_url")) or path.name
        licence = self._licences.get(str(entry.get("license")), "unknown")
        return PhotoFile(image_id, path, height, width, address, licence, upright)

    def file_name(self, image_id: str) -> str:
        """The name of an image's file: `file_name`, else the last two parts of `coco_url`, as LVIS has it."""
        entry = self.images[image_id]
        name = plain_text(entry.get("file_name"))
        return name or "/".join(PurePosixPath(plain_text(entry.get("coco_url"))).parts[-2:])

    def found_photo(self, image_id: str, files: ImageFiles, questions: list[str]) -> Path | None:
        """The file of an image; None where it is missing, which is told with the questions that are lost by it."""
        return files.found(self.file_name(image_id) or f"image {image_id}", questions, self._findings)


def sides(entry: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) that an image was annotated at; (0, 0) where the entry does not say."""
    found = [entry.get(side) for side in ("height", "width")]
    numbers = [side for side in found if isinstance(side, int | float) and not isinstance(side, bool)]
    whole = [int(side) for side in numbers if 1 <= side < _LONGEST]
    return (whole[0], whole[1]) if len(whole) == 2 else (0, 0)


def _opened(path: Path) -> _File:
    refuse_no_text(str(path), "the path")
    data = file_bytes(path)
    try:
        return msgspec.json.decode(data, type=_File)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"{path} is not in COCO's form ({error}); it should map `images`, `annotations` and `categories` to lists."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if len(data) > _BIG:
            raise ValueError(f"{path} is not JSON ({error}); export it again.") from error
    try:  # what some tools write: NaN, Infinity
        loose = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error
    if not isinstance(loose, dict):
        raise ValueError(f"{path} is not in COCO's form: it holds no mapping, but {reprlib.repr(loose)}.")
    lists = [loose.get(key) for key in ("images", "annotations", "categories")]
    images, annotations, categories = ([*each] if isinstance(each, list) else [] for each in lists)
    return _File(images, annotations, categories, loose.get("licenses"))


def _parsed(raw: Any) -> Any:
    return msgspec.json.decode(raw) if isinstance(raw, msgspec.Raw) else raw


def _parsed_or_none(raw: Any) -> Any:
    """An entry; None for one with bytes or numbers that JSON does not have."""
    try:
        return _parsed(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _reason(error: ValueError) -> str:
    """What is wrong with a segmentation, in words to count by, of an error of `shape_of`."""
    said = str(error)
    for kind, reason in _REASONS.items():
        if kind in said:
            return reason
    return NOT_READ


def _lists(segmentation: Any) -> list[list[Any]]:
    return [part for part in polygon_parts(segmentation) if isinstance(part, list)]


def _has_points(part: list[Any]) -> bool:
    return bool(part) and isinstance(part[0], list)
