"""Folders of the RefCOCO family: `refs(<split-by>).p` or `grefs(<split-by>).json` beside `instances.json`, and the
places where the projects that use these sets have the photos."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.plugin import did_you_mean
from envs.readers._coco_json import CocoJson
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._refer import in_split, read_references, referred, referring_photos, split_of, splits_of
from envs.readers.base import AnnotatedPhoto, Findings, Found

_BESIDE = (
    "images/mscoco/images/train2014",
    "images/coco_2014/train2014",
    "images/train2014",
    "images/saiapr_tc-12",
    "glamm_data/images/coco2014/train2014",
    "coco/train2014",
    "coco2014/train2014",
    "train2014",
    "train2017",
    "saiapr_tc-12",
    "images",
)


@dataclass(frozen=True)
class RefsFolder:
    """One set of references, and the files around it."""

    word: str
    """How the file of references is called: "refs" or "grefs"."""
    path: str
    """The folder, or the file itself."""
    images: str | None
    """Folder of the photos; None looks for it."""
    split_by: str | None
    """What stands in brackets in the file's name; None where there is only one."""

    def splits(self) -> tuple[str, ...]:
        """train, val and the tests, as the references name them."""
        return splits_of(map(split_of, self._entries))

    def photos(self, split: str, text: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of instances.json; text: as `referred` has it."""
        if split not in self.splits():
            raise ValueError(
                f"{self._refs} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        instances = self._refs.with_name("instances.json")
        if not instances.is_file():
            raise FileNotFoundError(f"{instances}: no such file; it holds the masks that {self._refs.name} refers to.")
        coco = CocoJson(instances, findings)
        found = referred(self._entries, text, findings, lambda entry: in_split(split_of(entry), split))
        yield from referring_photos(found, coco, ImageFiles(self.folders()), findings)

    def folders(self) -> list[Path]:
        """Where photos may lie, the likeliest first."""
        if self.images is not None:
            folder = Path(self.images)
            return [folder, folder / "train2014", folder / "saiapr_tc-12"]
        return photo_folders(self._refs.parent)

    @cached_property
    def _entries(self) -> list[Mapping[str, Any]]:
        return read_references(self._refs)

    @cached_property
    def _refs(self) -> Path:
        path = Path(self.path)
        every = refs_files(self.word, path)
        found = [file for file in every if self.split_by in (None, _by(file))]
        several = list(dict.fromkeys(_by(file) for file in found))
        if len(several) > 1:
            raise ValueError(
                f"{self.path} holds references split in several ways ({', '.join(several)}); set split_by to one."
            )
        if not found:
            name = f"{self.word}({self.split_by or '...'})"
            raise nothing_here(path, f"the folder of one set with {name}.p or .json and instances.json", self.recognise)
        return found[0]

    def recognise(self, path: Path) -> Found | None:
        """What of `path` is a folder of this kind, or its file of references."""
        names = " and ".join(file.name for file in refs_files(self.word, path))
        return Found(f"{names} beside instances.json", 3) if names else None


def photo_folders(here: Path) -> list[Path]:
    """Places where the projects that use photos of COCO train2014 have them, seen from the folder of a set."""
    return [place / beside for place in (here, here.parent, here.parent.parent) for beside in _BESIDE]


def refs_files(word: str, path: Path) -> list[Path]:
    """The files of references of a folder, pickles before JSON of the same split; or the file itself."""
    pattern = re.compile(re.escape(word) + r"\([^)]+\)\.(p|json)")
    if path.is_file():
        return [path] if pattern.fullmatch(path.name) else []
    found = [file for file in path.glob(f"{word}(*).*") if pattern.fullmatch(file.name)]
    return sorted(found, key=lambda file: (_by(file), file.suffix != ".p"))


def _by(file: Path) -> str:
    return file.stem.partition("(")[2].removesuffix(")")
