"""A file of annotations in COCO's form, read and checked: photos, classes and annotated regions.

What cannot be used is a mistake that names file, entry and value; what has no pixel to ask for is left out and noted.
"""

import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from envs.reading import Reading, entries, field, licence_names, plain_text, refuse_no_text
from envs.shapes import Shape, polygon_parts, shape_of

NO_MASK = "annotations without a mask (box alone), left out"
NO_PIXEL = "annotations without a pixel (no pixel's centre is inside), left out"
SHORT_PART = "annotations with polygon parts of fewer than 3 points, those parts left out"


@dataclass(frozen=True)
class Photo:
    """One entry of `images`."""

    id: int
    """Number in the file."""
    path: str
    """Where the photo lies."""
    height: int
    """H that it was annotated at, pixels; 0 where the file does not say."""
    width: int
    """W that it was annotated at, pixels; 0 where the file does not say."""
    source: str
    """Address of the photo, and the file that annotates it."""
    licence: str
    """SPDX name of its licence where known."""


@dataclass(frozen=True)
class Region:
    """One entry of `annotations`."""

    id: int
    """Number in the file."""
    image_id: int
    """Photo that it is drawn on."""
    category_id: int
    """Class of what it covers."""
    crowd: bool
    """Whether it covers a group instead of one object."""
    shape: Shape
    """What it covers."""


@dataclass(frozen=True)
class Annotated:
    """What a file of annotations holds."""

    photos: Mapping[int, Photo]
    """By id."""
    classes: dict[int, str]
    """Name by id, "" where there is none."""
    regions: dict[int, Region]
    """By id; each has at least one pixel."""
    unseen: dict[int, tuple[int, int]]
    """(image id, class id) by id of annotations without a pixel: objects that are there and cannot be asked for."""
    unusable_photos: set[int]
    """Ids of photos that a mistake was told of."""
    unusable: set[int]
    """Ids of annotations that a mistake was told of."""

    @cached_property
    def class_of(self) -> dict[int, int]:
        """By class id, the first class of the same name; itself where it has no name."""
        first: dict[str, int] = {}
        return {k: first.setdefault(phrase_key(name) or f"#{k}", k) for k, name in sorted(self.classes.items())}


@lru_cache(maxsize=4096)
def phrase_key(phrase: str) -> str:
    """What two phrases that ask for the same have in common.

    Letter case, white space, Unicode's forms of one letter and what is not seen make no difference. "" for a phrase
    that says nothing.
    """
    letters = unicodedata.normalize("NFKC", phrase).casefold()
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter) != "Cf").split())


def photo_entries(data: Any, path: str, folder: Path, reading: Reading) -> dict[int, Photo | None]:
    """Photos of the file `path`, which holds `data`, by id; None for an entry with a mistake.

    They lie below `folder` and are not opened.
    """
    licences = licence_names(data)
    return {
        photo_id: reading.tried(_photo, photo_id, where, entry, (path, folder), licences)
        for photo_id, where, entry in entries(data, "images", path, reading)
    }


def _photo(
    photo_id: int, where: str, entry: dict[str, Any], place: tuple[str, Path], licences: Mapping[str, str]
) -> Photo:
    path, folder = place
    file_name = field(entry, "file_name", str, where)
    sides = [field(entry, side, int, where) if entry.get(side) else 0 for side in ("height", "width")]
    if min(sides) < 0:
        raise ValueError(f"{where}: height {sides[0]} and width {sides[1]} should be pixels; correct them.")
    height, width = sides if all(sides) else (0, 0)
    address = plain_text(entry.get("flickr_url")) or plain_text(entry.get("coco_url")) or file_name
    source = f"{address} (annotated in {Path(path).name})"
    licence = licences.get(str(entry.get("license")), "unknown")
    return Photo(photo_id, str(_file_below(folder, file_name, where)), height, width, source, licence)


def _file_below(folder: Path, file_name: str, where: str) -> Path:
    """The file of a photo; backslashes, as Windows writes paths, part folders where no file has them in its name."""
    path = folder / file_name
    try:
        return folder / file_name.replace("\\", "/") if "\\" in file_name and not path.is_file() else path
    except OSError as error:
        raise ValueError(f"{where}: file_name {reprlib.repr(file_name)}: {error.strerror}; correct it.") from error


