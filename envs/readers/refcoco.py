"""Reader: RefCOCO, RefCOCO+, RefCOCOg and RefCLEF, as `refs(<split-by>).p` beside `instances.json`.

Every sentence of every reference is a question. Photos are those of COCO train2014 (of saiapr_tc-12 for RefCLEF), and
the folder that holds them is found among the places where the projects that use these sets expect it. Masks are read by
COCO's rule; where parts of a mask overlap they count once.
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
        found = refs_files("refs", path)
        if not found:
            return None
        names = " and ".join(file.name for file in found)
        return Found(f"RefCOCO family: {names} beside instances.json", 3)

    def splits(self) -> tuple[str, ...]:
        """train, val and the tests, as the refs file names them."""
        return self._folder.splits()

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of instances.json."""
        yield from self._folder.photos(split, self.text, findings)

    @cached_property
    def _folder(self) -> RefsFolder:
        return RefsFolder("refs", self.path, self.images, self.split_by)
