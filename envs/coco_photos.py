"""Photos of envs/coco.py opened: which way up they were annotated, and which of them are one and the same."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from envs.coco_files import Photo
from envs.example import image_sha256
from envs.image_file import ImageHeader, image_header, read_image
from envs.reading import Reading
from envs.view import View

EXIF = ("apply", "ignore")
UNKNOWN_TURN = (
    "photos with an EXIF turn that their recorded size cannot confirm, taken as stored; where outlines lie wrongly, "
    "set env.exif: apply (env.exif: ignore ends this note)"
)
_TAIL_BYTES = 4096


class Photos:
    """The photos of a data set, checked against the sizes that they were annotated at."""

    def __init__(self, photos: Mapping[int, Photo], exif: str | None, view: View) -> None:
        """exif: "apply", "ignore", or None to go by the recorded size."""
        self._photos, self._exif, self._view = photos, exif, view
        self._ids = {photos[k].path: k for k in sorted(photos, reverse=True)}
        self._upright: dict[int, bool] = {}
        self._sha256: dict[int, str] = {}

    def check(self, decode: bool, reading: Reading) -> None:
        """Open every photo, decode it where asked to; what cannot be used goes to `reading`."""
        for photo in self._photos.values():
            try:
                self._check(photo, reading)
                if decode:
                    self.sha256(photo.id)
            except (ValueError, FileNotFoundError) as error:
                reading.mistake(error)

    def _check(self, photo: Photo, reading: Reading) -> None:
        if not Path(photo.path).is_file():
            raise FileNotFoundError(
                f"{photo.path}: no such file for image {photo.id}; fetch it, or take its entry out of the JSON file."
            )
        try:
            header = image_header(Path(photo.path))
        except ValueError as error:
            raise ValueError(f"image {photo.id}: {error}") from error
        upright = _annotated_upright(photo, header, self._exif)
        if upright is None:
            reading.note(UNKNOWN_TURN, photo.path)
        self._upright[photo.id] = bool(upright)
        size = (header.height, header.width)
        height, width = size[::-1] if upright and header.lies_on_its_side else size
        if (height, width) != (photo.height, photo.width):
            raise ValueError(
                f"{photo.path} has {width} x {height} pixels, but image {photo.id} was annotated at "
                f"{photo.width} x {photo.height}, so outlines would not fit; fetch the file that was annotated."
            )

    def id_of(self, path: str) -> int:
        """Id of the photo in the file `path`, the lowest of several; raises ValueError where there is none."""
        if path not in self._ids:
            raise ValueError(f"{path} is no photo of this data set; restore its annotations of that time.")
        return self._ids[path]

    def open(self, photo_id: int) -> Image.Image:
        """The photo as RGB, the way up that it was annotated; raises ValueError where it cannot be decoded."""
        try:
            return read_image(Path(self._photos[photo_id].path), self._upright[photo_id])
        except ValueError as error:
            raise ValueError(f"image {photo_id}: {error}") from error

    def sha256(self, photo_id: int) -> str:
        """Hash of what the policy is shown of a photo (see `image_sha256`); decodes it the first time."""
        if photo_id not in self._sha256:
            self._sha256[photo_id] = image_sha256(self._view.pixels(self.open(photo_id)))
        return self._sha256[photo_id]

    def content(self, photo_id: int) -> str:
        """What tells the photo's content from another's: its hash where it was decoded, else its size in bytes."""
        return self._sha256.get(photo_id) or f"{Path(self._photos[photo_id].path).stat().st_size} bytes"

    def originals(self) -> dict[int, int]:
        """By id, the lowest id of a photo that shows the same: alike to the pixel as shown, or else byte by byte."""
        ids = sorted(self._photos)
        if len(self._sha256) == len(ids):
            contents: Mapping[int, str] = self._sha256
        else:
            paths = {k: Path(self._photos[k].path).resolve() for k in ids}
            same = _same_files(paths.values())
            contents = {k: f"{same[path]}" for k, path in paths.items()}
        first: dict[str, int] = {}
        return {k: first.setdefault(contents[k], k) for k in ids}


def _annotated_upright(photo: Photo, header: ImageHeader, exif: str | None) -> bool | None:
    """Whether outlines are meant on the upright photo, not on the stored one; None where nothing tells."""
    if exif is not None or header.orientation == 1:
        return exif == "apply"
    if header.lies_on_its_side and header.height != header.width:
        return (photo.height, photo.width) == (header.width, header.height)
    return None


def _same_files(paths: Iterable[Path]) -> dict[Path, Path]:
    """By path, the first path whose file holds the same bytes; read whole only where size and last bytes agree."""
    alike: dict[tuple[int, bytes], list[Path]] = {}
    for path in dict.fromkeys(paths):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            alike.setdefault((size, file.read()), []).append(path)
    found: dict[Path, Path] = {}
    for group in alike.values():
        first: dict[bytes, Path] = {}
        for path in group:
            content = b"" if len(group) == 1 else hashlib.sha256(path.read_bytes()).digest()
            found[path] = first.setdefault(content, path)
    return found
