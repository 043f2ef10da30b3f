"""Reader: YOLO segmentation, `data.yaml` with `images/<split>` and `labels/<split>`.

A line of a label file is a class and a polygon, `class x1 y1 x2 y2 ...` in 0..1 of the photo; one of five numbers is a
box and is left out. A mask is filled by COCO's rule at the photo's size, which comes with the call of `mask`: not even
the header of a photo is read before that. What lies out of range is cut off then. As Ultralytics does it, outlines lie
on the photo turned upright. Parts of one object that a converter joined by bridges of no width fill as they should;
holes do not exist.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from envs.geometry.raster import fill_as_pycocotools
from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK, ClassedObject, class_references
from envs.readers._coco_classes import UNKNOWN_CLASS
from envs.readers._coco_json import NO_MASK, NOT_READ
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import MISSING
from envs.readers._yolo_yaml import YoloFolder, label_files, yolo_yaml
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile

ODD = "lines with an odd number of coordinates"
SHORT = "lines of fewer than three points"
OUTSIDE = "polygons that reach out of the photo, cut off at its edge"
_FAR = 100.0
"""Widths of the photo; a vertex that is farther away is a mistake."""
_WANTED = "a YOLO data set (data.yaml, or classes.txt, with images/ and labels/)"


@dataclass(frozen=True)
class UnitPolygon:
    """A polygon in parts of a photo."""

    vertices: NDArray[np.float64]
    """[N, 2] vertices (x, y), 0..1 of width and height."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels by COCO's rule."""
        offsets = np.array([0, len(self.vertices)], np.int64)
        return fill_as_pycocotools(self.vertices * np.array([width, height]), offsets, height, width)


@dataclass(frozen=True)
class Reader:
    """The folder of a data set, or its data.yaml."""

    path: str
    """The folder, or the YAML file itself."""
    images: str | None = None
    """Folder of the photos, or of the folders of the splits; None goes by data.yaml."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A YAML file with names of classes, or classes.txt, and label files where they belong."""
        file = yolo_yaml(path)
        return Found(f"YOLO segmentation: {file.name} and label files", 3) if file else None

    def splits(self) -> tuple[str, ...]:
        """train, val and test, as far as they have label files."""
        return tuple(self._folder.labels)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of the names of their label files."""
        if split not in self.splits():
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        photos = self._folder.photos(split, self.images)
        for name, file in label_files(self._folder.labels[split]):
            asked = class_references(name, _objects(name, file, self._folder.names, findings), self.ask, findings)
            path = photos.get(name)
            if asked and path:
                yield AnnotatedPhoto(PhotoFile(name, path, source=path.name, upright=True), tuple(asked))
            elif asked:
                findings.leave_out(MISSING, name)
                for one in asked:
                    findings.lose("questions about a photo that is missing", one.id)

    @cached_property
    def _folder(self) -> YoloFolder:
        file = yolo_yaml(Path(self.path))
        if file is None:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        return YoloFolder.of(file)


def _objects(name: str, file: Path, names: Mapping[int, str], findings: Findings) -> Iterator[ClassedObject]:
    """The objects of a label file, by the numbers of its lines."""
    for place, line in enumerate(file.read_text("utf-8-sig", "replace").splitlines(), 1):
        which = f"{PurePosixPath(name).name}:{place}"
        if not line.strip():
            continue
        try:
            index, *numbers = (float(word) for word in line.replace(",", " ").split())
        except ValueError:
            findings.leave_out(NOT_READ, which)
            continue
        if not (index.is_integer() and int(index) in names):
            findings.leave_out(UNKNOWN_CLASS, f"{which} (class {index:g})")
            continue
        found = _polygon(numbers)
        if isinstance(found, str):
            findings.leave_out(found, which)
            yield ClassedObject(f"{place}", names[int(index)], None)
            continue
        if not ((found.vertices >= 0) & (found.vertices <= 1)).all():
            findings.note(OUTSIDE, which)
        yield ClassedObject(f"{place}", names[int(index)], found)


def _polygon(numbers: list[float]) -> UnitPolygon | str:
    """The polygon of a line; or, where it has none, why, in words to count by."""
    if not all(math.isfinite(number) and abs(number) < _FAR for number in numbers):
        return NOT_READ
    if len(numbers) == 4:
        return NO_MASK
    if len(numbers) % 2:
        return ODD
    return UnitPolygon(np.array(numbers, np.float64).reshape(-1, 2)) if len(numbers) >= 6 else SHORT
