"""Reader: `instances.json` as SeqTR has it: splits by name, each a list of objects with a mask and all expressions.

It holds the masks and sentences of RefCOCO's own files, but no ids of references: an object is named by its place in
the list of its split. Entries with a box alone, as those of Flickr30k, are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.readers._by_photo import by_photo, references_to, refuse_unknown_split, usable_shape
from envs.readers._coco_json import id_text, sides
from envs.readers._glimpse import head, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._json_lists import parsed, raw_lists
from envs.readers._refs_folder import photo_folders
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text

_WORDS = ('"expressions"', '"mask"', '"bbox"')


@dataclass(frozen=True)
class Reader:
    """A folder of one set with SeqTR's `instances.json`, or that file."""

    path: str
    """The folder, or the file."""
    images: str | None = None
    """Folder of the photos, COCO train2014 or saiapr_tc-12; None looks where the projects that use them have them."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A JSON file whose first object has expressions and a mask."""
        file = _file(path)
        start = head(file)
        if not all(word in start for word in _WORDS):
            return None
        return Found(f"RefCOCO family as SeqTR has it: {file.name}", 2)

    def splits(self) -> tuple[str, ...]:
        """Splits, as the file names them."""
        return tuple(self._lists)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order in which they come first."""
        refuse_unknown_split(split, self.splits(), self.path)
        folders = [Path(self.images)] if self.images is not None else photo_folders(_file(Path(self.path)).parent)
        files = ImageFiles(folders)
        for name, entries in by_photo(_named(split, self._lists[split], findings)):
            found = [one for place, entry in entries for one in _references(f"{split}/{place}", entry, findings)]
            path = found and files.found(name, [one.id for one in found], findings)
            if path:
                entry = entries[0][1]
                photo = PhotoFile(f"{id_text(entry.get('image_id'))}", path, *sides(entry), name)
                yield AnnotatedPhoto(photo, tuple(found))

    @cached_property
    def _lists(self) -> dict[str, list[Any]]:
        if self.recognise(Path(self.path)) is None:
            wanted = "a file that maps splits to lists with expressions and mask, or its folder"
            raise nothing_here(Path(self.path), wanted, self.recognise)
        return {name: entries for name, entries in raw_lists(_file(Path(self.path))).items() if name}


def _file(path: Path) -> Path:
    return path / "instances.json" if path.is_dir() else path


def _named(split: str, entries: list[Any], findings: Findings) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
    for place, raw in enumerate(entries):
        entry = parsed(raw)
        name = _photo_name(entry) if isinstance(entry, dict) else None
        if name is None:
            findings.lose("entries that cannot be read, or that name no image", f"{split}/{place}")
        else:
            yield name, (place, entry)


def _photo_name(entry: dict[str, Any]) -> str | None:
    """The file of a photo: SeqTR makes it of the number, as COCO names it or, for other sources, plainly."""
    image_id = id_text(entry.get("image_id"))
    if not image_id.isdigit():
        return image_id or None
    source = plain_text(entry.get("data_source")).lower()
    plain = source.startswith(("refclef", "referit", "flickr"))
    return f"{image_id}.jpg" if plain else f"COCO_train2014_{int(image_id):012d}.jpg"


def _references(which: str, entry: dict[str, Any], findings: Findings) -> Iterator[Reference]:
    return references_to(which, entry.get("expressions"), usable_shape(entry.get("mask"), *sides(entry)), findings)
