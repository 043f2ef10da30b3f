"""Reader: RefCOCO's sets as CRIS and VLT have them: `anns/<set>/<split>.json` and `masks/<set>/<number>.png`.

A mask is the pixels of its PNG that are not 0, so that parts that overlap (254 there) count once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.readers._by_photo import by_photo, refuse_unknown_split
from envs.readers._coco_json import id_text
from envs.readers._glimpse import head, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._json_lists import parsed, raw_lists
from envs.readers._pixels import FilePixels
from envs.readers._refer import referred
from envs.readers._refs_folder import photo_folders
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text

NO_MASK_FILE = "questions whose mask is not among the files of masks"
_WORDS = ('"segment_id"', '"img_name"', '"sentences"')


@dataclass(frozen=True)
class Reader:
    """A folder such as `anns/refcoco` with a JSON file for each split, or one of the files."""

    path: str
    """The folder, or one file."""
    images: str | None = None
    """Folder of the photos; None looks where the projects that use these sets have them."""
    masks: str | None = None
    """Folder of the masks; None for `masks/<set>` beside `anns`."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """JSON files whose first entry names a segment, an image and sentences."""
        files = _files(path)
        return Found(f"RefCOCO family as CRIS has it: {', '.join(files)}", 3) if files else None

    def splits(self) -> tuple[str, ...]:
        """Splits, by the names of the files."""
        return tuple(self._found)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order in which they come first."""
        refuse_unknown_split(split, self.splits(), self.path)
        folder = self._found[split].parent
        folders = [Path(self.images)] if self.images is not None else photo_folders(folder)
        files = ImageFiles(folders)
        for name, entries in by_photo(_named(self._found[split], findings)):
            found = [one for entry in entries for one in self._references(entry, folder, findings)]
            path = found and files.found(name, [one.id for one in found], findings)
            if path:
                yield AnnotatedPhoto(PhotoFile(Path(name).stem, path, source=name), tuple(found))

    def _references(self, entry: dict[str, Any], folder: Path, findings: Findings) -> Iterator[Reference]:
        masks = Path(self.masks) if self.masks is not None else folder.parent.parent / "masks" / folder.name
        segment = id_text(entry.get("segment_id"))
        mask = masks / f"{segment}.png"
        as_refs = {"ref_id": segment, "ann_id": segment, "sentences": entry.get("sentences")}
        for one in referred([as_refs], "sent", findings):
            for question, sentence in zip(one.question_ids(), one.sentences, strict=True):
                if mask.is_file():
                    yield Reference(question, (sentence.text,), (FilePixels(mask),))
                else:
                    findings.lose(NO_MASK_FILE, f"{question} ({mask})")

    @cached_property
    def _found(self) -> dict[str, Path]:
        found = _files(Path(self.path))
        if not found:
            wanted = "a folder such as anns/refcoco, with train.json whose entries have segment_id, img_name, sentences"
            raise nothing_here(Path(self.path), wanted, self.recognise)
        return found


def _files(path: Path) -> dict[str, Path]:
    """Files of this form by split."""
    candidates = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return {file.stem: file for file in candidates if all(word in head(file) for word in _WORDS)}


def _named(file: Path, findings: Findings) -> Iterator[tuple[str, dict[str, Any]]]:
    seen = set()
    for place, raw in enumerate(entry for entries in raw_lists(file).values() for entry in entries):
        entry = parsed(raw)
        name = plain_text(entry.get("img_name")) if isinstance(entry, dict) else ""
        segment = id_text(entry.get("segment_id")) if name else ""
        if not segment or segment in seen:
            why = "entries whose segment was there before" if segment else "entries that name no segment or image"
            findings.lose(why, segment or f"{file.name}[{place}]")
        else:
            seen.add(segment)
            yield name, entry
