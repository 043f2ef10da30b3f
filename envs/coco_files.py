"""The files of envs/coco.py read and checked: photos, annotated regions and written phrases.

What cannot be used is a mistake that names file, entry and value; what has no pixel to ask for is left out and noted.
"""

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.plugin import did_you_mean
from envs.polygons import Ring, flatten_rings, split_rings
from envs.raster import fill, fill_as_pycocotools, fill_parts, trace
from envs.reading import Reading, refuse_no_text
from envs.rle import mask_from_rle

PHRASE_KEYS = ("image_id", "ann_ids", "phrases")

NO_MASK = "annotations without a mask (box alone), left out"
NO_PIXEL = "annotations without a pixel (no pixel's centre is inside), left out"
SHORT_PART = "annotations with polygon parts of fewer than 3 points, those parts left out"
NAMELESS = "classes without a name, whose objects are not asked for"


@dataclass(frozen=True)
class Photo:
    """One entry of `images`."""

    id: int
    """As in the file."""
    path: str
    """Where the photo lies."""
    height: int
    """H that it was annotated at, pixels."""
    width: int
    """W that it was annotated at, pixels."""
    source: str
    """Address of the photo, and the file that annotates it."""
    licence: str
    """SPDX name of its licence where known."""


@dataclass(frozen=True)
class Region:
    """One entry of `annotations`."""

    id: int
    """As in the file."""
    image_id: int
    """Its photo."""
    category_id: int
    """Its class; of several classes of one name, the first."""
    crowd: bool
    """Whether it covers a group instead of one object."""
    in_parts: bool
    """Whether its rings are polygon parts, each filled even-odd by itself; else the exact edges of run lengths."""
    vertices: NDArray[np.float64]
    """[N, 2] vertices of all rings, px of the photo's own size."""
    offsets: NDArray[np.int64]
    """[R + 1]; ring r is vertices[offsets[r] : offsets[r + 1]]."""

    def mask(self, height: int, width: int, scale: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.bool_]:
        """The pixels [height, width] once its vertices were multiplied by `scale` (x, y).

        At the photo's own size those of pycocotools; scaled, what has its centre inside.
        """
        if not self.in_parts:
            return fill(self.vertices * np.array(scale), self.offsets, height, width)
        if scale == (1.0, 1.0):
            return fill_as_pycocotools(self.vertices, self.offsets, height, width)
        return fill_parts(self.vertices * np.array(scale), self.offsets, height, width)


@dataclass(frozen=True)
class Question:
    """A phrase and the regions that it means."""

    image_id: int
    """The photo asked about."""
    ann_ids: tuple[int, ...]
    """Regions meant; () where nothing fits."""
    phrase: str
    """What is asked."""

    @property
    def id(self) -> str:
        """Image, annotations and a hash of the phrase, so that an edited phrase is another question."""
        anns = "+".join(map(str, self.ann_ids)) or "none"
        return f"{self.image_id}/{anns}/{hashlib.sha256(self.phrase.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Annotated:
    """What a file of annotations holds."""

    photos: dict[int, Photo]
    """By id."""
    classes: dict[int, str]
    """Name by id, "" where there is none; of several classes of one name, the first stands for all."""
    regions: dict[int, Region]
    """By id; each has at least one pixel."""
    unseen: dict[int, tuple[int, int]]
    """(image id, class id) by id of annotations without a pixel: objects that are there and cannot be asked for."""


def phrase_key(phrase: str) -> str:
    """What two phrases that ask for the same have in common: letter case and white space aside."""
    return " ".join(phrase.casefold().split())


def read_json(path: str) -> Any:
    """What a JSON file holds; UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path (relative ones start from the working folder).")
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error


def read_annotated(path: str, folder: Path, reading: Reading, crowds_are_objects: bool = False) -> Annotated:
    """The file of annotations in `path`; its photos lie below `folder` and are not opened.

    crowds_are_objects: whether `iscrowd` 1 is a mark of the labelling tool and means nothing. Mistakes in entries go to
    `reading`, which tells them together; a missing file, or one of another form, is raised at once.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; set `images` to the folder of the photos.")
    data = read_json(path)
    photos = _photos(data, path, folder, reading)
    names = _class_names(data, path, reading)
    first: dict[str, int] = {}  # class by name
    class_of = {k: first.setdefault(phrase_key(name), k) if name else k for k, name in names.items()}
    regions, unseen = dict[int, Region](), dict[int, tuple[int, int]]()
    for ann_id, where, entry in _entries(data, "annotations", path, reading):
        try:
            region = _region(ann_id, where, entry, photos, class_of)
        except ValueError as error:
            reading.mistake(error)
            continue
        photo = photos[region.image_id]
        if region.mask(photo.height, photo.width).any():
            regions[ann_id] = replace(region, crowd=region.crowd and not crowds_are_objects)
        else:
            unseen[ann_id] = region.image_id, region.category_id
        _note_odd_shape(entry.get("segmentation"), ann_id, ann_id in unseen, reading)
    return Annotated(photos, {k: names[k] for k in set(class_of.values())}, regions, unseen)


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    """The value at `key`, of type `kind`; a whole number may be written as 7.0, text holds whole characters."""
    value = entry.get(key) if isinstance(entry, dict) else entry
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(entry, dict) or not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(
            f"{where}: `{key}` should be {kind.__name__}, found {reprlib.repr(value)}; correct this entry."
        )
    if isinstance(value, str):
        refuse_no_text(value, f"{where}: `{key}`")
    return value


