"""Reader: labelme, a JSON file beside each photo.

Polygons, rectangles, circles and brush masks are objects, shapes of one label and one group_id parts of one; lines and
points are left out. Masks are those that labelme itself draws (envs/readers/_labelme_shapes.py). Regions labelled
`__ignore__` count neither way.

labelme turns photos upright before it shows them, so outlines lie on the upright photo; where the recorded size is that
of the photo as stored alone, as some other programs write it, they lie on that. A photo that exists only inside its
label file has to be saved beside it. The split is the folder train, val or test that a file lies in, else train.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from envs.images import image_header
from envs.plugin import did_you_mean
from envs.ranges import one_of
from envs.readers._by_class import ASK, ClassedObject, class_references
from envs.readers._glimpse import IMAGE_SUFFIXES, head, nothing_here, split_of_folder
from envs.readers._image_files import ImageFiles
from envs.readers._labelme_shapes import NO_AREA, labelme_shape
from envs.readers._loose_json import json_of, side_of
from envs.readers._united import united
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference, Shape
from envs.reading import plain_text

NOT_READ = "label files that cannot be read"
NOT_DRAWN = "shapes that cannot be drawn"
EMBEDDED = "questions about a photo that is only inside its label file; save it beside the file"
OTHER_SIZE = "questions about a photo of another size than its label file records"
ALIKE = "photos that are not what imagePath names, found by the name of their label file"
AS_STORED = "photos whose recorded size is that of the photo as stored, not turned upright"
_IGNORED, _BACKGROUND = "__ignore__", "_background_"
_WANTED = "a folder of labelme's label files (.json with shapes and imagePath)"
_MOST_LOOKED_INTO = 3
_OF_REASONSEG = ('"is_sentence"', '"image_name"')
"""Fields of another data set's files, which have shapes too."""


@dataclass(frozen=True)
class Reader:
    """A folder of label files, folders within included, or one label file."""

    path: str
    """The folder, or the file itself."""
    images: str | None = None
    """Folder of the photos where they are not where the label files say."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a label means: `all` its objects of a photo together, or the `single` one, where there is but one."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A folder of which one of the first files is a label file, or such a file."""
        places = [path, *(path / name for name in ("train", "val", "test"))] if path.is_dir() else []
        files = [file for place in places for file in sorted(place.glob("*.json"))[:_MOST_LOOKED_INTO]]
        if not any(_is_label_file(file) for file in files or [path]):
            return None
        return Found("labelme: a .json file with shapes beside each photo", 3)

    def splits(self) -> tuple[str, ...]:
        """train, val and test, as folders are called."""
        return tuple(sorted(self._files, key=("train", "val", "test").index))

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of the names of their label files."""
        if split not in self.splits():
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        for file in self._files[split]:
            try:
                data = json_of(file)
            except ValueError as error:
                findings.leave_out(NOT_READ, f"{self._name_of(file)} ({error})")
                continue
            if isinstance(data, dict) and isinstance(data.get("shapes"), list):
                yield from self._photo(file, data, findings)
            else:
                findings.leave_out("JSON files without a list of shapes", self._name_of(file))

    def _photo(self, file: Path, data: Mapping[str, Any], findings: Findings) -> Iterator[AnnotatedPhoto]:
        name = self._name_of(file)
        void: list[Shape] = []
        objects = list(_objects(name, data["shapes"], void, findings))
        asked = class_references(name, objects, self.ask, findings, tuple(void))
        path = asked and self._photo_file(file, data, asked, findings)
        photo = _placed(name, path, data, findings) if path else None
        if photo:
            yield AnnotatedPhoto(photo, tuple(asked))
        elif path:
            _lose(OTHER_SIZE, asked, findings)

    def _photo_file(
        self, file: Path, data: Mapping[str, Any], asked: list[Reference], findings: Findings
    ) -> Path | None:
        """The photo of a label file; None where it is missing, which is told."""
        files = ImageFiles([file.parent] if self.images is None else [Path(self.images), file.parent])
        image_path = plain_text(data.get("imagePath"))
        found = None if image_path.lower().endswith(".json") else files.find(image_path)
        if found is None:
            found = _called_alike(file, files)
            if found:
                findings.note(ALIKE, f"{self._name_of(file)} ({image_path or 'no imagePath'}, read is {found.name})")
        if found is None and data.get("imageData"):
            _lose(EMBEDDED, asked, findings)
            return None
        return found or files.found(image_path or f"(of {file.name})", [one.id for one in asked], findings)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Label files by split."""
        path = Path(self.path)
        found = sorted(path.rglob("*.json")) if path.is_dir() else [path] if _is_label_file(path) else []
        if not any(_is_label_file(file) for file in found):
            raise nothing_here(path, _WANTED, Reader.recognise)
        of_split: dict[str, list[Path]] = {}
        for file in found:
            folders = file.relative_to(path).parent.parts if path.is_dir() else ()
            told = [split for folder in folders if (split := split_of_folder(folder))]
            of_split.setdefault(told[0] if told else split_of_folder(path.resolve().name) or "train", []).append(file)
        return of_split

    def _name_of(self, file: Path) -> str:
        folder = Path(self.path) if Path(self.path).is_dir() else file.parent
        return PurePosixPath(file.relative_to(folder).with_suffix("")).as_posix()


