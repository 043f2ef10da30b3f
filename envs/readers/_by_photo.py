"""References that a file lists in any order, gathered photo by photo: the outline of each and its questions."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from envs.plugin import did_you_mean
from envs.readers._coco_json import NO_MASK, NO_PIXEL, NOT_READ
from envs.readers._refer import NO_SENTENCE, UNUSABLE
from envs.readers.base import Findings, Reference
from envs.reading import plain_text
from envs.shapes import Shape, shape_of

Entry = TypeVar("Entry")


def by_photo(entries: Iterable[tuple[str, Entry]]) -> Iterator[tuple[str, list[Entry]]]:
    """(photo, its entries) of (photo, entry) pairs, photos in the order in which they come first."""
    of_photo: dict[str, list[Entry]] = {}
    for photo, entry in entries:
        of_photo.setdefault(photo, []).append(entry)
    yield from of_photo.items()


def refuse_unknown_split(split: str, splits: tuple[str, ...], where: object) -> None:
    """Raise ValueError for a split that is not there, naming those that are."""
    if split not in splits:
        near = did_you_mean(split, splits)
        raise ValueError(f"{where} has no split {split!r}{near} There are: {', '.join(splits) or 'none'}.")


def usable_shape(segmentation: Any, height: int, width: int) -> Shape | str:
    """The shape of a segmentation in COCO's form; or, where it cannot be used, why, in words to count by.

    Height and width are 0 where they are not known: then polygons alone can be read.
    """
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, bytes):
        segmentation = segmentation | {"counts": counts.decode("ascii", "replace")}
    if segmentation in (None, [], [[]], {}):
        return NO_MASK
    try:
        shape = shape_of(segmentation, height, width, "it")
    except ValueError:
        return NOT_READ
    if height and not shape.holds_a_pixel(height, width):
        return NO_PIXEL
    return shape


def references_to(which: str, sentences: Any, shape: Shape | str, findings: Findings) -> Iterator[Reference]:
    """A question for each of a list of sentences, named by the object's id and the sentence's place.

    shape: as `usable_shape` gives it; without one, the questions are lost.
    """
    said = [plain_text(text).strip() for text in sentences] if isinstance(sentences, list) else []
    questions = [(f"{which}/{place}", text) for place, text in enumerate(said) if text]
    if not questions:
        findings.lose(NO_SENTENCE, which)
    for question, text in questions:
        if isinstance(shape, str):
            findings.lose(f"{UNUSABLE} ({shape})", question)
        else:
            yield Reference(question, (text,), (shape,))
