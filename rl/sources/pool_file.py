"""The file of pools that `polytrace data candidates` writes: image by image beside it, whole at the end.

OUT            COCO's form: images, annotations with run lengths and a score, one category; `info` says how it was made
.OUT.begun     a line of JSON for how, then one an image, while it is made; a line that a stop has torn is made again
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from envs.geometry.masks import tight_box_px
from envs.geometry.pools import Kept
from envs.geometry.rle import mask_from_rle, rle_from_mask
from rl.pages.json_text import json_text
from rollout.disk import whole_file, writing

_MOST_BAD = 1000
"""Images that could not be used and are named in the file; more are only counted."""


@dataclass(frozen=True)
class ImagePool:
    """The candidates of one image."""

    file_name: str
    """The name that the image goes by: the end of its path, or its key where an env composes it."""
    height: int
    """H of image and masks."""
    width: int
    """W of image and masks."""
    file_bytes: int | None
    """Length of the image's file; None where there is no file."""
    masks: tuple[str, ...]
    """Run lengths of the masks, the best first."""
    scores: tuple[float, ...]
    """How good each is said to be, or how many answers agree on it."""
    small: int = 0
    """Masks that were left out as too small, or empty."""
    copies: int = 0
    """Masks that were left out as copies of better ones."""
    over_limit: int = 0
    """Masks that were left out beyond the limit."""
    unreadable: int = 0
    """Answers that could not be read, where masks are those of answers."""
    oracle: tuple[float, ...] = ()
    """IoU of the best choice for each question about the image that shows something true."""
    bad: str | None = None
    """Why the image could not be used; None where it could."""
    upright: bool | None = None
    """Whether masks lie on the photo turned upright by EXIF; None where nothing is turned."""

    @classmethod
    def of(
        cls, name: str, file_bytes: int | None, masks: NDArray[np.bool_], kept: Kept, oracle: Sequence[float]
    ) -> "ImagePool":
        """Of the masks [N, H, W] that were kept."""
        _, height, width = masks.shape
        runs, scores = tuple(map(rle_from_mask, masks)), tuple(round(float(one), 6) for one in kept.worth)
        left_out = (kept.small, kept.copies, kept.over_limit)
        return cls(name, height, width, file_bytes, runs, scores, *left_out, oracle=tuple(oracle))

    @classmethod
    def unusable(cls, name: str, why: str) -> "ImagePool":
        """Of an image that cannot be used."""
        return cls(name, 0, 0, None, (), (), bad=" ".join(why.split()))


@dataclass
class PoolCounts:
    """What a file of pools has, and what was left out of it."""

    images: int = 0
    empty: int = 0
    """Images among these without a candidate."""
    masks: int = 0
    small: int = 0
    copies: int = 0
    over_limit: int = 0
    unreadable: int = 0
    """Answers that could not be read."""
    bad: int = 0
    """Images that could not be used."""

    def add(self, one: ImagePool) -> None:
        """One image more."""
        if one.bad is not None:
            self.bad += 1
            return
        self.images += 1
        self.empty += not one.masks
        self.masks += len(one.masks)
        self.small += one.small
        self.copies += one.copies
        self.over_limit += one.over_limit
        self.unreadable += one.unreadable


@dataclass(frozen=True)
class PoolReport:
    """What was written."""

    counts: PoolCounts
    sizes: tuple[int, ...]
    """Candidates of each image."""
    oracle: float | None
    """Mean IoU of the best choice over all questions that show something true; None where no truth is known."""
    questions: int
    """How many questions that is of."""
    bad: Mapping[str, str]
    """Why images could not be used, by name; the first _MOST_BAD."""

    def as_json(self) -> dict[str, Any]:
        """The report in terms of JSON."""
        return {**asdict(self.counts), "oracle": self.oracle, "questions": self.questions, "bad_images": dict(self.bad)}