def _entries(data: Any, key: str, path: str, reading: Reading) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(id, where, entry) of each entry of the list `key` that has an id of its own."""
    seen = set()
    for k, entry in enumerate(_field(data, key, list, path)):
        try:
            entry_id = _field(entry, "id", int, f"{path}: {key}[{k}]")
            if entry_id in seen:
                raise ValueError(f"{path}: {key}[{k}] has id {entry_id} a second time; ids must be unique.")
        except ValueError as error:
            reading.mistake(error)
            continue
        seen.add(entry_id)
        yield entry_id, f"{path}: {key}[{k}] (id {entry_id})", entry


def _photos(data: Any, path: str, folder: Path, reading: Reading) -> dict[int, Photo]:
    licences = _licences(data)
    photos = {}
    for photo_id, where, entry in _entries(data, "images", path, reading):
        try:
            file_name = _field(entry, "file_name", str, where)
            height, width = _field(entry, "height", int, where), _field(entry, "width", int, where)
            if min(height, width) < 1:
                raise ValueError(f"{where}: height {height} and width {width} should be 1 pixel or more; correct them.")
            address = entry.get("flickr_url") or entry.get("coco_url") or file_name
            photos[photo_id] = Photo(
                photo_id,
                str(_file_below(folder, file_name)),
                height,
                width,
                f"{address} (annotated in {Path(path).name})",
                licences.get(str(entry.get("license")), "unknown"),
            )
        except ValueError as error:
            reading.mistake(error)
    return photos


def _file_below(folder: Path, file_name: str) -> Path:
    """The file of a photo; backslashes, as Windows writes paths, part folders where no file has them in its name."""
    path = folder / file_name
    return folder / file_name.replace("\\", "/") if "\\" in file_name and not path.is_file() else path


def _licences(data: Any) -> dict[str, str]:
    """Names of licences by the text of their id; what is not in the usual form has no name, and harms nothing."""
    listed = data.get("licenses") if isinstance(data, dict) else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {str(entry.get("id")): _licence(entry) for entry in entries}


def _licence(entry: dict[str, Any]) -> str:
    """SPDX name of a Creative Commons licence, found by its address; else the name in the file."""
    match = re.search(r"creativecommons\.org/licenses/([a-z-]+)/([0-9.]+)", str(entry.get("url")))
    return f"CC-{match[1].upper()}-{match[2]}" if match else str(entry.get("name") or "unknown")


def _class_names(data: Any, path: str, reading: Reading) -> dict[int, str]:
    """Names of classes by id; "" for one that has none."""
    names = {}
    for category_id, where, entry in _entries(data, "categories", path, reading):
        try:
            given = entry.get("name") is not None
            names[category_id] = _field(entry, "name", str, where).strip() if given else ""
        except ValueError as error:
            reading.mistake(error)
    return names


def _region(
    ann_id: int, where: str, entry: dict[str, Any], photos: Mapping[int, Photo], class_of: Mapping[int, int]
) -> Region:
    image_id, category_id = _field(entry, "image_id", int, where), _field(entry, "category_id", int, where)
    if image_id not in photos:
        raise ValueError(f"{where}: image_id {image_id} is not among the images; add it or remove the annotation.")
    if category_id not in class_of:
        raise ValueError(f"{where}: category_id {category_id} is not among the categories; add it.")
    where = f"{where} of image {image_id}"
    crowd = entry.get("iscrowd")
    if crowd is not None and (isinstance(crowd, str) or crowd not in (0, 1)):
        raise ValueError(f"{where}: iscrowd is {reprlib.repr(crowd)}; write 0 for an object, 1 for a crowd.")
    segmentation = entry.get("segmentation")
    vertices, offsets = flatten_rings(_rings(segmentation, photos[image_id], where))
    in_parts = not isinstance(segmentation, dict)
    return Region(ann_id, image_id, class_of[category_id], bool(crowd), in_parts, vertices, offsets)


def _rings(segmentation: Any, photo: Photo, where: str) -> list[Ring]:
    """Polygon parts of three points or more, or the pixel-edge rings of run lengths; [] where there are none."""
    if segmentation is None:
        return []
    if isinstance(segmentation, list):
        parts = [_polygon_part(part, where) for part in segmentation]
        return [part for part in parts if len(part) > 2]
    if not isinstance(segmentation, dict):
        raise ValueError(f"{where}: segmentation {reprlib.repr(segmentation)} is neither polygons nor RLE; correct it.")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [photo.height, photo.width]:
        raise ValueError(f"{where}: RLE size {size} is not the image's [{photo.height}, {photo.width}]; correct it.")
    num_pixels = photo.height * photo.width
    if isinstance(counts, list) and not all(isinstance(run, int) and 0 <= run <= num_pixels for run in counts):
        raise ValueError(f"{where}: RLE counts {reprlib.repr(counts)} are not run lengths; correct them.")
    if not isinstance(counts, list | str):
        raise ValueError(f"{where}: RLE counts {reprlib.repr(counts)} are neither a list nor text; correct them.")
    try:
        return split_rings(*trace(mask_from_rle(counts, photo.height, photo.width)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _polygon_part(part: Any, where: str) -> Ring:
    numbers = part if isinstance(part, list) else None
    # Compared rather than asked whether finite: a whole number of JSON may be too long for a float.
    if numbers is None or len(numbers) % 2 or not all(_is_number(number) and abs(number) < 1e9 for number in numbers):
        raise ValueError(f"{where}: polygon part {reprlib.repr(part)} is not x, y, x, y, ...; correct it.")
    return np.array(numbers, np.float64).reshape(-1, 2)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _note_odd_shape(segmentation: Any, ann_id: int, unseen: bool, reading: Reading) -> None:
    parts = segmentation if isinstance(segmentation, list) else []
    if unseen:
        reading.note(NO_PIXEL if segmentation and segmentation != [[]] else NO_MASK, ann_id)
    elif any(len(part) < 6 for part in parts):
        reading.note(SHORT_PART, ann_id)


def class_questions(annotated: Annotated, reading: Reading) -> list[Question]:
    """The class name of every object that is the only one of its class in its photo, crowds and unseen ones counted.

    Classes of one name are one class; what has no name is not asked for.
    """
    regions, names = annotated.regions, annotated.classes
    there = Counter([(one.image_id, one.category_id) for one in regions.values()] + [*annotated.unseen.values()])
    for category_id in sorted({category_id for _, category_id in there if not names[category_id]}):
        reading.note(NAMELESS, f"class {category_id}")
    return [
        Question(region.image_id, (region.id,), names[region.category_id])
        for region in regions.values()
        if there[region.image_id, region.category_id] == 1 and not region.crowd and names[region.category_id]
    ]


def phrase_questions(path: str, annotated: Annotated, reading: Reading) -> list[Question]:
    """A question for every phrase of the JSON list {image_id, ann_ids, phrases} in `path`."""
    questions: list[Question] = []
    for k, entry in enumerate(_field({"the file": read_json(path)}, "the file", list, path)):
        try:
            questions += _entry_questions(entry, path, k, annotated)
        except ValueError as error:
            reading.mistake(error)
    return questions


def _entry_questions(entry: Any, path: str, k: int, annotated: Annotated) -> list[Question]:
    keys = entry if isinstance(entry, dict) else {}
    where = f"{path}: entry {k} (image {keys.get('image_id')})"
    for key in keys:
        if key not in PHRASE_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, PHRASE_KEYS)} Known: {PHRASE_KEYS}.")
    image_id = _field(entry, "image_id", int, where)
    if image_id not in annotated.photos:
        raise ValueError(f"{where}: image_id {image_id} is not among the annotated images; correct or remove it.")
    ann_ids, phrases = _field(entry, "ann_ids", list, where), _field(entry, "phrases", list, where)
    for ann_id in ann_ids:
        _check_ann_id(ann_id, image_id, annotated, where)
    if len(set(ann_ids)) < len(ann_ids):
        raise ValueError(f"{where}: ann_ids {ann_ids} name an annotation twice; name each once.")
    if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise ValueError(f"{where}: phrases {phrases} should be one or more texts; write one or remove the entry.")
    for phrase in phrases:
        refuse_no_text(phrase, f"{where}: the phrase")
    return [Question(image_id, tuple(ann_ids), phrase.strip()) for phrase in phrases]


def _check_ann_id(ann_id: Any, image_id: int, annotated: Annotated, where: str) -> None:
    if isinstance(ann_id, int) and ann_id in annotated.unseen:
        raise ValueError(f"{where}: ann_id {ann_id} has no mask with a pixel in it; draw one, or remove it here.")
    if not isinstance(ann_id, int) or ann_id not in annotated.regions:
        raise ValueError(f"{where}: ann_id {ann_id!r} is not among the annotations; correct or remove it.")
    if annotated.regions[ann_id].image_id != image_id:
        belongs = annotated.regions[ann_id].image_id
        raise ValueError(f"{where}: ann_id {ann_id} belongs to image {belongs}; correct one of them.")
