"""Photos of envs/datasets/coco.py opened: which way up they were annotated, and which of them are one and the same."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from envs.datasets._coco_files import Photo
from envs.example import image_sha256
from envs.images import ImageHeader, View, image_header, read_image
from envs.reading import Reading

EXIF = ("apply", "ignore")
UNKNOWN_TURN = (
    "photos with an EXIF turn that their recorded size cannot confirm, taken as stored; where outlines lie wrongly, "
    "set env.exif: apply (env.exif: ignore ends this note)"
)
_TAIL_BYTES = 4096


class Photos:
    """The photos of a data set, checked against the sizes that they were annotated at."""

    def __init__(self, entries: Mapping[int, Photo | None], exif: str | None, view: View, reading: Reading) -> None:
        """Open every photo for its header; what cannot be used goes to `reading`.

        entries: by id, None for one that a mistake was told of. exif: "apply", "ignore", or None to go by the recorded
        size.
        """
        self._exif, self._view = exif, view
        self._upright: dict[int, bool] = {}
        self._sha256: dict[int, str] = {}
        self._decoded = False
        self._ids: dict[str, int] = {}
        given = [entry for entry in entries.values() if entry is not None]
        checked = (reading.tried(self._checked, entry, reading) for entry in given)
        self.by_id: Mapping[int, Photo] = {photo.id: photo for photo in checked if photo is not None}
        """Photos that can be used, with their sizes."""
        self.unusable = set(entries) - set(self.by_id)
        """Ids of the others."""

    def _checked(self, photo: Photo, reading: Reading) -> Photo:
        """The photo, its size taken from the file where it was not recorded."""
        path = Path(photo.path)
        try:
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "no such file"
                raise FileNotFoundError(
                    f"{path}: {what} for image {photo.id}; fetch it, or take its entry out of the JSON file."
                )
            header = image_header(path)
        except ValueError as error:
            raise ValueError(f"image {photo.id}: {error}") from error
        except PermissionError as error:
            raise ValueError(f"image {photo.id}: {path}: {error.strerror}; make it readable.") from error
        upright = _annotated_upright(photo, header, self._exif)
        if upright is None:
            reading.note(UNKNOWN_TURN, photo.path)
        self._upright[photo.id] = bool(upright)
        size = (header.height, header.width)
        height, width = size[::-1] if upright and header.lies_on_its_side else size
        if photo.height and (height, width) != (photo.height, photo.width):
            turned = header.lies_on_its_side and (photo.height, photo.width) in (size, size[::-1])
            advice = f"set env.exif, now {self._exif}, to the other or leave it out" if turned else "fetch that file"
            raise ValueError(
                f"{photo.path} has {width} x {height} pixels, but image {photo.id} was annotated at "
                f"{photo.width} x {photo.height}, so outlines would not fit; {advice}."
            )
        first = self._ids.setdefault(photo.path, photo.id)
        if self._upright[first] != self._upright[photo.id]:
            raise ValueError(
                f"{photo.path} was annotated as stored and upright, by the sizes of images {first} and {photo.id}; "
                "correct one of them."
            )
        return replace(photo, height=height, width=width)

    def decode(self, reading: Reading) -> None:
        """Decode every photo once; what cannot be decoded goes to `reading`."""
        for photo_id in self.by_id:
            reading.tried(self.sha256, photo_id)
        self._decoded = True

    def id_of(self, path: str) -> int:
        """Id of the photo in the file `path`, the first of several; raises ValueError where there is none."""
        if path not in self._ids:
            raise ValueError(f"{path} is no photo of this data set; restore its annotations of that time.")
        return self._ids[path]

    def is_upright(self, photo_id: int) -> bool:
        """Whether outlines are meant on the photo turned upright by EXIF."""
        return self._upright[photo_id]

    def open(self, photo_id: int) -> Image.Image:
        """The photo as RGB, the way up that it was annotated; raises ValueError where it cannot be decoded."""
        try:
            return read_image(Path(self.by_id[photo_id].path), self._upright[photo_id])
        except ValueError as error:
            raise ValueError(f"image {photo_id}: {error}") from error

    def sha256(self, photo_id: int) -> str:
        """Hash of what the policy is shown of a photo (see `image_sha256`); decodes it the first time."""
        if photo_id not in self._sha256:
            self._sha256[photo_id] = image_sha256(self._view.pixels(self.open(photo_id)))
        return self._sha256[photo_id]

    def content(self, photo_id: int) -> str:
        """The photo as it is shown, told from others: by its hash where all are decoded, else by its size in bytes."""
        if self._decoded:
            return self.sha256(photo_id)
        num_bytes = Path(self.by_id[photo_id].path).stat().st_size
        return f"{num_bytes} bytes{' upright' * self._upright[photo_id]}"

    def originals(self) -> dict[int, int]:
        """By id, the lowest id of the same photo: the same bytes, or, where all are decoded, the same to look at."""
        same = _same_files({k: Path(photo.path).resolve() for k, photo in sorted(self.by_id.items())})
        if not self._decoded:
            return same
        first: dict[str, int] = {}
        shown = {k: first.setdefault(self.sha256(k), k) for k in same}
        return {k: shown[original] for k, original in same.items()}


def _annotated_upright(photo: Photo, header: ImageHeader, exif: str | None) -> bool | None:
    """Whether outlines are meant on the upright photo, not on the stored one; None where nothing tells."""
    if exif is not None or header.orientation == 1:
        return exif == "apply"
    if photo.height and header.lies_on_its_side and header.height != header.width:
        return (photo.height, photo.width) == (header.width, header.height)
    return None


def _same_files(paths: Mapping[int, Path]) -> dict[int, int]:
    """By id, the first id whose file holds the same bytes; files are read whole only where size and end agree."""
    alike: dict[tuple[int, bytes], list[int]] = {}
    for k, path in paths.items():
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            alike.setdefault((size, hashlib.sha256(file.read()).digest()), []).append(k)
    found = dict.fromkeys(paths, 0)
    for ids in alike.values():
        first: dict[bytes, int] = {}
        for k in ids:
            content = b"" if len(ids) == 1 else hashlib.sha256(paths[k].read_bytes()).digest()
            found[k] = first.setdefault(content, k)
    return found
