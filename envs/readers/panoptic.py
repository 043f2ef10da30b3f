"""Reader: COCO panoptic, `panoptic_{train,val}2017.json` and a folder of PNGs of the same name.

Every pixel of a PNG has the id of its segment, R + 256 G + 65536 B, read as RGB; pixels of id 0 are void and count
neither way. Only a PNG's presence is looked at while the file is read: it is decoded once a photo when masks are asked
for. Asked are the names of classes, things by default: the names of stuff, such as wall-other-merged, are identifiers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK, ClassedObject, class_references
from envs.readers._coco_classes import CROWDS, UNKNOWN_CLASS
from envs.readers._coco_json import NO_PHOTO, NOT_READ, REPEATED, CocoJson, id_text
from envs.readers._glimpse import head, nothing_here, split_in
from envs.readers._image_files import ImageFiles
from envs.readers._pixels import COLOUR_ID, FilePixels
from envs.readers.base import AnnotatedPhoto, Findings, Found
from envs.reading import plain_text

NO_PNG = "questions about a photo whose PNG of segments is missing"
_WANTED = "COCO panoptic (panoptic_<split>.json beside the folder panoptic_<split>/ of its PNGs)"


class _PanopticJson(CocoJson):
    """A file whose annotations are those of whole images."""

    def _index(self) -> None:
        self._ids, self._of_image = [], {}
        self._place: dict[str, int] = {}
        for place in range(len(self._annotations)):
            entry = self._entry(place)
            image_id = id_text(entry.get("image_id"))
            if not image_id or image_id in self._place:
                self._findings.leave_out(REPEATED if image_id else NOT_READ, image_id or f"annotations[{place}]")
            elif image_id not in self.images:
                self._findings.leave_out(NO_PHOTO, image_id)
            else:
                self._place[image_id] = place

    def _entry(self, place: int) -> Mapping[str, Any]:
        raw: Any = self._annotations[place]
        try:
            entry = msgspec.json.decode(raw) if isinstance(raw, msgspec.Raw) else raw
        except (msgspec.MsgspecError, UnicodeDecodeError):  # bytes or numbers that JSON does not have
            entry = None
        return entry if isinstance(entry, dict) else {}

    def of_image(self, image_id: str) -> Mapping[str, Any]:
        """The entry of `annotations` of an image; {} where it has none."""
        return self._entry(self._place[image_id]) if image_id in self._place else {}


@dataclass(frozen=True)
class Reader:
    """A folder such as `coco/annotations` or the one around it, or one file of annotations."""

    path: str
    """The folder, or the file itself."""
    images: str | None = None
    """Folder of the photos; None looks around the file."""
    masks: str | None = None
    """Folder of the PNGs; None takes the one beside the file that is called as it is."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a class name means: `all` its objects of a photo together, or the `single` one, where there is but one."""
    crowds: Annotated[str, one_of(*CROWDS)] = "ignore"
    """What iscrowd 1 says: `ignore`, a group that counts neither way; `objects`, nothing."""
    stuff: bool = False
    """Whether stuff (`isthing` 0) is asked for too, by the names that the file has."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A file of panoptic annotations or a folder with some; less sure where files of instances are there too."""
        found = _files(path)
        if not found:
            return None
        mixed = path.is_dir() and any(found[0].parent.glob("instances_*.json"))
        return Found(f"COCO panoptic: {', '.join(file.name for file in found)}", 1 if mixed else 3)

    def splits(self) -> tuple[str, ...]:
        """train, val and test, as names of files tell them."""
        return tuple(self._of_split)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of its file."""
        if split not in self._of_split:
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        file = self._of_split[split]
        coco = _PanopticJson(file, findings)
        files, pngs = ImageFiles(self._folders(file, split)), self._png_folder(file)
        for image_id in coco.images:
            entry = coco.of_image(image_id)
            png = pngs / (plain_text(entry.get("file_name")) or Path(coco.file_name(image_id)).with_suffix(".png").name)
            objects, void = self._objects(coco, entry, png, findings), (FilePixels(png, (0,), COLOUR_ID),)
            asked = class_references(image_id, objects, self.ask, findings, void)
            if asked and not png.is_file():
                for one in asked:
                    findings.lose(NO_PNG, one.id)
                continue
            path = asked and coco.found_photo(image_id, files, [one.id for one in asked])
            if path:
                yield AnnotatedPhoto(coco.photo(image_id, path), tuple(asked))

    def _objects(
        self, coco: CocoJson, entry: Mapping[str, Any], png: Path, findings: Findings
    ) -> Iterator[ClassedObject]:
        listed = entry.get("segments_info")
        for segment in listed if isinstance(listed, list) else []:
            said = segment if isinstance(segment, dict) else {}
            segment_id, category_id = id_text(said.get("id")), id_text(said.get("category_id"))
            if not segment_id.isdigit():
                findings.leave_out("segments without an id", f"{png.stem} ({segment_id or '?'})")
            elif category_id not in coco.classes:
                findings.leave_out(UNKNOWN_CLASS, f"{png.stem}/{segment_id} (class {category_id or '?'})")
            elif self.stuff or coco.classes[category_id].get("isthing", 1) in (1, True):
                crowd = self.crowds == "ignore" and said.get("iscrowd") in (1, True)
                shape = FilePixels(png, (int(segment_id),), COLOUR_ID)
                yield ClassedObject(segment_id, coco.class_name(category_id), shape, crowd)

    @cached_property
    def _of_split(self) -> dict[str, Path]:
        of_split: dict[str, Path] = {}
        for file in _files(Path(self.path)):
            split = split_in(file.stem) or "train"
            if split in of_split:
                raise ValueError(
                    f"{self.path}: {of_split[split].name} and {file.name} are both {split}; give one file."
                )
            of_split[split] = file
        if not of_split:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        return of_split

    def _png_folder(self, file: Path) -> Path:
        if self.masks is not None:
            places = [Path(self.masks) / file.stem, Path(self.masks)]
        else:
            places = [*_own_png_folders(file), file.parent / "masks"]
        found = [place for place in places if place.is_dir()]
        if not found:
            told = ", ".join(map(str, places))
            raise FileNotFoundError(f"{file}: no folder of its PNGs ({told}); unpack it, or set masks to where it is.")
        return found[0]

    def _folders(self, file: Path, split: str) -> list[Path]:
        own = file.stem.removeprefix("panoptic_")
        places = [Path(self.images)] if self.images is not None else [file.parent, file.parent.parent]
        names = (own, f"images/{own}", split, f"images/{split}", "images", ".")
        return [place / name for name in names for place in places]


def _files(path: Path) -> list[Path]:
    """Files of panoptic annotations in a folder, or the file itself.

    A file without a folder of PNGs called as it is gives way to one of its split that has one: the same annotations
    may lie beside it in another form, as masks of objects.
    """
    if path.is_dir():
        files = [*sorted((path / "annotations").glob("panoptic_*.json")), *sorted(path.glob("panoptic*.json"))]
    else:
        files = [path] if path.suffix.lower() == ".json" else []
    files = [file for file in files if _is_panoptic(file)]
    whole = {split_in(file.stem) or "train" for file in files if _has_own_pngs(file)}
    return [file for file in files if _has_own_pngs(file) or (split_in(file.stem) or "train") not in whole]


def _is_panoptic(file: Path) -> bool:
    seen = head(file).lstrip()
    # A list, such as panoptic_coco_categories.json, holds no annotations.
    return seen.startswith("{") and (file.stem.startswith("panoptic") or '"segments_info"' in seen)


def _own_png_folders(file: Path) -> tuple[Path, Path]:
    """Where COCO has the PNGs of a file: folders called as it is."""
    return file.with_suffix(""), file.parent.parent / file.stem


def _has_own_pngs(file: Path) -> bool:
    return any(folder.is_dir() for folder in _own_png_folders(file))
