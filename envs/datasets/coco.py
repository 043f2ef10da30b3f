"""Env: real photos with annotations in COCO's `instances.json` form, asked about by written phrases or class names.

Annotations are read by COCO's own rule: each polygon part is filled even-odd by itself and the parts are united, to the
very pixel of pycocotools; run lengths become their exact pixel-edge rings. Where photos are resized, rings are scaled
and then filled at pixel centres (for run lengths: the source pixel under each new pixel's centre).

What counts neither way: crowd regions of the same class as a target, less the targets themselves. A phrase that names a
crowd region by its id asks for it; a phrase that nothing fits has no class, so there every pixel counts.
"""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.datasets._coco_files import Annotated, Photo, Region, RegionReader, check_folder, photo_entries, phrase_key
from envs.datasets._coco_photos import EXIF, Photos
from envs.datasets._coco_questions import Question, class_questions, phrase_questions
from envs.example import Example, ImageRef, Prompt, Truth, image_sha256
from envs.images import ShownFile, View
from envs.reading import Reading, read_json, told

CROWDS = ("ignore", "objects")
CROWD = (
    "annotations are crowds (iscrowd 1), which only a phrase can ask for by id; where a labelling tool marks brush "
    "masks so, set env.crowds: objects"
)
TOO_SMALL = "questions about an object without a pixel at this size, left out"
AMBIGUOUS = "questions whose phrase means something else too in the same photo, left out"
SAME_PHOTO = "photos that are another one, kept in one split with it"


