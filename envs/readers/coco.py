"""Reader: COCO instances, `instances_{train,val}20{14,17}.json` or any JSON of that form.

Asked are the names of classes, or the phrases of a file beside (docs/coco.md). A mask is filled by COCO's rule: each
polygon part even-odd by itself, on fifths of a pixel, then united; run lengths are taken as they are. The split is the
word train, val or test in the name of a file; one without any is train. Photos are looked for in the folders that COCO
and those who use its form have them in: `train2017` beside `annotations`, `images/train2017`, `images`, and so on.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK
from envs.readers._coco_classes import CROWDS, ClassQuestions, is_by_datumaro, is_in_coco_form
from envs.readers._coco_json import CocoJson
from envs.readers._coco_phrases import PhraseQuestions, read_phrases
from envs.readers._glimpse import nothing_here, split_in
from envs.readers._image_files import ImageFiles
from envs.readers.base import AnnotatedPhoto, Findings, Found

_OF_COCO = re.compile(r"instances_(train|val|minival|valminusminival)20(14|17)\.json")
_WANTED = "annotations in COCO's form (a .json file with images, annotations and categories, alone or in annotations/)"


@dataclass(frozen=True)
class Reader:
    """A folder such as `coco` with `annotations/instances_train2017.json`, or one file of annotations."""

    path: str
    """The folder, or the file itself."""
    images: str | None = None
    """Folder of the photos; None looks around the file."""
    phrases: str | None = None
    """JSON list of {image_id, ann_ids, phrases} to ask in place of the names of classes."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""
    crowds: Annotated[str, one_of(*CROWDS)] = "ignore"
    """What iscrowd 1 says: `ignore`, a group that counts neither way; `objects`, nothing."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A file of annotations, or a folder with some; surest where they are named as COCO's own."""
        found = _annotation_files(path)
        if not found:
            return None
        names = ", ".join(file.name for file in found)
        own = all(_OF_COCO.fullmatch(file.name) for file in found) and not any(map(is_by_datumaro, found))
        return Found(f"COCO instances: {names}", 3 if own else 2)

    def splits(self) -> tuple[str, ...]:
        """train, val and test, as names of files tell them."""
        return tuple(sorted(self._files, key=("train", "val", "test").index))

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of its file."""
        if split not in self.splits():
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        coco = CocoJson(self._files[split], findings)
        files = ImageFiles(self._folders(self._files[split], split))
        if self.phrases is None:
            groups = self.crowds == "ignore"
            yield from ClassQuestions(coco, files, self.ask, lambda found: groups and found.crowd).photos(findings)
            return
        phrases = tuple(read_phrases(Path(self.phrases), findings))
        asked_here = {phrase.image_id for phrase in phrases} <= coco.images.keys()
        elsewhere = frozenset[str]() if asked_here else self._images_of_others(split)
        yield from PhraseQuestions(coco, files, phrases, elsewhere, self.crowds == "ignore").photos(findings)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each split."""
        of_split: dict[str, Path] = {}
        for file in _annotation_files(Path(self.path)):
            split = split_in(file.stem) or "train"
            if split in of_split:
                raise ValueError(
                    f"{self.path} has {of_split[split].name} and {file.name}, both for the split {split}; give one of "
                    "the files itself."
                )
            of_split[split] = file
        if not of_split:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        return of_split

    def _images_of_others(self, split: str) -> frozenset[str]:
        others = [CocoJson(file, Findings()) for name, file in self._files.items() if name != split]
        return frozenset(image_id for other in others for image_id in other.images)

    def _folders(self, file: Path, split: str) -> list[Path]:
        """Where photos of a file may lie, the likeliest first."""
        own = file.stem.rsplit("_", 1)[-1]  # train2017 of instances_train2017
        names = (own, f"images/{own}", split, f"images/{split}", "images", "data", ".")
        years = tuple(f"{name}{year}" for name in ("train", "val") for year in (2017, 2014))
        places = [Path(self.images)] if self.images is not None else [file.parent, file.parent.parent]
        return [place / name for name in (*names, *years) for place in places]


def _annotation_files(path: Path) -> list[Path]:
    """Files of a folder in COCO's form, those called instances alone where there are any; or the file itself."""
    if not path.is_dir():
        return [path] if is_in_coco_form(path) else []
    for folder in (path / "annotations", path):
        found = [file for file in sorted(folder.glob("*.json")) if is_in_coco_form(file)]
        instances = [file for file in found if file.stem.startswith("instances")]
        if found:
            return instances or found
    return []
