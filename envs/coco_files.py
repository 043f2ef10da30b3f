"""The files of envs/coco.py read and checked: photos, annotated regions and written phrases, each mistake named.

What cannot be used raises ValueError, naming file, entry and value; what is not there raises FileNotFoundError.
"""

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.plugin import did_you_mean
from envs.polygons import Ring, flatten_rings, signed_area_px, split_rings
from envs.raster import fill, trace
from envs.rle import mask_from_rle

PHRASE_KEYS = ("image_id", "ann_ids", "phrases")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow's readers raise


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
    """Its class."""
    crowd: bool
    """Whether it covers a group instead of one object."""
    vertices: NDArray[np.float64]
    """[N, 2] vertices of all rings, px of the photo's own size."""
    offsets: NDArray[np.int64]
    """[R + 1]; ring r is vertices[offsets[r] : offsets[r + 1]]."""


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


def read_json(path: str) -> Any:
    """What a JSON file holds."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path (relative ones start from the working folder).")
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); export it again.") from error


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        found = reprlib.repr(entry.get(key) if isinstance(entry, dict) else entry)
        raise ValueError(f"{where}: `{key}` should be {kind.__name__}, found {found}; correct this entry.")
    return entry[key]


def _entries(data: Any, key: str, path: str) -> Iterator[tuple[int, str, Any]]:
    """(id, where, entry) of each entry of the list `key`; ids must not repeat."""
    seen = set()
    for k, entry in enumerate(_field(data, key, list, path)):
        entry_id = _field(entry, "id", int, f"{path}: {key}[{k}]")
        if entry_id in seen:
            raise ValueError(f"{path}: {key}[{k}] has id {entry_id} a second time; ids must be unique.")
        seen.add(entry_id)
        yield entry_id, f"{path}: {key}[{k}] (id {entry_id})", entry


def index_photos(data: Any, path: str, folder: Path) -> dict[int, Photo]:
    """Photos of `data`, read from `path`, by id; their files start from `folder` and are not opened."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images; set `images` to the folder of the photos.")
    licences = {}
    if isinstance(data, dict) and "licenses" in data:
        licences = {entry_id: _licence(entry) for entry_id, _, entry in _entries(data, "licenses", path)}
    photos = {}
    for photo_id, where, entry in _entries(data, "images", path):
        file_name = _field(entry, "file_name", str, where)
        address = entry.get("flickr_url") or entry.get("coco_url") or file_name
        licence = licences.get(_field(entry, "license", int, where), "unknown") if "license" in entry else "unknown"
        photos[photo_id] = Photo(
            photo_id,
            str(folder / file_name),
            _field(entry, "height", int, where),
            _field(entry, "width", int, where),
            f"{address} (annotated in {Path(path).name})",
            licence,
        )
    return photos


def _licence(entry: dict[str, Any]) -> str:
    """SPDX name of a Creative Commons licence, found by its address; else the name in the file."""
    match = re.search(r"creativecommons\.org/licenses/([a-z-]+)/([0-9.]+)", str(entry.get("url")))
    return f"CC-{match[1].upper()}-{match[2]}" if match else str(entry.get("name", "unknown"))


