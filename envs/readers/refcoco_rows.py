"""Reader: RefCOCO's sets as Parquet rows of the hub, one row a reference, in two forms.

The rows of jxu124 (`raw_anns`) hold the annotations of RefCOCO's own files; their split `test` is testA of RefCOCO and
RefCOCO+. The rows of lmms-lab (`question_id`) hold all parts of an outline as one flat list of numbers: an object of
several parts is one ring there, wrong between its parts, and every reference is told for that; their split `val` mixes
two ways of splitting, and there is no train.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from envs.ranges import one_of
from envs.readers._by_photo import by_photo, refuse_unknown_split, usable_shape
from envs.readers._coco_json import id_text, sides
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._parquet_rows import PhotosOfRows, Row, Rows, columns_of, photo_name, split_files
from envs.readers._refer import UNUSABLE, Referred, referred
from envs.readers._refs_folder import photo_folders
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text

FLAT = "references whose outline is one flat list: parts, where there are several, are joined into one ring"
CROWD_FLAT = "a crowd, whose run lengths a flat list cannot hold"
_BY_OBJECT = ("ref_id", "ann_id", "image_id", "sentences", "raw_anns", "raw_image_info", "image_path", "file_name")
_FLAT_LIST = ("question_id", "answer", "segmentation", "iscrowd", "file_name")


@dataclass(frozen=True)
class Reader:
    """A folder with Parquet files of one set, named by split."""

    path: str
    """The folder, or one of its Parquet files."""
    images: str | None = None
    """Folder of the photos of COCO train2014; None looks where the projects that use them have them."""
    unpack: str | None = None
    """Folder that photos are written to that are in the Parquet files alone; None leaves out what is asked of them."""
    text: Annotated[str, one_of("sent", "raw")] = "sent"
    """Which text is asked where rows have both: `sent`, cleaned and in lower case, or `raw`, as it was typed."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Parquet files with the columns of one of the two forms."""
        columns = columns_of(split_files(path))
        if columns.issuperset({"ref_id", "sentences", "raw_anns"}):
            return Found("RefCOCO family: Parquet rows with the original annotations (raw_anns)", 3)
        if columns.issuperset(_FLAT_LIST):
            return Found("RefCOCO family: Parquet rows with flat outlines (parts joined)", 3)
        return None

    def splits(self) -> tuple[str, ...]:
        """Splits, by the names of the files."""
        return tuple(self._files)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order in which they come first."""
        refuse_unknown_split(split, self.splits(), self.path)
        rows = Rows(self._files[split], findings)
        folders = photo_folders(Path(self.path)) if self.images is None else [Path(self.images)]
        photos = PhotosOfRows(rows, ImageFiles(folders), self.unpack)
        for name, objects in by_photo(_objects(rows, self.text, findings)):
            found = [question for each in objects for question in each.questions(findings)]
            path = found and photos.found(name, objects[0].row, [one.id for one in found], findings)
            if path:
                photo = PhotoFile(objects[0].ref.image_id, path, *objects[0].size, name)
                yield AnnotatedPhoto(photo, tuple(found))

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if self.recognise(Path(self.path)) is None:
            wanted = "Parquet files with ref_id, sentences and raw_anns, or with question_id, answer and segmentation"
            raise nothing_here(Path(self.path), wanted, self.recognise)
        return split_files(Path(self.path))


@dataclass(frozen=True)
class _Object:
    """A reference with what its row says of the object."""

    row: Row
    ref: Referred
    size: tuple[int, int]
    segmentation: Any
    crowd: bool
    flat: bool

    def questions(self, findings: Findings) -> Iterator[Reference]:
        """A question for each sentence."""
        shape = CROWD_FLAT if self.crowd and self.flat else usable_shape(self.segmentation, *self.size)
        if self.flat and not isinstance(shape, str):
            findings.note(FLAT, self.ref.id)
        for question, sentence in zip(self.ref.question_ids(), self.ref.sentences, strict=True):
            if isinstance(shape, str):
                findings.lose(f"{UNUSABLE} ({shape})", question)
            else:
                yield Reference(question, (sentence.text,), (shape,))


def _objects(rows: Rows, text: str, findings: Findings) -> Iterator[tuple[str, _Object]]:
    """(name of the photo, object) of each row that has a sentence."""
    listed = list(rows.columns(*dict.fromkeys(_BY_OBJECT + _FLAT_LIST)))
    for ref in referred((_as_refs(values) for _, values in listed), text, findings):
        row, values = listed[ref.place]
        yield _name(values), _object(row, ref, values)


def _as_refs(values: dict[str, Any]) -> dict[str, Any]:
    """A row in the form of RefCOCO's own references."""
    if "question_id" not in values:
        return values
    name, number = photo_name(plain_text(values.get("file_name"))), id_text(values.get("question_id"))
    return {"ref_id": number, "ann_id": number, "image_id": PurePosixPath(name).stem, "sentences": values.get("answer")}


def _name(values: dict[str, Any]) -> str:
    path = plain_text(values.get("image_path"))
    return PurePosixPath(path).name if path else photo_name(plain_text(values.get("file_name")))


def _object(row: Row, ref: Referred, values: dict[str, Any]) -> _Object:
    flat = "question_id" in values
    annotation = values if flat else _mapping(values.get("raw_anns"))
    size = (0, 0) if flat else sides(_mapping(values.get("raw_image_info")))
    crowd = annotation.get("iscrowd") in (1, True)
    return _Object(row, ref, size, annotation.get("segmentation"), crowd, flat)


def _mapping(text: Any) -> dict[str, Any]:
    """A mapping that is written as JSON; {} for anything else."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
