"""Photos of files in COCO's form, asked about by the names of classes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.readers._by_class import ClassedObject, class_references
from envs.readers._coco_json import NO_PIXEL, CocoAnnotation, CocoJson, id_text
from envs.readers._glimpse import head
from envs.readers._image_files import ImageFiles
from envs.readers.base import AnnotatedPhoto, Findings, Reference, Shape

CROWDS = ("ignore", "objects")
"""What iscrowd 1 says: a group, which counts neither way; or nothing, as tools write it on masks of one object."""
UNKNOWN_CLASS = "annotations of a class that is not in the file"
_OF_OTHER_TASKS = re.compile(r"(captions|person_keypoints|panoptic|stuff|image_info)_.*")
_LIST = re.compile(r'"(images|annotations|categories)"\s*:\s*\[')
_BY_DATUMARO = re.compile(r'\{\s*"licenses":\s*\[\s*\{\s*"name":\s*"",\s*"id":\s*0,\s*"url":\s*""\s*\}')


def is_in_coco_form(path: Path) -> bool:
    """Whether the name and the first bytes of a file are those of annotations in COCO's form."""
    if path.suffix.lower() != ".json" or _OF_OTHER_TASKS.fullmatch(path.stem):
        return False
    seen = head(path)
    return seen.lstrip().startswith("{") and _LIST.search(seen) is not None and '"segments_info"' not in seen


def is_by_datumaro(path: Path) -> bool:
    """Whether a file begins as Datumaro writes it, the library that CVAT exports with."""
    return _BY_DATUMARO.match(head(path)) is not None


CrowdRule = Callable[[CocoAnnotation], bool]
"""Whether an annotation is a group."""


@dataclass(frozen=True)
class ClassQuestions:
    """What is asked about the photos of a file: the names of its classes."""

    coco: CocoJson
    files: ImageFiles
    ask: str
    """One of ASK of envs/readers/_by_class.py."""
    is_group: CrowdRule
    upright: bool | None = None
    """Whether outlines lie on photos turned upright; as PhotoFile has it."""

    def photos(self, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Every photo with a question, in the order of the file."""
        for image_id in self.coco.images:
            asked = class_references(image_id, self._objects(image_id, findings), self.ask, findings)
            photo = self._with_photo(image_id, asked, findings)
            if photo:
                yield photo

    def _with_photo(self, image_id: str, asked: list[Reference], findings: Findings) -> AnnotatedPhoto | None:
        path = asked and self.coco.found_photo(image_id, self.files, [one.id for one in asked])
        return AnnotatedPhoto(self.coco.photo(image_id, path, self.upright), tuple(asked)) if path else None

    def _objects(self, image_id: str, findings: Findings) -> Iterator[ClassedObject]:
        for ann_id in self.coco.annotation_ids(image_id):
            found = self.coco.annotation(ann_id)
            entry = self.coco.entry(ann_id) if isinstance(found, str) else found.entry
            category_id = id_text(entry.get("category_id"))
            name = self.coco.class_name(category_id)
            if category_id not in self.coco.classes:
                findings.leave_out(UNKNOWN_CLASS, f"{ann_id} (class {category_id or '?'})")
            elif isinstance(found, str):
                findings.leave_out(found, ann_id)
                yield ClassedObject(ann_id, name, None, speck=found == NO_PIXEL)
            else:
                yield ClassedObject(ann_id, name, found.shape, self.is_group(found))


def crowds_of(coco: CocoJson, image_id: str, category_ids: set[str]) -> Iterator[tuple[str, Shape]]:
    """(id, shape) of the groups of an image that are of one of some classes."""
    for ann_id in coco.annotation_ids(image_id):
        entry = coco.entry(ann_id)
        if entry.get("iscrowd") in (1, "1") and id_text(entry.get("category_id")) in category_ids:
            found = coco.annotation(ann_id)
            if isinstance(found, CocoAnnotation):
                yield ann_id, found.shape
