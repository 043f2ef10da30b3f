"""Reader: Roboflow's COCO export, `{train,valid,test}/_annotations.coco.json` beside the photos.

Class 0 is the super-category of the project, which no object has; where an annotation has it all the same, it is left
out. Annotations are in pixels of the exported copies of the photos, which Roboflow has turned upright and may have
stretched. Masks are filled by COCO's rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK
from envs.readers._coco_classes import ClassQuestions
from envs.readers._coco_json import CocoJson
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers.base import AnnotatedPhoto, Findings, Found

NAME = "_annotations.coco.json"
SUPER_CATEGORY = "0"
"""Id of the class that stands for the project."""
_ORDER = ("train", "valid", "test")
_WANTED = f"an export of Roboflow ({NAME} in train/, valid/ or test/)"


@dataclass(frozen=True)
class Reader:
    """The folder of an export, one of its split folders, or the file of one."""

    path: str
    """The folder, or the file itself."""
    images: str | None = None
    """Folder of the photos; None looks beside the annotations."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A folder with files of that name, which no other tool gives."""
        found = _files(path)
        return Found(f"Roboflow's COCO export: {', '.join(found)}", 3) if found else None

    def splits(self) -> tuple[str, ...]:
        """Names of the folders: train, valid, test."""
        return tuple(self._of_split)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of its file."""
        if split not in self._of_split:
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        file = self._of_split[split]
        coco = CocoJson(file, findings)
        if _has_super_category(coco):
            del coco.classes[SUPER_CATEGORY]  # its annotations, where there are any, are then told as of no class
        places = [file.parent] if self.images is None else [Path(self.images) / split, Path(self.images)]
        files = ImageFiles([*places, *(place / "images" for place in places)])
        yield from ClassQuestions(coco, files, self.ask, lambda found: found.crowd).photos(findings)

    @cached_property
    def _of_split(self) -> dict[str, Path]:
        found = _files(Path(self.path))
        if not found:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        return found


def _has_super_category(coco: CocoJson) -> bool:
    """Whether class 0 is the `supercategory` of another class."""
    parents = [entry.get("supercategory") for class_id, entry in coco.classes.items() if class_id != SUPER_CATEGORY]
    return bool(coco.class_name(SUPER_CATEGORY)) and coco.class_name(SUPER_CATEGORY) in parents


def _files(path: Path) -> dict[str, Path]:
    """Annotations by the name of their folder; a folder of another name is train."""
    file = path if path.name == NAME else path / NAME
    if file.is_file():
        name = file.resolve().parent.name
        return {name if name in _ORDER else "train": file}
    return {name: path / name / NAME for name in _ORDER if (path / name / NAME).is_file()}