class RegionReader:
    """Reads the annotations of one file about photos that were looked at before."""

    def __init__(
        self, data: Any, path: str, photos: Mapping[int, Photo], unusable: set[int], needs_classes: bool
    ) -> None:
        """Prepare to read `data`, which `path` holds.

        unusable: ids of photos that a mistake was told of. needs_classes: whether annotations must name their class.
        """
        self._data, self._path, self._photos, self._unusable = data, path, photos, unusable
        self._needs_classes = needs_classes or (isinstance(data, dict) and "categories" in data)
        self._unknown: dict[str, list[str]] = {}

    def read(self, reading: Reading, crowds_are_objects: bool = False) -> Annotated:
        """All that the file holds; crowds_are_objects: `iscrowd` 1 was set by the labelling tool and means nothing."""
        names = self._class_names(reading) if self._needs_classes else {}
        regions, unseen, unusable = dict[int, Region](), dict[int, tuple[int, int]](), set[int]()
        for ann_id, where, entry in entries(self._data, "annotations", self._path, reading):
            region = self._region(ann_id, where, entry, names, reading)
            if region is None:
                unusable.add(ann_id)
                continue
            photo = self._photos[region.image_id]
            if region.shape.holds_a_pixel(photo.height, photo.width):
                regions[ann_id] = replace(region, crowd=False) if region.crowd and crowds_are_objects else region
            else:
                unseen[ann_id] = region.image_id, region.category_id
            _note_odd_shape(entry.get("segmentation"), ann_id, ann_id in unseen, reading)
        for what, places in self._unknown.items():
            others = f" (nor for {len(places) - 1:,} other annotations)" if len(places) > 1 else ""
            reading.mistake(ValueError(f"{places[0]}: {what}{others}; add it, or remove what names it."))
        classes = {k: (name or "").strip() for k, name in names.items()}
        if not self._needs_classes:
            classes = {region.category_id: "" for region in regions.values()}
            classes |= {category_id: "" for _, category_id in unseen.values()}
        return Annotated(self._photos, classes, regions, unseen, self._unusable, unusable)

    def _class_names(self, reading: Reading) -> dict[int, str | None]:
        """Names of classes by id; "" for one that has none, None for a mistake."""
        return {
            category_id: reading.tried(field, entry, "name", str, where) if entry.get("name") is not None else ""
            for category_id, where, entry in entries(self._data, "categories", self._path, reading)
        }

    def _region(
        self, ann_id: int, where: str, entry: dict[str, Any], names: Mapping[int, str | None], reading: Reading
    ) -> Region | None:
        """The region of an entry; None where something of it is a mistake, its own or one told before."""
        image_id = reading.tried(field, entry, "image_id", int, where)
        category_id: int | None = 0
        if self._needs_classes or entry.get("category_id") is not None:
            category_id = reading.tried(field, entry, "category_id", int, where)
        photo = None if image_id is None else self._photos.get(image_id)
        if image_id is not None and photo is None and image_id not in self._unusable:
            self._unknown.setdefault(f"image_id {image_id} is not among the images", []).append(where)
        if self._needs_classes and category_id is not None and category_id not in names:
            self._unknown.setdefault(f"category_id {category_id} is not among the categories", []).append(where)
            category_id = None
        where = where if image_id is None else f"{where} of image {image_id}"
        crowd = reading.tried(_crowd, entry.get("iscrowd"), where)
        if photo is None:
            return None
        shape = reading.tried(shape_of, entry.get("segmentation"), photo.height, photo.width, where)
        if shape is None or crowd is None or category_id is None:
            return None
        return Region(ann_id, photo.id, category_id, crowd, shape)


def _crowd(value: Any, where: str) -> bool:
    if value is not None and (not isinstance(value, int | float) or value not in (0, 1)):
        raise ValueError(f"{where}: iscrowd is {reprlib.repr(value)}; write 0 for an object, 1 for a crowd.")
    return bool(value)


def _note_odd_shape(segmentation: Any, ann_id: int, unseen: bool, reading: Reading) -> None:
    if unseen:
        reading.note(NO_PIXEL if segmentation and segmentation != [[]] else NO_MASK, ann_id)
    elif any(len(part) < 3 if part and isinstance(part[0], list) else len(part) < 6 for part in _lists(segmentation)):
        reading.note(SHORT_PART, ann_id)


def _lists(segmentation: Any) -> list[list[Any]]:
    return [part for part in polygon_parts(segmentation) if isinstance(part, list)]


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError where there is no such folder of photos, ValueError where its name is no text."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; set `images` to the folder of the photos.")
    refuse_no_text(str(folder), "images")
