"""Reader: gRefCOCO, as `grefs(unc).json` (or `.p`) beside `instances.json`: one object, several, or none at all.

Every sentence is a question. Where nothing in the photo is meant there is no mask; a target that is a crowd region is
kept with its mask, and told. In this set val asks for no single object, so that it says little of training on train.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from envs.ranges import one_of
from envs.readers._refs_folder import RefsFolder, refs_files
from envs.readers.base import AnnotatedPhoto, Findings, Found


@dataclass(frozen=True)
class Reader:
    """The folder `grefcoco` with `grefs(unc).json` and `instances.json`, or the file of references."""

    path: str
    """The folder, or the file of references itself."""
    images: str | None = None
    """Folder of the photos, COCO train2014; None looks where the projects that use this set have them."""
    split_by: str | None = None
    """What stands in brackets in the name of the file of references; None where there is only one."""
    text: Annotated[str, one_of("sent", "raw")] = "sent"
    """Which text is asked: `sent`, cleaned and in lower case, or `raw`, as it was typed."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A folder with a file of references, or the file."""
        found = refs_files("grefs", path)
        if not found:
            return None
        names = " and ".join(file.name for file in found)
        return Found(f"gRefCOCO: {names} beside instances.json", 3)

    def splits(self) -> tuple[str, ...]:
        """train, val, testA and testB, as the file names them."""
        return self._folder.splits()

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of instances.json."""
        yield from self._folder.photos(split, self.text, findings)

    @cached_property
    def _folder(self) -> RefsFolder:
        return RefsFolder("grefs", self.path, self.images, self.split_by)
