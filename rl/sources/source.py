"""A data set as its users have it on disk: which reader reads it, found by its files or told, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.plugin import Plugin, plugin_names
from envs.readers.base import Found, Reader
from rl.config.load import overrides_mapping, plugin_from_settings

PACKAGE = "envs.readers"
_MOST_NAMED = 8


@dataclass(frozen=True)
class Source:
    """Files of a data set and the recipe of their reader."""

    path: Path
    what: str
    """What the reader sees there, in words."""
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
    what = "as told"
    if name is None:
        name, what = _only(path, recognised(path))
    entry = {"name": name, "path": str(path), **overrides_mapping(overrides)}
    if images is not None:
        entry["images"] = images
    return Source(path, what, plugin_from_settings(PACKAGE, "Reader", entry, "the reader"))


def _only(path: Path, found: Sequence[tuple[str, Found]]) -> tuple[str, str]:
    if not found and any(path.glob("*/split.json")):
        raise ValueError(
            f"{path} holds prepared examples and no files of a data set; look at them by `polytrace data show CONFIG "
            f"env={{name: shards, folder: {path}}}`."
        )
    if not found:
        held = sorted(each.name for each in path.iterdir()) if path.is_dir() else [path.name]
        more = f" and {len(held) - _MOST_NAMED:,} more" if len(held) > _MOST_NAMED else ""
        raise ValueError(
            f"{path}: no format is known by what is there ({', '.join(held[:_MOST_NAMED]) or 'nothing'}{more}). "
            f"Formats: {', '.join(plugin_names(PACKAGE))}; say which by --format, or give the folder of one data set."
        )
    (name, seen), others = found[0], [other for other, each in found[1:] if each.certainty == found[0][1].certainty]
    if others:
        raise ValueError(
            f"{path}: {name} and {', '.join(others)} all know such files ({seen.what}); say which by --format."
        )
    return name, seen.what
