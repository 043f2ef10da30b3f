"""Where a YOLO data set has its label files and photos: what data.yaml says, and what it means where that is not there.

Exports are moved between machines, so their paths often lead nowhere (`/content/...`, `../train/images`); then the
folders are looked for beside the file, as `images/<split>` or `<split>/images`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from envs.readers._glimpse import head, is_image
from envs.reading import plain_text

SPLITS = ("train", "val", "test")
_ALSO = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_CLASSES = ("classes.txt", "obj.names")


@dataclass(frozen=True)
class YoloFolder:
    """A data set."""

    file: Path
    """data.yaml, or a list of classes."""
    names: Mapping[int, str]
    """Names of classes by number."""
    said: Mapping[str, Any]
    """All that the YAML file says."""

    @classmethod
    def of(cls, file: Path) -> "YoloFolder":
        """The data set of a file; raises ValueError where it names no classes."""
        if file.name in _CLASSES:
            listed = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
            return cls(file, {place: name for place, name in enumerate(listed) if name}, {})
        try:
            said = yaml.safe_load(file.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not YAML ({error}); correct it.") from error
        names = said.get("names") if isinstance(said, dict) else None
        pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
        named = {int(place): plain_text(str(name)).strip() for place, name in pairs if str(place).isdigit()}
        if not named:
            raise ValueError(f"{file} has no `names`; list the classes there, as `names: [cup, dog]`.")
        return cls(file, named, said)

    @cached_property
    def labels(self) -> dict[str, list[Path]]:
        """By split, the label files, or the folders of them; splits without any are left out."""
        found = {split: self._labels_of(split) for split in SPLITS}
        if not any(found.values()):
            found = {"train": [place for place in [self.file.parent / "labels"] if _holds(place, ".txt")]}
        return {split: places for split, places in found.items() if places}

    def _labels_of(self, split: str) -> list[Path]:
        said = [place for place in self._said_places(split) if place.exists()]
        labels = [label for place in said for label in _labels_of_images(place)]
        here = self.file.parent
        guesses = [here / guess for name in _ALSO[split] for guess in (f"labels/{name}", f"{name}/labels")]
        there = [place for place in (labels or guesses) if place.suffix == ".txt" or _holds(place, ".txt")]
        return list(dict.fromkeys(there))

    def _said_places(self, split: str) -> Iterator[Path]:
        """Paths that the file gives for a split, those beside the file first where a path climbs out of it."""
        places = next((self.said[name] for name in _ALSO[split] if self.said.get(name)), None)
        root = self.file.parent / plain_text(self.said.get("path"))
        for place in places if isinstance(places, list) else [places]:
            if isinstance(place, str):
                yield from (root / place, self.file.parent / place.removeprefix("../"), self.file.parent / place)

    def photos(self, split: str, images: str | None) -> dict[str, Path]:
        """Photos of a split by the names that `label_files` gives.

        images: folder to look in, or in its folder of the split; None looks where the label files say.
        """
        photos: dict[str, Path] = {}
        for labels in dict.fromkeys(each.parent if each.is_file() else each for each in self.labels[split]):
            places = [_images_of_labels(labels), labels]
            if images is not None:
                places = [Path(images) / labels.name, Path(images) / split, Path(images)]
            place = next((each for each in places if each.is_dir()), labels)
            for photo in filter(is_image, sorted(place.rglob("*"))):
                photos.setdefault(photo.relative_to(place).with_suffix("").as_posix(), photo)
        return photos


def label_files(places: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of label files, the name being the path in its folder without .txt."""
    for place in places:
        if place.is_file():
            yield place.stem, place
        else:
            files = sorted(place.rglob("*.txt")) if place.is_dir() else []
            yield from ((file.relative_to(place).with_suffix("").as_posix(), file) for file in files)


def yolo_yaml(path: Path) -> Path | None:
    """The file that names the classes of a data set with label files; None where there is none."""
    if path.is_file():
        files = [path] if path.suffix.lower() in (".yaml", ".yml") else []
    else:
        files = [*sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))]
    named = [file for file in files if "names:" in head(file)]
    if path.is_dir():
        named += [path / name for name in _CLASSES if (path / name).is_file()]
    return next((file for file in named if _has_labels(file)), None)


def _has_labels(file: Path) -> bool:
    try:
        return bool(YoloFolder.of(file).labels)
    except ValueError:
        return False


def _labels_of_images(place: Path) -> list[Path]:
    """Label files, or their folder, of a folder of photos or of a list of them."""
    if place.suffix == ".txt":
        lines = place.read_text("utf-8-sig").splitlines()
        photos = [place.parent / line.strip() for line in lines if line.strip()]
        return [_swapped(photo, "images", "labels").with_suffix(".txt") for photo in photos]
    return [_swapped(place, "images", "labels")]


def _images_of_labels(place: Path) -> Path:
    return _swapped(place, "labels", "images")


def _swapped(path: Path, old: str, new: str) -> Path:
    """A path with its last folder called `old` called `new`."""
    parts = list(path.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == old:
            return Path(*parts[:place], new, *parts[place + 1 :])
    return path


def _holds(place: Path, suffix: str) -> bool:
    return place.is_dir() and next(place.rglob(f"*{suffix}"), None) is not None
