"""What a folder or a file shows before it is read: names, the first bytes, and what to say where neither fits."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from envs.readers.base import Found

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif"))
_HEAD = 1 << 16
_FEW = 6
_MOST_BESIDE = 200
_SPLIT = re.compile(r"(?<![a-z])(train|val|test|valid|validation|training|testing)(?![a-z])")
_SPLIT_NAMES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def head(path: Path) -> str:
    """The first 64 KiB of a file as text, whatever its encoding of Unicode; "" for what is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        found = file.read(_HEAD)
    if found.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in found[:4]:
        return found.decode(json.detect_encoding(found), "replace").lstrip("\ufeff")
    return found.decode("utf-8-sig", "replace")


def is_image(path: Path) -> bool:
    """Whether a name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def split_in(name: str) -> str | None:
    """The split that a name tells, as train of `instances_train2017`: train, val or test; None where it tells none."""
    match = _SPLIT.search(name.lower())
    return _SPLIT_NAMES.get(match[1], match[1]) if match else None


def split_of_folder(name: str) -> str | None:
    """The split that a folder is called, as split_in has them; None for a folder that only has such a word in it."""
    return split_in(name) if _SPLIT.fullmatch(name.lower()) else None


def nothing_here(path: Path, wanted: str, recognise: Callable[[Path], Found | None]) -> FileNotFoundError:
    """What to raise where a reader finds nothing of its format: what it looked for, what is there, and what is nearest.

    wanted: what it is called, and its layout. recognise: that of the reader; folders around `path` are tried with it.
    """
    if not path.exists():
        return FileNotFoundError(f"{path}: no such file or folder; give {wanted}.")
    near = next((each for each in _beside(path) if recognise(each)), None)
    advice = f"; {near} has it; give that" if near else ""
    there = f": there is {few_names(path)}" if path.is_dir() else ""
    return FileNotFoundError(f"{path} is not {wanted}{there}{advice}.")


def few_names(folder: Path) -> str:
    """Names of the first entries of a folder, and how many there are beside."""
    names = sorted(each.name for each in folder.iterdir())
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more}" if names else "nothing"


def _beside(path: Path) -> Iterator[Path]:
    """Folders in which something may have been meant: those within a folder, then the ones around it."""
    if path.is_dir():
        yield from (each for each in sorted(islice(path.iterdir(), _MOST_BESIDE)) if each.is_dir())
    yield from list(path.resolve().parents)[:2]
