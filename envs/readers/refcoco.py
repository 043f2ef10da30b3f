"""Reader: RefCOCO, RefCOCO+, RefCOCOg and RefCLEF, as `refs(<split-by>).p` beside `instances.json`.

Every sentence of every reference is a question. Photos are those of COCO train2014 (of saiapr_tc-12 for RefCLEF), and
the folder that holds them is found among the places where the projects that use these sets expect it. Masks are read by
COCO's rule; where parts of a mask overlap they count once.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._coco_json import CocoJson
from envs.readers._image_files import ImageFiles
from envs.readers._refer import in_split, read_references, referred, referring_photos, split_of, splits_of
from envs.readers.base import AnnotatedPhoto, Findings, Found

_REFS = re.compile(r"refs\((?P<by>[^)]+)\)\.(p|json)")
_BESIDE = (
    "images/mscoco/images/train2014",
    "images/coco_2014/train2014",
    "images/train2014",
    "images/saiapr_tc-12",
    "glamm_data/images/coco2014/train2014",
    "coco/train2014",
    "train2014",
    "train2017",
    "saiapr_tc-12",
    "images",
)


@dataclass(frozen=True)
class Reader:
    """A folder such as `refcoco+` with `refs(unc).p` and `instances.json`, or one of the two files."""

    path: str
    """The folder, or the refs file itself."""
    images: str | None = None
    """Folder of the photos; None looks where the projects that use these sets have them."""
    split_by: str | None = None
    """Which refs file: "unc", "umd", "google" or "berkeley"; None where there is only one."""
    text: Annotated[str, one_of("sent", "raw")] = "sent"
    """Which text is asked: `sent`, cleaned and in lower case, or `raw`, as it was typed."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A folder with a refs file, or the file."""
        found = _refs_files(path)
        if not found:
            return None
        names = " and ".join(file.name for file in found)
        return Found(f"RefCOCO family: {names} beside instances.json", 3)

    def splits(self) -> tuple[str, ...]:
        """train, val and the tests, as the refs file names them."""
        return splits_of(map(split_of, self._entries))

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of instances.json."""
        if split not in self.splits():
            raise ValueError(
                f"{self._refs} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        asked = (entry for entry in self._entries if in_split(split_of(entry), split))
        instances = self._refs.with_name("instances.json")
        if not instances.is_file():
            raise FileNotFoundError(f"{instances}: no such file; it holds the masks that {self._refs.name} refers to.")
        coco = CocoJson(instances, findings)
        found = referred(asked, self.text, findings)
        yield from referring_photos(found, coco, ImageFiles(self._folders()), findings)

    @cached_property
    def _entries(self) -> list[Mapping[str, Any]]:
        return read_references(self._refs)

    @cached_property
    def _refs(self) -> Path:
        found = _refs_files(Path(self.path))
        if self.split_by is not None:
            found = [file for file in found if _by(file) == self.split_by]
        if len({_by(file) for file in found}) > 1:
            several = ", ".join(_by(file) for file in found)
            raise ValueError(f"{self.path} holds references split in several ways ({several}); set split_by to one.")
        if not found:
            raise FileNotFoundError(
                f"{self.path}: no refs({self.split_by or '...'}).p; give the folder of one set, such as refcoco, with "
                "its refs file and instances.json."
            )
        return found[0]

    def _folders(self) -> list[Path]:
        if self.images is not None:
            folder = Path(self.images)
            return [folder, folder / "train2014", folder / "saiapr_tc-12"]
        here = self._refs.parent
        return [place / beside for place in (here, here.parent, here.parent.parent) for beside in _BESIDE]


def _refs_files(path: Path) -> list[Path]:
    """The refs files of a folder, pickles before JSON of the same split; or the file itself."""
    if path.is_file():
        return [path] if _REFS.fullmatch(path.name) else []
    found = sorted(file for file in path.glob("refs(*).*") if _REFS.fullmatch(file.name))
    return sorted(found, key=lambda file: (_by(file), file.suffix != ".p"))


def _by(file: Path) -> str:
    match = _REFS.fullmatch(file.name)
    return match["by"] if match else ""
