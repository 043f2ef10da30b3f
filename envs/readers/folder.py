"""Reader: a plain folder of photos and mask images with a table of phrases, `phrases.csv`.

Columns: `image`, `mask`, `phrase`, and maybe `split` and `value`. Paths are relative to the table, or to `images/` and
`masks/` beside it. Several masks of a phrase are parted by ";" and are one object each; without a mask, nothing in the
photo fits. What is not 0 in a mask image is the object; with a `value`, the pixels of that palette index or grey value
are (one value for all masks of a row, or one for each, parted by ";"). In a mask image of colours, whatever is
transparent or black is 0. Rows without a split are train.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from envs.plugin import did_you_mean
from envs.readers._coco_json import file_bytes
from envs.readers._glimpse import head, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._pixels import FilePixels, size_of
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference

NO_PHRASE = "rows without a phrase or an image"
MASK_MISSING = "questions about a mask that is missing"
MASK_UNREADABLE = "questions about a mask that cannot be read"
BAD_VALUE = "rows whose value is no whole number, or of another number than its masks"
OTHER_SIZE = "questions about a mask of another size than the first of its photo"
REPEATED = "rows that are there twice"
COLUMNS = ("image", "mask", "phrase")
_TABLE = "phrases.csv"
_WANTED = f"a folder with {_TABLE} (columns {', '.join(COLUMNS)})"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    image: str
    masks: tuple[str, ...]
    """() where nothing fits."""
    values: tuple[str, ...]
    """Mask values as they are written; () for whatever is not 0."""
    phrase: str
    split: str

    @property
    def id(self) -> str:
        """Image, masks and a hash of the phrase, so that an edited row is another question."""
        meant = "+".join(self.masks + self.values) or "none"
        return f"{self.image}/{meant}/{hashlib.sha256(self.phrase.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Reader:
    """A folder with `phrases.csv`, or the table itself."""

    path: str
    """The folder, or the table."""
    images: str | None = None
    """Folder of the photos; None takes that of the table, or images/ in it."""
    masks: str | None = None
    """Folder of the mask images; None takes that of the table, or masks/ in it."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A table whose first line names the columns."""
        file = path / _TABLE if path.is_dir() else path
        if file.suffix.lower() != ".csv" or not set(COLUMNS) <= set(_columns(head(file))):
            return None
        return Found(f"photos, mask images and {file.name}", 3)

    def splits(self) -> tuple[str, ...]:
        """Splits that rows name, in the order in which they come first."""
        return tuple(dict.fromkeys(row.split for row in self._rows))

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order in which rows name them first."""
        if split not in self.splits():
            raise ValueError(
                f"{self.path} has no split {split!r}{did_you_mean(split, self.splits())} There are: "
                f"{', '.join(self.splits())}."
            )
        of_image: dict[str, dict[str, Row]] = {}
        for row in (row for row in self._rows if row.split == split):
            rows = of_image.setdefault(row.image, {})
            if not row.image or not row.phrase:
                findings.lose(NO_PHRASE, row.id)
            elif row.id in rows:
                findings.leave_out(REPEATED, row.id)
            else:
                rows[row.id] = row
        photos, masks = self._files(self.images, "images"), self._files(self.masks, "masks")
        for image, rows in of_image.items():
            path = rows and photos.found(image, list(rows), findings)
            if path:
                yield from _photo(image, path, rows, masks, findings)

    def _files(self, folder: str | None, beside: str) -> ImageFiles:
        here = self._table.parent
        return ImageFiles([here, here / beside] if folder is None else [Path(folder), here])

    @cached_property
    def _table(self) -> Path:
        path = Path(self.path)
        if not Reader.recognise(path):
            table = path / _TABLE if path.is_dir() else path
            if table.is_file() and table.suffix.lower() == ".csv":
                raise ValueError(
                    f"{table} begins with {head(table).splitlines()[:1]}; its first line should name the columns "
                    f"{', '.join(COLUMNS)}, parted by commas."
                )
            raise nothing_here(path, _WANTED, Reader.recognise)
        return path / _TABLE if path.is_dir() else path

    @cached_property
    def _rows(self) -> list[Row]:
        text = bytes(file_bytes(self._table)).decode("utf-8", "replace")
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        rows = [_row(each) for each in table]
        if not rows:
            raise ValueError(f"{self._table} has no row below its first line; write one for each phrase.")
        return rows


def _row(said: Mapping[str, str | None]) -> Row:
    image, mask, phrase, split, value = (
        (said.get(key) or "").strip() for key in ("image", "mask", "phrase", "split", "value")
    )
    return Row(image, _parts(mask), _parts(value), phrase, split or "train")


def _photo(
    image: str, path: Path, rows: Mapping[str, Row], masks: ImageFiles, findings: Findings
) -> Iterator[AnnotatedPhoto]:
    asked, size = [], (0, 0)
    for row in rows.values():
        try:
            shapes = _shapes(row, masks)
            sizes = {size_of(shape.path) for shape in shapes}
        except FileNotFoundError as error:
            findings.lose(MASK_MISSING, f"{row.id} ({error})")
            continue
        except ValueError as error:
            findings.lose(BAD_VALUE if row.values else MASK_UNREADABLE, f"{row.id} ({error})")
            continue
        size = size if any(size) else next(iter(sizes), size)
        if sizes <= {size}:
            asked.append(Reference(row.id, (row.phrase,), shapes))
        else:
            findings.lose(OTHER_SIZE, row.id)
    if asked:
        yield AnnotatedPhoto(PhotoFile(image, path, *size, path.name), tuple(asked))


def _shapes(row: Row, masks: ImageFiles) -> tuple[FilePixels, ...]:
    """A shape for each mask of a row; raises FileNotFoundError for one that is missing, ValueError for a bad value."""
    values = row.values * len(row.masks) if len(row.values) == 1 else row.values
    if values and len(values) != len(row.masks):
        raise ValueError(f"{len(values)} values for {len(row.masks)} masks")
    shapes = []
    for place, name in enumerate(row.masks):
        found = masks.find(name)
        if found is None:
            raise FileNotFoundError(name)
        shapes.append(FilePixels(found, (int(values[place]),) if values else ()))
    return tuple(shapes)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _delimiter(text: str) -> str:
    return "\t" if "\t" in text.partition("\n")[0] else ","


def _columns(text: str) -> list[str]:
    first = text.partition("\n")[0]
    return [name.strip().strip('"').lower() for name in first.split(_delimiter(first))]
