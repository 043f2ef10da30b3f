"""Env: real photos with annotations in COCO's `instances.json` form, asked about by written phrases or class names.

One rule of pixels for every kind of annotation: polygon parts are turned clockwise, so that they unite, and run lengths
become their exact pixel-edge rings. Where photos are resized, rings are scaled and then filled, so a mask is what the
raster rule says at the size that the policy sees (for run lengths: the source pixel under each new pixel's centre).

What counts neither way: crowd regions of the same class as a target, less the targets themselves. A phrase that names a
crowd region by its id asks for it; a phrase that nothing fits has no class, so there every pixel counts.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.coco_files import (
    Photo,
    Question,
    Region,
    class_questions,
    index_photos,
    index_regions,
    open_photo,
    phrase_questions,
    read_json,
)
from envs.example import Example, ImageRef, Prompt, Truth, image_sha256
from envs.raster import fill
from envs.view import View


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
        data = read_json(self.annotations)
        photos = index_photos(data, self.annotations, Path(self.images))
        self._photos = {k: photo for k, photo in photos.items() if self._split_of(k) == self.split}
        self._sha256 = self._check_photos(photos)
        regions = index_regions(data, self.annotations, photos)
        if self.phrases is None:
            asked = class_questions(data, self.annotations, regions)
        else:
            asked = phrase_questions(self.phrases, photos, regions)
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

    def _check_photos(self, photos: dict[int, Photo]) -> dict[int, str]:
        """Open every photo; hashes of this split's, by image id, where they are decoded for it."""
        hashes = {}
        for photo in photos.values():
            image = open_photo(photo.path, f"image {photo.id}", self.decode_all)
            if image.size != (photo.width, photo.height):
                raise ValueError(
                    f"{photo.path} has {image.width} x {image.height} pixels, but image {photo.id} was annotated at "
                    f"{photo.width} x {photo.height}, so outlines would not fit; fetch the file that was annotated."
                )
            if self.decode_all and photo.id in self._photos:
                hashes[photo.id] = image_sha256(self._view.pixels(image))
        return hashes

    def _split_of(self, image_id: int) -> str:
        draw = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") / 2**64
        return "train" if draw < self.train_share else "validation"

    def _index(self, asked: Iterable[Question]) -> None:
        self._crowds: dict[int, list[Region]] = {}
        for region in self._regions.values():
            if region.crowd:
                self._crowds.setdefault(region.image_id, []).append(region)
        self._questions: list[Question] = []
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
        pixels = self._view.pixels(open_photo(ref.key, "an example's image"))
        if image_sha256(pixels) != ref.sha256:
            raise ValueError(
                f"{ref.key}: SHA-256 of the pixels is {image_sha256(pixels)[:12]}..., but the example was made with "
                f"{ref.sha256[:12]}...; restore the file, or the image_side and square of that time."
            )
        return pixels

    def scene(self, index: int) -> list[Example]:
        """Every example of the photo of example `index`, in the order of the phrases."""
        return [self[k] for k in self._scenes[self._questions[index].image_id]]

    def _reference(self, photo: Photo) -> ImageRef:
        if photo.id not in self._sha256:
            self._sha256[photo.id] = image_sha256(self._view.pixels(open_photo(photo.path, f"image {photo.id}")))
        height, width = self._view.size(photo.height, photo.width)
        if self.square:
            height = width = max(height, width)
        return ImageRef(photo.path, self._sha256[photo.id], height, width)

    def _ignored(self, question: Question, masks: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        classes = {self._regions[ann_id].category_id for ann_id in question.ann_ids}
        ignore = np.zeros(masks.shape[1:], np.bool_)
        for crowd in self._crowds.get(question.image_id, []):
            if crowd.category_id in classes and crowd.id not in question.ann_ids:
                ignore |= self._mask(crowd)
        ignore &= ~masks.any(axis=0)
        return ignore if ignore.any() else None

    def _mask(self, region: Region) -> NDArray[np.bool_]:
        photo = self._photos[region.image_id]
        height, width = self._view.size(photo.height, photo.width)
        vertices = region.vertices * np.array([width / photo.width, height / photo.height])
        return self._view.padded(fill(vertices, region.offsets, height, width), 0)

    @property
    def _view(self) -> View:
        return View(self.image_side, self.square)
