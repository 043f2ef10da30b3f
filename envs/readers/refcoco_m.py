"""Reader: RefCOCO-M, the validation photos of RefCOCO with masks drawn anew, as Parquet files of the hub.

Every sentence of every sample is a question. Photos are those of COCO train2014 where they are found, else the ones in
the files. Scores compare with RefCOCO's on the same objects alone: about half of its masks were dropped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.readers._by_photo import by_photo, references_to, refuse_unknown_split, usable_shape
from envs.readers._coco_json import id_text
from envs.readers._glimpse import nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._parquet_rows import PhotosOfRows, Rows, columns_of, photo_name, split_files
from envs.readers._refs_folder import photo_folders
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text

_COLUMNS = ("image_id", "file_name", "samples")


@dataclass(frozen=True)
class Reader:
    """A folder with `data/validation-*.parquet`, whose rows hold a photo and its samples."""

    path: str
    """The folder, or one of its Parquet files."""
    images: str | None = None
    """Folder of the photos of COCO train2014; None looks where the projects that use them have them."""
    unpack: str | None = None
    """Folder that photos are written to that are in the Parquet files alone; None leaves out what is asked of them."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Parquet files with the columns of this set."""
        if not columns_of(split_files(path)).issuperset(_COLUMNS):
            return None
        return Found("RefCOCO-M: Parquet rows of a photo with samples", 3)

    def splits(self) -> tuple[str, ...]:
        """validation alone, as it was published."""
        return tuple(self._files)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of the rows."""
        refuse_unknown_split(split, self.splits(), self.path)
        rows = Rows(self._files[split], findings)
        folders = photo_folders(Path(self.path)) if self.images is None else [Path(self.images)]
        photos = PhotosOfRows(rows, ImageFiles(folders), self.unpack)
        read = ((id_text(values.get("image_id")), (row, values)) for row, values in rows.columns(*_COLUMNS))
        for image_id, entries in by_photo(read):
            samples = [sample for _, values in entries for sample in _list(values.get("samples"))]
            size = next(filter(None, map(_size, samples)), (0, 0))
            found = [one for sample in samples for one in _references(image_id, sample, size, findings)]
            row, values = entries[0]
            name = photo_name(plain_text(values.get("file_name"))) or f"{image_id}.jpg"
            path = found and photos.found(name, row, [one.id for one in found], findings)
            if path:
                yield AnnotatedPhoto(PhotoFile(image_id, path, *size, name), tuple(found))

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if self.recognise(Path(self.path)) is None:
            raise nothing_here(Path(self.path), f"Parquet files with {', '.join(_COLUMNS)}", self.recognise)
        return split_files(Path(self.path))


def _references(
    image_id: str, sample: Mapping[str, Any], size: tuple[int, int], findings: Findings
) -> Iterator[Reference]:
    shape = usable_shape(sample.get("mask"), *size)
    return references_to(f"{image_id}/{id_text(sample.get('id'))}", sample.get("sentences"), shape, findings)


def _size(sample: Mapping[str, Any]) -> tuple[int, int] | None:
    mask = sample.get("mask")
    size = mask.get("size") if isinstance(mask, dict) else None
    return (size[0], size[1]) if isinstance(size, list) and len(size) == 2 and all(side for side in size) else None


def _list(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
