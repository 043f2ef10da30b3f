"""A data set as its users have it on disk: which reader reads it, found by its files or told, and how."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.plugin import Plugin, plugin_names
from envs.readers.base import Found, Reader
from rl.config.load import overrides_mapping, plugin_from_settings

PACKAGE = "envs.readers"
_TOLD_BY_CONTENT = (".json", ".jsonl", ".p", ".csv", ".txt", ".xml", ".yaml", ".yml", ".parquet")
_TOLD = (*_TOLD_BY_CONTENT, ".png")
"""Suffixes of files that say what is asked and true; pictures of masks are PNG, photos seldom."""
_MOST_NAMED, _MOST_LOOKED_INTO, _FEW = 8, 40, 3


@dataclass(frozen=True)
class Source:
    """Files of a data set and the recipe of their reader."""

    path: Path
    what: str
    """What the reader sees there, in words."""
    others: tuple[str, ...]
    """Readers that know files there too, and are less sure."""
    plugin: Plugin
    """The reader, its settings checked."""

    @property
    def format(self) -> str:
        """Name of the reader."""
        return self.plugin.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the reader, its path among them."""
        return self.plugin.settings

    def annotations_sha256(self, apart: Path) -> str:
        """SHA-256 over the files that say what is asked and true, by which it shows that they have changed.

        These are the file itself and files that settings name, or of a folder all in it that are no photos; pictures
        of masks count by name and size. apart: a folder that is left out, as it is written to.
        """
        digest = hashlib.sha256()
        for path in self._files(apart.resolve()):
            digest.update(f"{path.name}:{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            if path.suffix.lower() in _TOLD_BY_CONTENT:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _files(self, apart: Path) -> list[Path]:
        named = [Path(value) for value in self.settings.values() if isinstance(value, str)]
        files = {path.resolve() for path in (*named, self.path.parent / "instances.json") if path.is_file()}
        if self.path.is_dir():
            inside = (path.resolve() for path in self.path.rglob("*") if path.suffix.lower() in _TOLD)
            files |= {path for path in inside if path.is_file() and not path.is_relative_to(apart)}
        return sorted(files)

    def reader(self) -> Reader:
        """The reader itself."""
        built: Reader = self.plugin.build()
        return built


def recognised(path: Path) -> list[tuple[str, Found]]:
    """Readers that know what a folder or a file holds, the surest first; empty where none does."""
    found = []
    for name in plugin_names(PACKAGE):
        reader: Any = Plugin(PACKAGE, "Reader", name, {}).load()
        seen = reader.recognise(path)
        if seen is not None:
            found.append((name, seen))
    return sorted(found, key=lambda each: -each[1].certainty)


def source_of(path: Path, name: str | None = None, images: str | None = None, overrides: Sequence[str] = ()) -> Source:
    """The data set at `path`.

    name: of the reader; None finds it. images: folder of the photos; None leaves it to the reader. overrides: settings
    of the reader as key=value. Raises FileNotFoundError where there is nothing, ValueError where no reader knows the
    files, where several do equally, and for settings that do not fit.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; give the folder of a data set, or its file.")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"--images is {images}, which is not a folder; give that of the photos.")
    what, others = "as told", tuple[str, ...]()
    if name is None:
        found = recognised(path)
        name, what = _only(path, found)
        others = tuple(other for other, _ in found if other != name)
    entry = {"name": name, "path": str(path), **overrides_mapping(overrides)}
    if images is not None:
        entry["images"] = images
    return Source(path, what, others, plugin_from_settings(PACKAGE, "Reader", entry, "the reader"))


def _known_within(folder: Path) -> str:
    """What readers know in the folders of a folder, as a clause of an error; "" where nothing."""
    inside = sorted(each for each in folder.iterdir() if each.is_dir())[:_MOST_LOOKED_INTO] if folder.is_dir() else []
    known = [f"{each.name} ({found[0][0]})" for each in inside if (found := recognised(each))]
    more = f" and {len(known) - _FEW} more" if len(known) > _FEW else ""
    return f", but there is {', '.join(known[:_FEW])}{more}; give one of these" if known else ""


def _only(path: Path, found: Sequence[tuple[str, Found]]) -> tuple[str, str]:
    if not found and any(path.glob("*/split.json")):
        raise ValueError(
            f"{path} holds prepared examples and no files of a data set; look at them by `polytrace data show CONFIG "
            f"env={{name: shards, folder: {path}}}`."
        )
    if not found and path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise ValueError(f"{path} is packed; unpack it, and give the folder that comes out.")
    if not found:
        held = sorted(each.name for each in path.iterdir()) if path.is_dir() else [path.name]
        more = f" and {len(held) - _MOST_NAMED:,} more" if len(held) > _MOST_NAMED else ""
        formats = f". Formats: {', '.join(plugin_names(PACKAGE))}; say which by --format"
        raise ValueError(
            f"{path}: no format is known by what is there ({', '.join(held[:_MOST_NAMED]) or 'nothing'}{more})"
            f"{_known_within(path) or formats}, or give the folder of one data set."
        )
    (name, seen), others = found[0], [other for other, each in found[1:] if each.certainty == found[0][1].certainty]
    if others:
        raise ValueError(
            f"{path}: {name} and {', '.join(others)} all know such files ({seen.what}); say which by --format."
        )
    return name, seen.what
