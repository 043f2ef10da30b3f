"""Where the photos of a data set lie: folders to look in, and the names under which one photo goes."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from envs.readers.base import Findings

MISSING = "photos that are not where they were looked for"
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})(?:_\d+)?(\.jpg)")
_COCO_FOLDERS = ("train2014", "val2014", "train2017", "val2017")


class ImageFiles:
    """Photos by name, looked for in a few folders; the folder that had the last one is tried first."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """folders: where photos may lie, the likeliest first; those that are not there are passed over."""
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]

    def find(self, name: str) -> Path | None:
        """The file of a photo; None where no folder has it.

        name: as annotations give it, parts of a path included; backslashes part folders as Windows writes them. A name
        of COCO is also looked for as the other release of COCO has it, in a folder of that name or without.
        """
        for place, folder in enumerate(self.folders):
            for spelled in spellings(name):
                path = folder / spelled
                if _is_file(path):
                    self.folders.insert(0, self.folders.pop(place))
                    return path
        return None

    def found(self, name: str, questions: Sequence[str], findings: Findings) -> Path | None:
        """The file of a photo, as `find` has it; tells where it is missing, and which questions are lost by that."""
        path = self.find(name)
        if path is None:
            findings.leave_out(MISSING, name)
            for question in questions:
                findings.lose("questions about a photo that is missing", question)
        return path


def spellings(name: str) -> Iterator[str]:
    """Names under which a photo may lie, the given one first."""
    posix = name.replace("\\", "/")
    last = PurePosixPath(posix).name
    yield from dict.fromkeys((name, posix, last))
    if match := _COCO_NAME.fullmatch(last):
        digits, suffix = match[1], match[2]
        for folder in _COCO_FOLDERS:
            own = f"COCO_{folder}_{digits}{suffix}" if folder.endswith("2014") else f"{digits}{suffix}"
            yield from (f"{folder}/{own}", own)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