def _objects(name: str, entries: list[Any], void: list[Shape], findings: Findings) -> Iterator[ClassedObject]:
    """The objects of a label file; regions to ignore are added to `void`."""
    grouped: dict[tuple[str, str], list[Shape]] = {}
    ids: dict[tuple[str, str], str] = {}
    for place, entry in enumerate(entries):
        which, entry = f"{name}/{place}", entry if isinstance(entry, dict) else {}
        label, kind, group = plain_text(entry.get("label")).strip(), entry.get("shape_type"), entry.get("group_id")
        if kind in NO_AREA or label == _BACKGROUND:
            findings.leave_out(f"shapes labelled {label}" if label == _BACKGROUND else f"{kind} shapes", which)
            continue
        try:
            shape = labelme_shape(entry)
        except ValueError as error:
            findings.leave_out(NOT_DRAWN, f"{which} ({error})")
            if label != _IGNORED:
                yield ClassedObject(f"{place}", label, None)
            continue
        if label == _IGNORED:
            void.append(shape)
            continue
        key = (label, f"shape {place}" if group is None else f"{group}")
        ids[key] = f"{ids[key]}.{place}" if key in ids else f"{place}"
        grouped.setdefault(key, []).append(shape)
    for key, shapes in grouped.items():
        yield ClassedObject(ids[key], key[0], united(shapes))


def _placed(name: str, path: Path, data: Mapping[str, Any], findings: Findings) -> PhotoFile | None:
    """The photo, and which way up outlines lie on it; None where it has another size than was recorded."""
    height, width = side_of(data.get("imageHeight")), side_of(data.get("imageWidth"))
    try:
        header = image_header(path)
    except ValueError:
        return PhotoFile(name, path, height, width, path.name)  # whoever opens it tells what is wrong
    stored = (header.height, header.width)
    upright = stored[::-1] if header.lies_on_its_side else stored
    if not (height and width) or (height, width) == upright:
        return PhotoFile(name, path, *upright, path.name, upright=True)
    if (height, width) == stored:
        findings.note(AS_STORED, path)
        return PhotoFile(name, path, *stored, path.name, upright=False)
    return None


def _called_alike(file: Path, files: ImageFiles) -> Path | None:
    """The photo that is called as its label file but for the suffix, as labelme saves them; None without one."""
    for suffix in sorted(IMAGE_SUFFIXES):
        found = files.find(f"{file.stem}{suffix}") or files.find(f"{file.stem}{suffix.upper()}")
        if found:
            return found
    return None


def _lose(reason: str, asked: list[Reference], findings: Findings) -> None:
    for one in asked:
        findings.lose(reason, one.id)


def _is_label_file(path: Path) -> bool:
    seen = head(path) if path.suffix.lower() == ".json" else ""
    if not seen.lstrip().startswith("{") or any(key in seen for key in _OF_REASONSEG):
        return False
    if '"imageData"' in seen:  # which may push everything else out of sight
        return True
    return '"shapes"' in seen and any(key in seen for key in ('"imagePath"', '"version"', '"flags"'))
