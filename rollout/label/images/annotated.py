"""Images: the photos of an annotated data set, taken as if they had no labels; its annotations are the hidden truth."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, cast

from envs.geometry.rle import rle_from_mask
from envs.images import View, image_header
from envs.plugin import Plugin
from envs.ranges import above, at_least
from envs.readers.base import AnnotatedPhoto, Findings, Reader
from envs.shards.from_photos import annotated_upright
from rollout.label.images._opened import UNREADABLE, opened_file, refused
from rollout.label.record import HiddenTruth, Origin, Shown


@dataclass(frozen=True)
class Images:
    """The photos of one split, in the order of its reader (envs/readers)."""

    path: str
    """Folder or file of the data set."""
    format: str = "coco"
    """Name of its reader."""
    images: str | None = None
    """Folder of the photos; null where the format has them."""
    split: str = "train"
    side: Annotated[int | None, at_least(16)] = None
    """Longer side at which photos are labelled and trained on; null leaves them as they are."""
    tagged: bool = True
    """Whether the phrases of the data set are the photos' tags."""
    most_pixels: Annotated[int, above(0)] = 100_000_000
    """A photo of more pixels is refused by its header."""

    @cached_property
    def _photos(self) -> tuple[AnnotatedPhoto, ...]:
        return _photos(self.path, self.format, self.images, self.split)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of which photos there are and what is asked of them."""
        told = [(str(one.photo.path), [list(_words(each)) for each in [one]]) for one in self._photos]
        return sha256(json.dumps([told, self.side, self.tagged]).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of photos; ValueError where there is none."""
        if not self._photos:
            raise ValueError(f"images.path is {self.path}, whose split {self.split} has no photo that can be found.")
        return len(self._photos)

    def read(self, index: int) -> Shown:
        """A photo."""
        one, path = self._photos[index], self._photos[index].photo.path
        origin = Origin(
            key=str(path),
            file=str(path),
            side=self.side,
            source=one.photo.source,
            licence=one.photo.licence,
            tags=tuple(_words(one)) if self.tagged else (),
        )
        try:
            header = image_header(path)
            upright = annotated_upright(one.photo, header, Findings())
        except (ValueError, OSError) as error:
            return refused(index, origin, UNREADABLE, f"{error}")
        size = (header.width, header.height) if upright and header.lies_on_its_side else (header.height, header.width)
        return opened_file(index, replace(with_truths(origin, one, size), upright=upright), path, self.most_pixels)


def with_truths(origin: Origin, photo: AnnotatedPhoto, size: tuple[int, int]) -> Origin:
    """The origin with the true masks of a photo of size (H, W), as they are shown."""
    view, truths = View(origin.side), list[HiddenTruth]()
    for one in photo.references:
        words = " ".join(part for part in one.parts if isinstance(part, str))
        for shape in one.masks:
            mask = view.mask(shape.mask(*size))
            if mask.any():
                truths.append(HiddenTruth(words, rle_from_mask(mask)))
    return replace(origin, truths=tuple(truths))


def _words(photo: AnnotatedPhoto) -> Iterator[str]:
    """The phrases of a photo, each once."""
    texts = (" ".join(part for part in one.parts if isinstance(part, str)) for one in photo.references)
    return iter(dict.fromkeys(texts))


@lru_cache(maxsize=2)
def _photos(path: str, format: str, images: str | None, split: str) -> tuple[AnnotatedPhoto, ...]:
    settings = {"path": str(Path(path).expanduser()), "images": images}
    reader = cast(Reader, Plugin("envs.readers", "Reader", format, settings).build())
    return tuple(reader.photos(split, Findings()))
