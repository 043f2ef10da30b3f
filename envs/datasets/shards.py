"""Env: examples that were prepared once (`polytrace data prepare`), read from Parquet as they are asked for.

Nothing is parsed, decoded or rasterised when it opens, whatever the data set was. An example is what the original env
gave: its masks, its image as it was shown, its place in the order; so a run on the shards is the run on the original.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.example import Example, ImageRef, image_sha256
from envs.images import ShownFile
from envs.shards.files import ABOUT, IMAGES, ORDER, ShardRows, key_hashes, read_card, read_columns
from envs.shards.rows import EXAMPLE_COLUMNS, IMAGE_COLUMNS, example_of, file_of, pixels_of


@dataclass
class Env:
    """Examples of one prepared split.

    Raises FileNotFoundError or ValueError, naming the file, where nothing is prepared, a shard is missing or torn, or
    the schema is of another version.
    """

    split: str
    """Any split that was prepared, under the name that it had there or that `names` gives it."""
    folder: str
    """Folder that `polytrace data prepare CONFIG --out FOLDER` wrote."""
    images: str | None = None
    """Folder of the image files where it has moved since; null where they are where they were, or are embedded."""
    names: dict[str, str] = field(default_factory=dict)
    """What is prepared under another name than the config asks for, such as {validation: val, test: testA}."""
    candidates: bool = True
    """Whether masks to choose from are shown, where the data has them; false for a policy that draws outlines."""

    def __post_init__(self) -> None:
        """Read the card and the order of the examples."""
        prepared = self.names.get(self.split, self.split)
        self._place = Path(self.folder) / prepared
        self._card = read_card(Path(self.folder), prepared)
        self._moved = None
        if self.images is not None:
            if not Path(self.images).is_dir():
                raise FileNotFoundError(f"env.images is {self.images}, which is not a folder; give that of the images.")
            if self._card.image_folder is None:
                raise ValueError(f"env.images is {self.images}, but {self._place} embeds its images; leave it out.")
            self._moved = self._card.image_folder, self.images
        self._open()

    def _open(self) -> None:
        (self._order,) = read_columns(self._place / ORDER, "row")
        self._shards = ShardRows(self._place, self._card)

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: what is read is read again where it arrives."""
        settings = ("split", "folder", "images", "names", "candidates")
        return {name: value for name, value in vars(self).items() if name in settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.split, self.folder, self.images = state["split"], state["folder"], state["images"]
        self.names, self.candidates = state["names"], state["candidates"]
        self.__post_init__()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the original env when it was prepared."""
        return self._card.fingerprint

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What the original env left out or decided."""
        return {what: list(which) for what, which in self._about["notes"].items()}

    @property
    def asked(self) -> tuple[str, ...]:
        """What may be asked for: "mask", "box", "point"."""
        return tuple(self._card.asked)

    @property
    def num_lost(self) -> int:
        """Questions that the data set has and that could not be asked."""
        return self._card.num_lost

    @property
    def pool_sizes(self) -> tuple[int, int] | None:
        """Fewest and most candidates of a question; None where the shards do not say, or candidates are not shown."""
        return self._card.candidates if self.candidates else None

    def phrase_words(self) -> set[str]:
        """Words of every phrase that any split of the original env can ask."""
        return set(self._about["phrase_words"])

    @cached_property
    def _about(self) -> dict[str, Any]:
        return dict(json.loads((self._place / ABOUT).read_text(encoding="utf-8")))

    def splits(self) -> tuple[str, ...]:
        """The splits that are prepared, as the config calls them."""
        found = sorted(path.parent.name for path in Path(self.folder).glob("*/split.json"))
        called = [asked for asked, prepared in self.names.items() if prepared in found]
        return (*(name for name in found if name not in self.names.values()), *called)

    def __len__(self) -> int:
        """Number of examples of the split."""
        return self._card.num_examples

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, as the original env gave it."""
        return self._called(example_of(self._row(index)))

    def _called(self, example: Example) -> Example:
        example = example if example.split == self.split else replace(example, split=self.split)
        return example if self.candidates or example.candidates is None else replace(example, candidates=None)

    def scene(self, index: int) -> list[Example]:
        """Every example of the image of example `index`, in the order of the original env."""
        row = self._row(index)
        found = self._shards.rows(row["scene_row"], row["scene_size"], EXAMPLE_COLUMNS)
        return [self._called(example_of(each)) for each in found]

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._shards.rows(int(self._order[index]), 1, EXAMPLE_COLUMNS)[0]

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image [H, W, 3] RGB as the original env showed it.

        Raises ValueError where no example is about it, where its file cannot be read, or where it has changed.
        """
        row = self._image_row(ref.key)
        try:
            pixels = pixels_of(row, self._moved)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} It was prepared into {self._place}: restore it, set env.images to the folder where the files "
                "are now, or prepare with --embed."
            ) from error
        if image_sha256(pixels) != ref.sha256:
            where = row["image_file"] or self._place
            raise ValueError(
                f"{where}: SHA-256 of the pixels of {ref.key} is {image_sha256(pixels)[:12]}..., but the example was "
                f"prepared with {ref.sha256[:12]}...; restore the file, or prepare the data anew in another folder."
            )
        return pixels

    def image_file(self, ref: ImageRef) -> ShownFile | None:
        """The file behind an image, where it is now; None where its pixels are embedded.

        Raises ValueError where no example is about it.
        """
        return file_of(self._image_row(ref.key), self._moved)

    def _image_row(self, key: str) -> dict[str, Any]:
        hashes, rows = self._images
        (wanted,) = key_hashes([key])
        first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        for row in rows[first:end]:
            found = self._shards.rows(int(row), 1, IMAGE_COLUMNS)[0]
            if found["image_key"] == key:
                return found
        raise ValueError(f"{key} is no image of {self._place}; give the shards that the example was read from.")

    @cached_property
    def _images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        hashes, rows = read_columns(self._place / IMAGES, "key_hash", "row")
        return hashes, rows
