"""Pools of candidate masks from a file in COCO's form: which masks there are to choose from in each image.

`polytrace data candidates` writes such files, and so do others: `images` with file_name, height and width, and
`annotations` with image_id and segmentation. An image goes by its name: its path must end with `file_name`, or the
other way round. Where `file_bytes` stands beside it, the file must have as many bytes, so that no other image of the
name is taken for it. `upright` says of a photo that EXIF turns whether masks lie on it as it is turned, or as it is
stored.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from envs.readers._by_photo import usable_shape
from envs.readers._coco_json import file_bytes
from envs.readers._json_lists import parsed, raw_lists
from envs.shapes import Shape


class _Named(msgspec.Struct):
    """What of an image says which it is."""

    id: int | str
    file_name: str
    height: int
    width: int
    file_bytes: int | None = None
    upright: bool | None = None


class _OfImage(msgspec.Struct):
    """What of an annotation says where it is."""

    image_id: int | str


@dataclass(frozen=True)
class Pool:
    """The candidates of an image."""

    shapes: tuple[Shape, ...]
    """Masks of the image, those that have a pixel, in the file's order."""
    unusable: int
    """Masks that cannot be read, or have no pixel."""
    height: int
    """H of the masks."""
    width: int
    """W of the masks."""
    upright: bool | None = None
    """Whether masks lie on the photo turned upright by EXIF; None where the file does not say, or nothing is turned."""


class AmbiguousName(ValueError):
    """Several images of a file may be the one that is meant."""


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Those of some file names that say most of an image's path: it ends with them, or they end with it."""
    parts = _parts(name)
    lengths = {each: _common_end(parts, _parts(each)) for each in names}
    longest = max(lengths.values(), default=0)
    return [each for each, length in lengths.items() if length and length == longest]


def refuse_other_file(path: Path, name: str, file_bytes: Any, file: Path | None) -> None:
    """Raise ValueError where masks that `path` has of an image were made for a file of another length than `file`."""
    if file is not None and isinstance(file_bytes, int) and file.stat().st_size != file_bytes:
        raise ValueError(
            f"{path}: the masks of {name} were made for a file of {file_bytes:,} bytes, and "
            f"{file} has {file.stat().st_size:,}; it is another image or has changed: make its candidates anew."
        )


def refuse_ambiguous(path: Path, name: str, names: list[str]) -> None:
    """Raise AmbiguousName where a file has masks of several images that a name may mean."""
    if len(names) > 1:
        raise AmbiguousName(
            f"{path} has {names[0]} and {names[1]}, and {name} may be either; name images by longer paths, or give a "
            "file of one of the folders."
        )


class Pools:
    """The pools of a file, by image; masks are decoded when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError or ValueError, naming the file, for what has not this form, or names an image
        twice."""
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give the pools that `polytrace data candidates` wrote.")
        lists = raw_lists(path)
        if not {"images", "annotations"} <= lists.keys():
            raise ValueError(
                f"{path} has no `images` and `annotations`; give pools in COCO's form, as `polytrace data candidates` "
                "writes them."
            )
        self._masks: dict[int | str, list[Any]] = {}
        for place, raw in enumerate(lists["annotations"]):
            self._masks.setdefault(_known(raw, _OfImage, f"{path}: annotations[{place}]").image_id, []).append(raw)
        self._images: dict[str, list[_Named]] = {}
        names = set()
        for place, raw in enumerate(lists["images"]):
            image = _known(raw, _Named, f"{path}: images[{place}]")
            name = image.file_name.replace("\\", "/")
            if name in names:
                raise ValueError(f"{path} has {name} twice in `images`; leave one of them, with all of its masks.")
            names.add(name)
            self._images.setdefault(PurePosixPath(name).name, []).append(image)
        self.num_images = len(names)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, 64 hex digits."""
        return hashlib.sha256(file_bytes(self.path)).hexdigest()

    def of(self, name: str, file: Path | None = None) -> Pool | None:
        """The pool of an image by its path or key; None where the file has none. file: the image's own file.

        Raises ValueError where the pool was made for a file of another length, AmbiguousName where several are as near
        by name.
        """
        parts = _parts(name)
        named = self._images.get(parts[-1] if parts else "", [])
        nearest = nearest_names(name, (image.file_name for image in named))
        if not nearest:
            return None
        refuse_ambiguous(self.path, name, nearest)
        return self._read(next(image for image in named if image.file_name == nearest[0]), file)

    def _read(self, image: _Named, file: Path | None) -> Pool:
        refuse_other_file(self.path, image.file_name, image.file_bytes, file)
        entries = [parsed(raw) or {} for raw in self._masks.get(image.id, [])]
        shapes = [usable_shape(entry.get("segmentation"), image.height, image.width) for entry in entries]
        usable = tuple(shape for shape in shapes if not isinstance(shape, str))
        return Pool(usable, len(shapes) - len(usable), image.height, image.width, image.upright)


def _known(raw: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(parsed(raw) or {}, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where} is no entry of COCO's form ({error}); correct it.") from error


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Length of the shorter path where the longer one ends with it; 0 where it does not."""
    length = min(len(one), len(other))
    return length if one[-length:] == other[-length:] else 0