class PoolFile:
    """A file of pools that is being made, or is whole."""

    def __init__(self, out: Path, how: Mapping[str, Any]) -> None:
        """Begin, or go on; how: what the pools depend on, in terms of JSON.

        Raises ValueError where `out`, or what was begun of it, was made otherwise.
        """
        self.out = out
        self._how = json.loads(json.dumps(how))
        self._begun = out.with_name(f".{out.name}.begun")
        self.is_whole = out.is_file()
        self.done: set[str] = set()
        """Names of the images that are in it."""
        if self.is_whole:
            self._refuse_other(out, _how_of(out))
            return
        if self._begun.is_file():
            self._cut_torn_line()
        if self._begun.is_file() and self._begun.stat().st_size:
            self._refuse_other(self._begun, json.loads(next(iter(self._lines()))))
            self.done = {one.file_name for one in self._pools()}
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._begun.write_text(json.dumps(self._how) + "\n", encoding="utf-8")

    def add(self, one: ImagePool) -> None:
        """Write the pool of an image, which must not be `done`."""
        with writing(self.out.name, self._begun), self._begun.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        self.done.add(one.file_name)

    def finish(self) -> PoolReport:
        """Put all images together as the file itself; returns what is in it."""
        if not self.is_whole:
            report = _report(self._pools())
            with writing(self.out.name, self.out), whole_file(self.out) as partial:
                self._write(partial, report)
            self._begun.unlink()
            self.is_whole = True
        held = json.loads(self.out.read_text(encoding="utf-8"))["info"]["report"]
        oracle, questions = held.pop("oracle"), held.pop("questions")
        sizes, bad = tuple(held.pop("sizes")), held.pop("bad_images")
        return PoolReport(PoolCounts(**held), sizes, oracle, questions, bad)

    def _write(self, path: Path, report: PoolReport) -> None:
        with path.open("w", encoding="utf-8") as file:
            self._write_to(file, report)

    def _write_to(self, file: TextIO, report: PoolReport) -> None:
        info = {"how": self._how, "report": {**report.as_json(), "sizes": list(report.sizes)}}
        file.write(f'{{"info": {json_text(info)},\n"categories": [{{"id": 1, "name": "candidate"}}],\n"images": [')
        for place, one in enumerate(self._used()):
            image = {"id": place + 1, "file_name": one.file_name, "height": one.height, "width": one.width}
            beside = {} if one.file_bytes is None else {"file_bytes": one.file_bytes}
            turned = {} if one.upright is None else {"upright": one.upright}
            file.write(f"{',' if place else ''}\n{json.dumps(image | beside | turned)}")
        file.write('],\n"annotations": [')
        number = 0
        for place, one in enumerate(self._used()):
            for counts, score in zip(one.masks, one.scores, strict=True):
                file.write(f"{',' if number else ''}\n{json.dumps(_annotation(number, place, one, counts, score))}")
                number += 1
        file.write("]}\n")

    def _used(self) -> Iterator[ImagePool]:
        return (one for one in self._pools() if one.bad is None)

    def _pools(self) -> Iterator[ImagePool]:
        lines = self._lines()
        next(lines)
        for line in lines:
            yield msgspec.convert(json.loads(line), ImagePool)

    def _lines(self) -> Iterator[str]:
        with self._begun.open(encoding="utf-8") as file:
            yield from file

    def _cut_torn_line(self) -> None:
        with self._begun.open("rb+") as file:
            held = file.read()
            file.truncate(held.rfind(b"\n") + 1)

    def _refuse_other(self, path: Path, held: Any) -> None:
        held = held if isinstance(held, dict) else {}
        for key in self._how:
            if held.get(key) != self._how[key]:
                raise ValueError(
                    f"{path} holds pools that were made otherwise: {key} there is {held.get(key)}, here "
                    f"{self._how[key]}; give another --out, or delete that file."
                )


def _how_of(out: Path) -> Any:
    try:
        return json.loads(out.read_text(encoding="utf-8"))["info"]["how"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{out} is there and was not made by this command; give the name of a new file.") from error


def _annotation(number: int, place: int, one: ImagePool, counts: str, score: float) -> dict[str, Any]:
    mask = mask_from_rle(counts, one.height, one.width)
    x0, y0, x1, y1 = tight_box_px(mask) or (0, 0, 0, 0)
    return {
        "id": number + 1,
        "image_id": place + 1,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": {"size": [one.height, one.width], "counts": counts},
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }


def _report(pools: Iterator[ImagePool]) -> PoolReport:
    counts, sizes, oracle, bad = PoolCounts(), list[int](), list[float](), dict[str, str]()
    for one in pools:
        counts.add(one)
        oracle += one.oracle
        if one.bad is None:
            sizes.append(len(one.masks))
        elif len(bad) < _MOST_BAD:
            bad[one.file_name] = one.bad
    return PoolReport(counts, tuple(sizes), float(np.mean(oracle)) if oracle else None, len(oracle), bad)


def report_table(report: PoolReport) -> Table:
    """The report for a person."""
    counts, table = report.counts, Table("", "candidates", title=None, show_header=False)
    table.add_row("images", f"{counts.images:,}" + (f", {counts.empty:,} without a mask" if counts.empty else ""))
    if report.sizes:
        median, high = np.quantile(report.sizes, (0.5, 0.9))
        told = f"median {median:g}, p90 {high:g}, max {max(report.sizes)} an image"
        table.add_row("masks", f"{counts.masks:,}: {told}")
    table.add_row("left out: too small", f"{counts.small:,}")
    table.add_row("left out: copies", f"{counts.copies:,}")
    table.add_row("left out: over the limit", f"{counts.over_limit:,}")
    if counts.unreadable:
        table.add_row("answers that cannot be read", f"{counts.unreadable:,}")
    if report.oracle is not None:
        table.add_row("best choice, gIoU", f"{report.oracle:.3f} over {report.questions:,} questions")
    if counts.bad:
        table.add_row("images that cannot be used", f"{counts.bad:,}")
    return table
