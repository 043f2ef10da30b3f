"""Images: the files of a folder and of the folders in it, with what lies beside them as crawlers of the web write it.

Beside NAME.jpg may lie NAME.txt, its alternative text or tags, and NAME.json with `url`, `license` and `tags`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from envs.ranges import above, at_least
from envs.readers._glimpse import few_names, is_image
from rollout.label.images._opened import opened_file
from rollout.label.record import Origin, Shown

_PARTS = re.compile(r"[,;\n]")
_MOST_TAG = 200


@dataclass(frozen=True)
class Images:
    """The files below a folder, in the order of their paths."""

    path: str
    """The folder."""
    side: Annotated[int | None, at_least(16)] = None
    """Longer side at which images are labelled and, later, trained on; null leaves them as they are."""
    licence: str = ""
    """Licence of the images that say none themselves."""
    most_pixels: Annotated[int, above(0)] = 100_000_000
    """An image of more pixels is refused by its header."""

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        folder = Path(self.path).expanduser().resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"images.path is {self.path}, which is no folder; give a folder of images.")
        found = (path for path in folder.rglob("*") if is_image(path) and path.is_file())
        files = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
        if not files:
            raise ValueError(f"images.path is {self.path}, a folder without images: there is {few_names(folder)}.")
        return tuple(files)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names of the files and their lengths."""
        listed = ((str(path), path.stat().st_size) for path in self._files)
        return hashlib.sha256(f"{[*listed]} {self.side}".encode("utf-8", "surrogateescape")).hexdigest()

    def __len__(self) -> int:
        """Number of files; FileNotFoundError or ValueError where there is none."""
        return len(self._files)

    def read(self, index: int) -> Shown:
        """The image of a file."""
        path = self._files[index]
        told, text = _beside(path.with_suffix(".json")), path.with_suffix(".txt")
        tags = told.get("tags") or (text.read_text(encoding="utf-8", errors="replace") if text.is_file() else "")
        origin = Origin(
            key=str(path).encode("utf-8", "replace").decode(),
            file=str(path),
            side=self.side,
            licence=_text(told.get("licence") or told.get("license")) or self.licence,
            address=_text(told.get("address") or told.get("url")),
            tags=tags_of(tags),
        )
        return opened_file(index, origin, path, self.most_pixels)


def _beside(path: Path) -> Mapping[str, Any]:
    """What a JSON file beside an image says; nothing where there is none, or none that says anything."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def tags_of(told: object) -> tuple[str, ...]:
    """Tags as they come: a list of words, or a text of them parted by commas, semicolons or lines; each once."""
    parts = told if isinstance(told, list | tuple) else _PARTS.split(_text(told))
    words = (" ".join(_text(part).split())[:_MOST_TAG] for part in parts)
    return tuple(dict.fromkeys(word for word in words if word))
