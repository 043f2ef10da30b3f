"""Images: rows of Parquet files, the pixels as bytes of an image file, as the hub's data sets hold them."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from envs.images import View, read_bytes
from envs.plugin import did_you_mean
from envs.ranges import above, at_least
from rollout.label.images._opened import HUGE, UNREADABLE, refused, shown
from rollout.label.images.folder import tags_of
from rollout.label.record import Origin, Shown

_FILES_OPEN = 8


@dataclass(frozen=True)
class Images:
    """The rows of a Parquet file, or of all files of a folder in the order of their names."""

    path: str
    """A file, or a folder of files *.parquet."""
    image: str = "image"
    """Column of the images: bytes of a file, or {bytes, path} as `datasets` writes them."""
    tags: str | None = None
    """Column of tags or of an alternative text."""
    licence_column: str | None = None
    address_column: str | None = None
    licence: str = ""
    """Licence of the images that say none themselves."""
    side: Annotated[int | None, at_least(16)] = None
    """Longer side at which images are labelled and trained on; null leaves them as they are."""
    most_pixels: Annotated[int, above(0)] = 100_000_000
    """An image of more pixels is refused by its header."""

    @cached_property
    def _files(self) -> tuple[Path, ...]:
        path = Path(self.path).expanduser().resolve()
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"images.path is {self.path}, where no Parquet file is; give one, or a folder.")
        return tuple(files)

    @cached_property
    def _ends(self) -> list[int]:
        """Rows up to the end of each file; checks that the columns are there."""
        rows = []
        for path in self._files:
            try:
                file = pq.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is no Parquet file that can be read ({error}); restore it.") from error
            for column in filter(None, (self.image, self.tags, self.licence_column, self.address_column)):
                if column not in (there := file.schema_arrow.names):
                    raise ValueError(
                        f"{path} has no column {column!r}{did_you_mean(column, there)} There are {', '.join(there)}; "
                        "set images.image and the other columns."
                    )
            rows.append(file.metadata.num_rows)
        return list(accumulate(rows))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names of the files, their lengths and what is read of them."""
        listed = [(path.name, path.stat().st_size) for path in self._files]
        return hashlib.sha256(f"{listed} {self.image} {self.tags} {self.side}".encode()).hexdigest()

    def __len__(self) -> int:
        """Number of rows; ValueError where there is none."""
        if not self._ends[-1]:
            raise ValueError(f"images.path is {self.path}, which holds no row; give files with images.")
        return self._ends[-1]

    def read(self, index: int) -> Shown:
        """The image of a row."""
        file = bisect_right(self._ends, index)
        place = index - (self._ends[file - 1] if file else 0)
        row = _row(self._files[file], place)
        origin = Origin(
            key=f"{self._files[file].name}/{place}",
            source=self._files[file].name,
            licence=_said(row, self.licence_column) or self.licence,
            address=_said(row, self.address_column),
            tags=tags_of(row.get(self.tags or "")),
        )
        held = row[self.image]
        data = held.get("bytes") if isinstance(held, Mapping) else held
        if not isinstance(data, bytes):
            return refused(index, origin, UNREADABLE, f"the row holds {type(data).__name__}, and no bytes")
        try:
            picture = read_bytes(data, origin.key, self.most_pixels)
        except ValueError as error:
            return refused(index, origin, HUGE if "pixels" in f"{error}" else UNREADABLE, f"{error}")
        return shown(index, origin, View(self.side).pixels(picture))


def _said(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column or "")
    return value if isinstance(value, str) else ""


@lru_cache(maxsize=_FILES_OPEN)
def _file(path: Path) -> tuple[pq.ParquetFile, list[int]]:
    file = pq.ParquetFile(path)
    return file, list(accumulate(file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)))


@lru_cache(maxsize=2)
def _group(path: Path, group: int) -> pa.Table:
    return _file(path)[0].read_row_group(group)


def _row(path: Path, place: int) -> dict[str, Any]:
    """A row of a file; the row group around it is kept, since the next one lies there too."""
    ends = _file(path)[1]
    group = bisect_right(ends, place)
    table = _group(path, group)
    [row] = table.slice(place - (ends[group - 1] if group else 0), 1).to_pylist()
    return dict(row)