@dataclass
class Env:
    """Examples of one split. Files are read and checked when it is made, those of the other split included.

    Raises FileNotFoundError or ValueError, naming file, id and value, for settings and files that cannot be used, all
    that was found wrong in one message. What cannot be asked for is left out and told in `notes`: annotations without a
    pixel, classes without a name, phrases that have two truths in one photo, objects that have no pixel left at
    `image_side`; `left_out` lists the questions among it. A phrase repeated word for word for the same annotations is
    asked once.
    """

    split: str
    """"train" or "validation"; they share no photo, copies of a photo under other names or ids included."""
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
    """Share of all photos that are in "train", by a hash of the image id; a photo stays there when the share grows.

    Of photos that are the same (by their pixels as shown, without `decode_all` by their bytes), the lowest id decides.
    """
    decode_all: bool = True
    """Decode every photo at the start. False reads only the headers, for sets too large to decode; a photo that is cut
    off after its header is then found when its turn comes."""
    data_set: str = "coco"
    """First part of the examples' ids; another name for another data set keeps them unique."""
    crowds: str = "ignore"
    """What `iscrowd: 1` means: "ignore", a group that counts neither way, or "objects", nothing.

    Labelling tools such as CVAT mark brush masks so.
    """
    exif: str | None = None
    """Whether outlines are meant on photos turned upright by EXIF: "apply", "ignore" (as stored, COCO's rule), or null.

    null goes by the recorded size, and takes a photo as stored, with a note, where the size cannot tell.
    """

    def __post_init__(self) -> None:
        """Check settings and files, and index the questions of this split."""
        self._check_settings()
        reading = Reading()
        found, asked = self._read(reading)
        reading.refuse()  # before photos are decoded, which takes its time
        if self.decode_all:
            self._opened.decode(reading)
            reading.refuse()
        self._original = self._opened.originals()
        if asked is None:
            asked = class_questions(found, self._original, reading)
        self._words = {word for question in asked for word in question.phrase.split()}
        self._note_photos(found, reading)
        self._photos = {k: photo for k, photo in found.photos.items() if self._split_of(k) == self.split}
        self._regions = {k: region for k, region in found.regions.items() if region.image_id in self._photos}
        self._class_of = found.class_of
        self._index(list(dict.fromkeys(question for question in asked if question.image_id in self._photos)), reading)
        self._notes = reading.notes

    def _read(self, reading: Reading) -> tuple[Annotated, list[Question] | None]:
        """What the files hold, photos looked at by their headers; and the written questions, None without a file."""
        folder = Path(self.images)
        reading.tried(check_folder, folder)
        data = reading.tried(read_json, self.annotations)
        phrases = None if self.phrases is None else reading.tried(read_json, self.phrases)
        if data is None or not folder.is_dir():
            reading.refuse()
        if not isinstance(data, dict):
            raise ValueError(
                f"{self.annotations} holds no mapping of `images`, `annotations` and `categories`, but "
                f"{reprlib.repr(data)}; give a file in the form of COCO's instances.json."
            )
        self._opened = Photos(photo_entries(data, self.annotations, folder, reading), self.exif, self._view, reading)
        regions = RegionReader(data, self.annotations, self._opened.by_id, self._opened.unusable, self.phrases is None)
        found = regions.read(reading, self.crowds == "objects")
        if self.phrases is None:
            return found, None
        return found, [] if phrases is None else phrase_questions(phrases, self.phrases, found, reading)

    def _note_photos(self, found: Annotated, reading: Reading) -> None:
        for region in found.regions.values():
            if region.crowd:
                reading.note(CROWD, region.id)
        for copy, original in self._original.items():
            if copy != original:
                reading.note(SAME_PHOTO, f"image {copy} as {original}")

    def _check_settings(self) -> None:
        if self.split not in ("train", "validation"):
            raise ValueError(f'split is {self.split!r}; photos are split into "train" and "validation", choose one.')
        if not 0 <= self.train_share <= 1:
            raise ValueError(f"train_share is {self.train_share}; set it to 0..1, the share of photos to train on.")
        if self.image_side is not None and self.image_side < 1:
            raise ValueError(f"image_side is {self.image_side}; set it to 1 pixel or more, or leave it out.")
        if self.square and self.image_side is None:
            raise ValueError("square is true without image_side, so images would still differ in size; set image_side.")
        if self.crowds not in CROWDS:
            raise ValueError(f"crowds is {self.crowds!r}; set it to one of {', '.join(CROWDS)}.")
        if self.exif is not None and self.exif not in EXIF:
            raise ValueError(f"exif is {self.exif!r}; set it to one of {', '.join(EXIF)}, or leave it out.")

    def _split_of(self, image_id: int) -> str:
        deciding = self._original[image_id]
        draw = int.from_bytes(hashlib.sha256(str(deciding).encode()).digest()[:8], "big") / 2**64
        return "train" if draw < self.train_share else "validation"

    def _index(self, asked: Sequence[Question], reading: Reading) -> None:
        """Which questions are asked, in order, and why the others are not."""
        self._crowds: dict[int, list[Region]] = {}
        for region in self._regions.values():
            if region.crowd:
                self._crowds.setdefault(self._original[region.image_id], []).append(region)
        alike: dict[tuple[int, str], list[Question]] = {}
        for question in asked:
            alike.setdefault(self._what_is_asked(question), []).append(question)
        several_truths = {what for what, questions in alike.items() if self._have_several_truths(questions)}
        self._questions: list[Question] = []
        self._scenes: dict[int, list[int]] = {}
        self.left_out: list[str] = []
        for question in asked:
            several = self._what_is_asked(question) in several_truths
            if several or not all(self._holds_a_pixel(self._regions[ann_id]) for ann_id in question.ann_ids):
                self.left_out.append(f"{self.data_set}/{question.id}")
                reading.note(AMBIGUOUS if several else TOO_SMALL, f"{question.phrase!r} ({question.id})")
            else:
                self._scenes.setdefault(question.image_id, []).append(len(self._questions))
                self._questions.append(question)
        if not self._questions:
            raise ValueError(
                f'{self.annotations}: split "{self.split}" has no question ({len(self._photos)} photos at train_share '
                f"{self.train_share}, image_side {self.image_side}); change these settings or add phrases. "
                f"{'; '.join(told(reading.notes))}"
            )

    def _what_is_asked(self, question: Question) -> tuple[int, str]:
        return self._original[question.image_id], phrase_key(question.phrase)

    def _have_several_truths(self, questions: Sequence[Question]) -> bool:
        """Whether questions that ask for the same mean different pixels, which only masks can tell."""
        if len({question.ann_ids for question in questions}) == 1:
            return False
        return len({frozenset(self._mask_hashes(question)) for question in questions}) > 1

    def _mask_hashes(self, question: Question) -> list[bytes]:
        """A hash of each mask that a question means; b"" of one without a pixel."""
        masks = (self._mask(self._regions[ann_id]) for ann_id in question.ann_ids)
        return [hashlib.sha256(np.packbits(mask).tobytes()).digest() if mask.any() else b"" for mask in masks]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every question of the split in order, of what is true and ignored, and of the photos.

        Photos count by their pixels where all are decoded, else by their size in bytes.
        """
        digest = hashlib.sha256()
        for question in self._questions:
            digest.update(f"{question.id}:{question.phrase}\n".encode() + b"".join(self._mask_hashes(question)))
            for crowd in self._ignored_crowds(question):
                digest.update(crowd.shape.vertices.tobytes() + crowd.shape.offsets.tobytes())
        for image_id in dict.fromkeys(question.image_id for question in self._questions):
            photo = self._photos[image_id]
            digest.update(f"{image_id}:{photo.height}x{photo.width}:{self._opened.content(image_id)}\n".encode())
        return digest.hexdigest()

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What was left out or taken as it need not be meant, in the files and among the questions of this split."""
        return self._notes

    def phrase_words(self) -> set[str]:
        """Words of all phrases of both splits, those left out included."""
        return self._words

    def splits(self) -> tuple[str, ...]:
        """Both, but one that `train_share` leaves without photos."""
        return tuple(
            name for name, share in (("train", self.train_share), ("validation", 1 - self.train_share)) if share
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
        return Example(
            example_id, image, Prompt.of_text(question.phrase), truth, self.split, photo.source, photo.licence
        )

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The photo [H, W, 3] RGB, resized and padded; raises ValueError where it no longer has `ref.sha256`."""
        pixels = self._view.pixels(self._opened.open(self._opened.id_of(ref.key)))
        if image_sha256(pixels) != ref.sha256:
            raise ValueError(
                f"{ref.key}: SHA-256 of the pixels is {image_sha256(pixels)[:12]}..., but the example was made with "
                f"{ref.sha256[:12]}...; restore the file, or the image_side and square of that time."
            )
        return pixels

    def image_file(self, ref: ImageRef) -> ShownFile:
        """The photo's file, and how it is shown."""
        photo_id = self._opened.id_of(ref.key)
        return ShownFile(Path(ref.key), self._opened.is_upright(photo_id), self._view)

    def scene(self, index: int) -> list[Example]:
        """Every example of the photo of example `index`, in the order of the phrases."""
        return [self[k] for k in self._scenes[self._questions[index].image_id]]

    def _reference(self, photo: Photo) -> ImageRef:
        height, width = self._view.size(photo.height, photo.width)
        if self.square:
            height = width = max(height, width)
        return ImageRef(photo.path, self._opened.sha256(photo.id), height, width)

    def _ignored_crowds(self, question: Question) -> list[Region]:
        """Crowds of the classes that are asked for, in the photo under any of its ids, the targets aside."""
        classes = {self._class_of[self._regions[ann_id].category_id] for ann_id in question.ann_ids}
        photo = self._photos[question.image_id]
        return [
            crowd
            for crowd in self._crowds.get(self._original[question.image_id], [])
            if self._class_of[crowd.category_id] in classes
            and crowd.id not in question.ann_ids
            and self._photos[crowd.image_id].height == photo.height  # else a copy that is annotated turned
            and self._photos[crowd.image_id].width == photo.width
        ]

    def _ignored(self, question: Question, masks: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        ignore = np.zeros(masks.shape[1:], np.bool_)
        for crowd in self._ignored_crowds(question):
            ignore |= self._mask(crowd)
        ignore &= ~masks.any(axis=0)
        return ignore if ignore.any() else None

    def _mask(self, region: Region) -> NDArray[np.bool_]:
        return self._view.padded(region.shape.mask(*self._shown_at(region)), 0)

    def _holds_a_pixel(self, region: Region) -> bool:
        height, width, scale = self._shown_at(region)
        return scale == (1.0, 1.0) or region.shape.holds_a_pixel(height, width, scale)  # at its own size each has one

    def _shown_at(self, region: Region) -> tuple[int, int, tuple[float, float]]:
        """Height and width at which a region is shown, before padding, and the scale (x, y) that leads there."""
        photo = self._photos[region.image_id]
        height, width = self._view.size(photo.height, photo.width)
        return height, width, (width / photo.width, height / photo.height)

    @property
    def _view(self) -> View:
        return View(self.image_side, self.square)