def open_photo(path: str, of: str, decode: bool = True) -> Image.Image:
    """The photo as RGB, orientation tags ignored as COCO does; not decoded, it is good for its size only."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file for {of}; fetch it, or take its entry out of the JSON file.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB") if decode else image
    except _UNREADABLE as error:
        raise ValueError(f"{path} ({of}) is cut off, damaged or no image ({error}); fetch the file again.") from error


def index_regions(data: Any, path: str, photos: dict[int, Photo]) -> dict[int, Region]:
    """Regions of `data`, read from `path`, by id; each has a photo, a class and at least one pixel."""
    categories = {category_id for category_id, _, _ in _entries(data, "categories", path)}
    regions = {}
    for ann_id, where, entry in _entries(data, "annotations", path):
        image_id, category_id = _field(entry, "image_id", int, where), _field(entry, "category_id", int, where)
        if image_id not in photos:
            raise ValueError(f"{where}: image_id {image_id} is not among the images; add it or remove the annotation.")
        if category_id not in categories:
            raise ValueError(f"{where}: category_id {category_id} is not among the categories; add it.")
        photo = photos[image_id]
        where = f"{where} of image {image_id}"
        vertices, offsets = flatten_rings(_rings(entry.get("segmentation"), photo, where))
        if not fill(vertices, offsets, photo.height, photo.width).any():
            raise ValueError(f"{where} has no area, as no pixel's centre is inside; remove it or draw it again.")
        regions[ann_id] = Region(ann_id, image_id, category_id, bool(entry.get("iscrowd", 0)), vertices, offsets)
    return regions


def _rings(segmentation: Any, photo: Photo, where: str) -> list[Ring]:
    """Clockwise polygon parts, or the pixel-edge rings of run lengths."""
    if isinstance(segmentation, list):
        return [_polygon_part(part, where) for part in segmentation]
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
    numbers = part if isinstance(part, list) else []
    # Compared rather than asked whether finite: a whole number of JSON may be too long for a float.
    finite = all(isinstance(number, int | float) and abs(number) < 1e9 for number in numbers)
    if not finite or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{where}: polygon part {reprlib.repr(part)} is not x, y, x, y, ... of 3 points; correct it.")
    ring = np.array(numbers, np.float64).reshape(-1, 2)
    return ring if signed_area_px(ring) >= 0 else ring[::-1]


def class_questions(data: Any, path: str, regions: dict[int, Region]) -> list[Question]:
    """The class name of every instance that is the only one of its class in its photo, crowds counted."""
    names = {k: _field(entry, "name", str, where) for k, where, entry in _entries(data, "categories", path)}
    num = Counter((region.image_id, region.category_id) for region in regions.values())
    return [
        Question(region.image_id, (region.id,), names[region.category_id])
        for region in regions.values()
        if num[region.image_id, region.category_id] == 1 and not region.crowd
    ]


def phrase_questions(path: str, photos: dict[int, Photo], regions: dict[int, Region]) -> list[Question]:
    """A question for every phrase of the JSON list {image_id, ann_ids, phrases} in `path`."""
    questions = []
    for k, entry in enumerate(_field({"the file": read_json(path)}, "the file", list, path)):
        keys = entry if isinstance(entry, dict) else {}
        where = f"{path}: entry {k} (image {keys.get('image_id')})"
        for key in keys:
            if key not in PHRASE_KEYS:
                raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, PHRASE_KEYS)} Known: {PHRASE_KEYS}.")
        image_id = _field(entry, "image_id", int, where)
        if image_id not in photos:
            raise ValueError(f"{where}: image_id {image_id} is not among the annotated images; correct or remove it.")
        ann_ids, phrases = _field(entry, "ann_ids", list, where), _field(entry, "phrases", list, where)
        for ann_id in ann_ids:
            _check_ann_id(ann_id, image_id, regions, where)
        if len(set(ann_ids)) < len(ann_ids):
            raise ValueError(f"{where}: ann_ids {ann_ids} name an annotation twice; name each once.")
        if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise ValueError(f"{where}: phrases {phrases} should be one or more texts; write one or remove the entry.")
        questions += [Question(image_id, tuple(ann_ids), phrase.strip()) for phrase in phrases]
    return questions


def _check_ann_id(ann_id: Any, image_id: int, regions: dict[int, Region], where: str) -> None:
    if not isinstance(ann_id, int) or ann_id not in regions:
        raise ValueError(f"{where}: ann_id {ann_id!r} is not among the annotations; correct or remove it.")
    if regions[ann_id].image_id != image_id:
        raise ValueError(f"{where}: ann_id {ann_id} belongs to image {regions[ann_id].image_id}; correct one of them.")
