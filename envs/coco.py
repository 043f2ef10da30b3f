"""Env: real photos with annotations in COCO's `instances.json` form, asked about by written phrases or class names.

One rule of pixels for every kind of annotation: polygon parts are turned clockwise, so that they unite, and run lengths
become their exact pixel-edge rings. Where photos are resized, rings are scaled and then filled, so a mask is what the
raster rule says at the size that the policy sees (for run lengths: the source pixel under each new pixel's centre).

What counts neither way: crowd regions of the same class as a target, less the targets themselves. A phrase that names a
crowd region by its id asks for it; a phrase that nothing fits has no class, so there every pixel counts.
"""

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.example import Example, ImageRef, Prompt, Truth, image_sha256
from envs.plugin import did_you_mean
from envs.polygons import Ring, flatten_rings, signed_area_px, split_rings
from envs.raster import fill, mask_from_rle, trace

PADDING_GREY = 128
PHRASE_KEYS = ("image_id", "ann_ids", "phrases")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow's readers raise


@dataclass(frozen=True)
class _Photo:
    id: int
    path: str
    height: int
    width: int
    source: str
    licence: str


@dataclass(frozen=True)
class _Region:
    """One annotation: rings as vertices [N, 2] in px of the photo's own size, and offsets [R + 1]."""

    id: int
    image_id: int
    category_id: int
    crowd: bool
    vertices: NDArray[np.float64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class _Question:
    image_id: int
    ann_ids: tuple[int, ...]
    phrase: str

    @property
    def id(self) -> str:
        """Image, annotations and a hash of the phrase, so that an edited phrase is another question."""
        anns = "+".join(map(str, self.ann_ids)) or "none"
        return f"{self.image_id}/{anns}/{hashlib.sha256(self.phrase.encode()).hexdigest()[:8]}"


@dataclass
class Env:
    """Examples of one split. Files are read and checked when it is made, those of the other split included.

    Raises FileNotFoundError or ValueError, naming file, id and value, for settings and files that cannot be used. A
    phrase repeated word for word for the same annotations is asked once. Questions about an object that has no pixel
    left at `image_side` are not asked; `left_out` lists their ids.
    """

    split: str
    """"train" or "validation"; they share no photo."""
    annotations: str
    """Path of the JSON file with `images`, `annotations`, `categories` and, if known, `licenses`."""
    images: str
    """Folder that the `file_name`s start from."""
    phrases: str | None = None
    """Path of a JSON list of {image_id, ann_ids, phrases}; None asks for the class where a photo has only one of it."""
    image_side: int | None = None
    """Resize so that the longer side has this many pixels; None leaves photos as they are."""
    square: bool = False
    """Pad with grey on the right or below to image_side x image_side, so that all images have one size."""
    train_share: float = 0.8
    """Share of all photos that are in "train", by a hash of the image id; a photo stays there when the share grows."""
    decode_all: bool = True
    """Decode every photo at the start. False reads only the headers, for sets too large to decode; a photo that is cut
    off after its header is then found when its turn comes."""
    data_set: str = "coco"
    """First part of the examples' ids; another name for another data set keeps them unique."""

    def __post_init__(self) -> None:
        """Check settings and files, and index the questions of this split."""
        self._check_settings()
        data = _read_json(self.annotations)
        photos = _photos(data, self.annotations, Path(self.images))
        self._photos = {k: photo for k, photo in photos.items() if self._split_of(k) == self.split}
        self._sha256 = self._check_photos(photos)
        regions = _regions(data, self.annotations, photos)
        if self.phrases is None:
            asked = _class_questions(data, self.annotations, regions)
        else:
            asked = _phrase_questions(self.phrases, photos, regions)
        self._regions = {k: region for k, region in regions.items() if region.image_id in self._photos}
        self._index(dict.fromkeys(question for question in asked if question.image_id in self._photos))

    def _check_settings(self) -> None:
        if self.split not in ("train", "validation"):
            raise ValueError(f'split is {self.split!r}; photos are split into "train" and "validation", choose one.')
        if not 0 <= self.train_share <= 1:
            raise ValueError(f"train_share is {self.train_share}; set it to 0..1, the share of photos to train on.")
        if self.image_side is not None and self.image_side < 1:
            raise ValueError(f"image_side is {self.image_side}; set it to 1 pixel or more, or leave it out.")
        if self.square and self.image_side is None:
            raise ValueError("square is true without image_side, so images would still differ in size; set image_side.")

    def _check_photos(self, photos: dict[int, _Photo]) -> dict[int, str]:
        """Open every photo; hashes of this split's, by image id, where they are decoded for it."""
        hashes = {}
        for photo in photos.values():
            image = _open_photo(photo.path, f"image {photo.id}", self.decode_all)
            if image.size != (photo.width, photo.height):
                raise ValueError(
                    f"{photo.path} has {image.width} x {image.height} pixels, but image {photo.id} was annotated at "
                    f"{photo.width} x {photo.height}, so outlines would not fit; fetch the file that was annotated."
                )
            if self.decode_all and photo.id in self._photos:
                hashes[photo.id] = image_sha256(self._served(image))
        return hashes

    def _split_of(self, image_id: int) -> str:
        draw = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") / 2**64
        return "train" if draw < self.train_share else "validation"

    def _index(self, asked: Iterable[_Question]) -> None:
        self._crowds: dict[int, list[_Region]] = {}
        for region in self._regions.values():
            if region.crowd:
                self._crowds.setdefault(region.image_id, []).append(region)
        self._questions: list[_Question] = []
        self._scenes: dict[int, list[int]] = {}
        self.left_out: list[str] = []
        for question in asked:
            if all(self._mask(self._regions[ann_id]).any() for ann_id in question.ann_ids):
                self._scenes.setdefault(question.image_id, []).append(len(self._questions))
                self._questions.append(question)
            else:
                self.left_out.append(f"{self.data_set}/{question.id}")
        if not self._questions:
            raise ValueError(
                f'{self.annotations}: split "{self.split}" has no question ({len(self._photos)} photos at train_share '
                f"{self.train_share}, {len(self.left_out)} questions left out as too small at image_side "
                f"{self.image_side}); change these settings or add phrases."
            )

    def __len__(self) -> int:
        """Number of questions of the split."""
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, masks and image in the frame of the resized and padded image."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        question = self._questions[index]
        photo = self._photos[question.image_id]
        image = self._reference(photo)
        masks = np.zeros((len(question.ann_ids), image.height, image.width), np.bool_)
        for k, ann_id in enumerate(question.ann_ids):
            masks[k] = self._mask(self._regions[ann_id])
        truth = Truth(masks, self._ignored(question, masks))
        example_id = f"{self.data_set}/{question.id}"
        return Example(example_id, image, Prompt((question.phrase,)), truth, self.split, photo.source, photo.licence)

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The photo [H, W, 3] RGB, resized and padded; raises ValueError where it no longer has `ref.sha256`."""
        pixels = self._served(_open_photo(ref.key, "an example's image"))
        if image_sha256(pixels) != ref.sha256:
            raise ValueError(
                f"{ref.key}: SHA-256 of the pixels is {image_sha256(pixels)[:12]}..., but the example was made with "
                f"{ref.sha256[:12]}...; restore the file, or the image_side and square of that time."
            )
        return pixels

    def scene(self, index: int) -> list[Example]:
        """Every example of the photo of example `index`, in the order of the phrases."""
        return [self[k] for k in self._scenes[self._questions[index].image_id]]

    def _reference(self, photo: _Photo) -> ImageRef:
        if photo.id not in self._sha256:
            self._sha256[photo.id] = image_sha256(self._served(_open_photo(photo.path, f"image {photo.id}")))
        height, width = self._size(photo.height, photo.width)
        if self.square:
            height = width = max(height, width)
        return ImageRef(photo.path, self._sha256[photo.id], height, width)

    def _ignored(self, question: _Question, masks: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        classes = {self._regions[ann_id].category_id for ann_id in question.ann_ids}
        ignore = np.zeros(masks.shape[1:], np.bool_)
        for crowd in self._crowds.get(question.image_id, []):
            if crowd.category_id in classes and crowd.id not in question.ann_ids:
                ignore |= self._mask(crowd)
        ignore &= ~masks.any(axis=0)
        return ignore if ignore.any() else None

    def _mask(self, region: _Region) -> NDArray[np.bool_]:
        photo = self._photos[region.image_id]
        height, width = self._size(photo.height, photo.width)
        vertices = region.vertices * np.array([width / photo.width, height / photo.height])
        return self._padded(fill(vertices, region.offsets, height, width), 0)

    def _served(self, image: Image.Image) -> NDArray[np.uint8]:
        height, width = self._size(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return self._padded(np.array(image, np.uint8), PADDING_GREY)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before padding."""
        if self.image_side is None:
            return height, width
        scale = self.image_side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _padded(self, pixels: NDArray[Any], value: int) -> NDArray[Any]:
        if not self.square:
            return pixels
        height, width = pixels.shape[:2]
        side = max(height, width)
        margins = [(0, side - height), (0, side - width), (0, 0)][: pixels.ndim]
        return np.pad(pixels, margins, constant_values=value)


def _read_json(path: str) -> Any:
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


def _photos(data: Any, path: str, folder: Path) -> dict[int, _Photo]:
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
        photos[photo_id] = _Photo(
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


def _open_photo(path: str, of: str, decode: bool = True) -> Image.Image:
    """The photo as RGB, orientation tags ignored as COCO does; not decoded, it is good for its size only."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file for {of}; fetch it, or take its entry out of the JSON file.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB") if decode else image
    except _UNREADABLE as error:
        raise ValueError(f"{path} ({of}) is cut off, damaged or no image ({error}); fetch the file again.") from error


def _regions(data: Any, path: str, photos: dict[int, _Photo]) -> dict[int, _Region]:
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
        regions[ann_id] = _Region(ann_id, image_id, category_id, bool(entry.get("iscrowd", 0)), vertices, offsets)
    return regions


def _rings(segmentation: Any, photo: _Photo, where: str) -> list[Ring]:
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


def _class_questions(data: Any, path: str, regions: dict[int, _Region]) -> list[_Question]:
    """The class name of every instance that is the only one of its class in its photo, crowds counted."""
    names = {k: _field(entry, "name", str, where) for k, where, entry in _entries(data, "categories", path)}
    num = Counter((region.image_id, region.category_id) for region in regions.values())
    return [
        _Question(region.image_id, (region.id,), names[region.category_id])
        for region in regions.values()
        if num[region.image_id, region.category_id] == 1 and not region.crowd
    ]


def _phrase_questions(path: str, photos: dict[int, _Photo], regions: dict[int, _Region]) -> list[_Question]:
    questions = []
    for k, entry in enumerate(_field({"the file": _read_json(path)}, "the file", list, path)):
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
        questions += [_Question(image_id, tuple(ann_ids), phrase.strip()) for phrase in phrases]
    return questions


def _check_ann_id(ann_id: Any, image_id: int, regions: dict[int, _Region], where: str) -> None:
    if not isinstance(ann_id, int) or ann_id not in regions:
        raise ValueError(f"{where}: ann_id {ann_id!r} is not among the annotations; correct or remove it.")
    if regions[ann_id].image_id != image_id:
        raise ValueError(f"{where}: ann_id {ann_id} belongs to image {regions[ann_id].image_id}; correct one of them.")
