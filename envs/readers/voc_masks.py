"""Reader: masks of Pascal VOC, `SegmentationObject/*.png` and `SegmentationClass/*.png` beside `JPEGImages`.

A pixel's palette index is the number of its object, and of its class; 0 is the background, 255 the border around
objects, which counts neither way. The class of an object is the one that most of its pixels have, so both files are
read while the data set is. Classes are the twenty of VOC, or the lines of `class_names.txt` where it is there, as
labelme's converter writes it (the first line is index 0). Splits are the lists in `ImageSets/Segmentation`; without
any, everything is train.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK, ClassedObject, class_references
from envs.readers._coco_classes import UNKNOWN_CLASS
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._pixels import INDEX, FilePixels, is_indexed, pixels_of, size_of
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile

BACKGROUND, VOID = 0, 255
NO_MASK = "photos without a PNG of objects and one of classes that can be read"
NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of VOC by palette index."""
_SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
_OBJECTS, _CLASSES, _LISTS = "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")
_WANTED = f"a VOC folder ({_OBJECTS}/, {_CLASSES}/ and JPEGImages/, as in VOCdevkit/VOC2012)"


@dataclass(frozen=True)
class Reader:
    """A folder such as VOCdevkit/VOC2012."""

    path: str
    """The folder."""
    images: str | None = None
    """Folder of the photos; None takes JPEGImages."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A folder with both folders of masks."""
        there = (path / _OBJECTS).is_dir() and (path / _CLASSES).is_dir()
        return Found(f"Pascal VOC masks: {_OBJECTS} and {_CLASSES}", 3) if there else None

    def splits(self) -> tuple[str, ...]:
        """Names of the lists: train, val, trainval."""
        return tuple(self._lists)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of its list."""
        if split not in self._lists:
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        places = [Path(self.path) / "JPEGImages"] if self.images is None else [Path(self.images)]
        files = ImageFiles(places)
        for name in self._lists[split]:
            png = Path(self.path) / _OBJECTS / f"{name}.png"
            try:
                objects, (height, width) = list(self._objects(name, findings)), size_of(png)
            except (ValueError, OSError) as error:
                findings.leave_out(NO_MASK, f"{name} ({error})")
                continue
            asked = class_references(name, objects, self.ask, findings, (FilePixels(png, (VOID,)),))
            path = asked and _photo_of(name, [one.id for one in asked], files, findings)
            if path:
                yield AnnotatedPhoto(PhotoFile(name, path, height, width, path.name), tuple(asked))

    def _objects(self, name: str, findings: Findings) -> Iterator[ClassedObject]:
        """The objects of a photo, by their numbers.

        Raises FileNotFoundError or ValueError where its files are missing, damaged, or of colours in place of indices.
        """
        of_objects, of_classes = (Path(self.path) / folder / f"{name}.png" for folder in (_OBJECTS, _CLASSES))
        numbers, classes = pixels_of(of_objects, INDEX), pixels_of(of_classes, INDEX)
        for file in (of_objects, of_classes):
            if not is_indexed(file):
                raise ValueError(f"{file.name} has colours in place of a palette")
        if numbers.shape != classes.shape:
            raise ValueError(f"its PNGs differ in size: {numbers.shape} and {classes.shape}")
        for number in np.unique(numbers[(numbers != BACKGROUND) & (numbers != VOID)]).tolist():
            found = classes[(numbers == number) & (classes != BACKGROUND) & (classes != VOID)]
            index = int(np.bincount(found).argmax()) if len(found) else BACKGROUND
            if 0 < index < len(self._names):
                yield ClassedObject(f"{number}", self._names[index], FilePixels(of_objects, (number,)))
            else:
                findings.leave_out(UNKNOWN_CLASS, f"{name}/{number} (class {index})")

    @cached_property
    def _names(self) -> tuple[str, ...]:
        own = Path(self.path) / "class_names.txt"
        if own.is_file():
            return tuple(line.strip() for line in own.read_text("utf-8").splitlines())
        return tuple(_SPOKEN.get(name, name) for name in NAMES)

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """Names of photos by split."""
        path = Path(self.path)
        if not Reader.recognise(path):
            raise nothing_here(path, _WANTED, Reader.recognise)
        files = sorted((path / _LISTS).glob("*.txt"), key=lambda file: (_order(file.stem), file.stem))
        lists = {
            file.stem: [line.split()[0] for line in file.read_text().splitlines() if line.strip()] for file in files
        }
        return lists or {"train": sorted(png.stem for png in (path / _OBJECTS).glob("*.png"))}


def _photo_of(name: str, questions: list[str], files: ImageFiles, findings: Findings) -> Path | None:
    found = next((path for suffix in _SUFFIXES if (path := files.find(name + suffix))), None)
    return found or files.found(f"{name}.jpg", questions, findings)


def _order(split: str) -> int:
    return ("train", "val", "test").index(split) if split in ("train", "val", "test") else 3
