"""Reader: exports of CVAT, as COCO 1.0 or as CVAT for images 1.1.

COCO: `images/<subset>/` and `annotations/instances_<subset>.json`. CVAT writes `iscrowd` 1 on every brush mask, so it
says nothing there (setting `crowds`); a group is what has the attribute is_crowd. XML: `annotations.xml` and `images/`
(envs/readers/_cvat_xml.py). Zip files have to be unpacked.

Splits are the subsets, Train, Validation and Test in the words of other sets (train, val, test); `default`, of a task
without subsets, is train. CVAT shows photos upright and records their size so. Masks are filled by COCO's rule.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK, class_references
from envs.readers._coco_classes import CROWDS, ClassQuestions, is_by_datumaro, is_in_coco_form
from envs.readers._coco_json import CocoAnnotation, CocoJson
from envs.readers._cvat_xml import XmlImage, objects_of, read_images
from envs.readers._glimpse import head, nothing_here, split_in
from envs.readers._image_files import ImageFiles
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile

BRUSH = "masks with iscrowd 1, as CVAT writes it on every brush mask, taken as objects"
_XML = "annotations.xml"
_WANTED = f"an export of CVAT (annotations/instances_<subset>.json, or {_XML}, with images/ beside it)"


@dataclass(frozen=True)
class Reader:
    """The unpacked folder of an export, or its file of annotations."""

    path: str
    """The folder, or the file itself."""
    images: str | None = None
    """Folder of the photos; None looks in the export."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""
    crowds: Annotated[str, one_of(*CROWDS)] = "objects"
    """What iscrowd 1 says: `objects`, nothing, as on brush masks; `ignore`, a group that counts neither way."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Files that begin as CVAT writes them; less sure where they are only called so."""
        xml = _xml_file(path)
        if xml:
            return Found(f"CVAT for images 1.1: {xml.name}", 3)
        found = _instances(path)
        if not found:
            return None
        sure = any(map(is_by_datumaro, found.values())) or any(file.stem.endswith("default") for file in found.values())
        return Found(f"CVAT's COCO export: {', '.join(file.name for file in found.values())}", 3 if sure else 1)

    def splits(self) -> tuple[str, ...]:
        """Names of the subsets."""
        return tuple(self._of_xml if self._xml else self._of_coco)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a subset, in the order of the export."""
        if split not in self.splits():
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        if self._xml:
            yield from self._xml_photos(split, findings)
            return
        file = self._of_coco[split]
        coco = CocoJson(file, findings)
        files = ImageFiles(self._folders(file.parent.parent, file.stem.removeprefix("instances_")))
        questions = ClassQuestions(coco, files, self.ask, lambda found: self._is_group(found, findings), upright=True)
        yield from questions.photos(findings)

    def _is_group(self, found: CocoAnnotation, findings: Findings) -> bool:
        attributes = found.entry.get("attributes")
        if isinstance(attributes, Mapping) and attributes.get("is_crowd") in (True, "true", "True"):
            return True
        if found.crowd and self.crowds == "objects":
            findings.note(BRUSH, found.id)
        return found.crowd and self.crowds == "ignore"

    def _xml_photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        folder = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        files = ImageFiles(self._folders(folder, self._of_xml[split][0].subset))
        for image in self._of_xml[split]:
            asked = class_references(image.id, objects_of(image, findings), self.ask, findings)
            path = asked and files.found(image.name, [one.id for one in asked], findings)
            if path:
                photo = PhotoFile(image.id, path, image.height, image.width, path.name, upright=True)
                yield AnnotatedPhoto(photo, tuple(asked))

    @cached_property
    def _xml(self) -> Path | None:
        return _xml_file(Path(self.path))

    @cached_property
    def _of_xml(self) -> dict[str, list[XmlImage]]:
        images = read_images(self._xml) if self._xml else []
        subsets = dict.fromkeys(image.subset for image in images)
        names = _split_names(list(subsets))
        return {name: [image for image in images if image.subset == subset] for subset, name in names.items()}

    @cached_property
    def _of_coco(self) -> dict[str, Path]:
        found = _instances(Path(self.path))
        if not found:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        return {name: found[subset] for subset, name in _split_names(list(found)).items()}

    def _folders(self, export: Path, subset: str) -> list[Path]:
        place = Path(self.images) if self.images is not None else export
        return [place / "images" / subset, place / subset, place / "images", place / "data", place]


def _split_names(subsets: list[str]) -> dict[str, str]:
    """By subset, the name of its split; a subset keeps its own where another one has that name already."""
    names: dict[str, str] = {}
    for subset in sorted(subsets, key=lambda subset: subset in ("", "default")):
        name = split_in(subset) if split_in(subset) else "train" if subset in ("", "default") else subset
        names[subset] = name if name and name not in names.values() else subset or "default"
    return names


def _instances(path: Path) -> dict[str, Path]:
    """Files of annotations by subset."""
    files = [path] if path.is_file() else sorted((path / "annotations").glob("instances_*.json"))
    found = [file for file in files if file.stem.startswith("instances_") and is_in_coco_form(file)]
    return {file.stem.removeprefix("instances_"): file for file in found}


def _xml_file(path: Path) -> Path | None:
    file = path / _XML if path.is_dir() else path
    if file.suffix.lower() != ".xml":
        return None
    seen = head(file)
    return file if "<annotations>" in seen and ("<version>1.1" in seen or "<image " in seen) else None
