"""What envs/datasets/coco.py asks about annotated photos: written phrases, or the names of classes."""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.datasets._coco_files import Annotated, Region, phrase_key
from envs.plugin import did_you_mean
from envs.reading import Reading, field, refuse_no_text, whole

PHRASE_KEYS = ("image_id", "ann_ids", "phrases")
NAMELESS = "classes without a name, whose objects are not asked for"


@dataclass(frozen=True)
class Question:
    """A phrase and the regions that it means."""

    image_id: int
    """The photo asked about."""
    ann_ids: tuple[int, ...]
    """Regions meant; () where nothing fits."""
    phrase: str
    """What is asked."""

    @property
    def id(self) -> str:
        """Image, annotations and a hash of the phrase, so that an edited phrase is another question."""
        anns = "+".join(map(str, self.ann_ids)) or "none"
        return f"{self.image_id}/{anns}/{hashlib.sha256(self.phrase.encode()).hexdigest()[:8]}"


def class_questions(annotated: Annotated, original: Mapping[int, int], reading: Reading) -> list[Question]:
    """The class name of every object that is the only one of its class in its photo, crowds and unseen ones counted.

    original: of each image id, the one that stands for all of the same photo. Classes of one name are one class; what
    has no name is not asked for.
    """
    class_of, names = annotated.class_of, annotated.classes
    there: dict[tuple[int, int], list[Region | int]] = {}
    for region in annotated.regions.values():
        there.setdefault((original[region.image_id], class_of[region.category_id]), []).append(region)
    for ann_id, (image_id, category_id) in annotated.unseen.items():
        there.setdefault((original[image_id], class_of[category_id]), []).append(ann_id)
    for category_id in sorted({category_id for _, category_id in there if not phrase_key(names[category_id])}):
        reading.note(NAMELESS, f"class {category_id}")
    alone = {key for key, found in there.items() if _is_one_object(found)}
    return [
        Question(region.image_id, (region.id,), names[class_of[region.category_id]])
        for region in annotated.regions.values()
        if (original[region.image_id], class_of[region.category_id]) in alone
        and not region.crowd
        and phrase_key(names[region.category_id])
    ]


def _is_one_object(found: Sequence[Region | int]) -> bool:
    """Whether regions, and ids of annotations without a pixel, are one object, which may be drawn several times."""
    return all(_drawn(each) == _drawn(found[0]) for each in found[1:])


def _drawn(each: Region | int) -> object:
    return each if isinstance(each, int) else (each.shape.vertices.tobytes(), each.shape.offsets.tobytes())


def phrase_questions(data: Any, path: str, annotated: Annotated, reading: Reading) -> list[Question]:
    """A question for every phrase of the JSON list {image_id, ann_ids, phrases} that was read from `path`."""
    questions: list[Question] = []
    for k, entry in enumerate(reading.tried(field, {"the file": data}, "the file", list, path) or ()):
        questions += reading.tried(_entry_questions, entry, f"{path}: entry {k}", annotated) or ()
    return questions


def _entry_questions(entry: Any, where: str, annotated: Annotated) -> list[Question]:
    keys = entry if isinstance(entry, dict) else {}
    where = f"{where} (image {reprlib.repr(keys.get('image_id'))})"
    for key in keys:
        if key not in PHRASE_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{did_you_mean(key, PHRASE_KEYS)} Known: {PHRASE_KEYS}.")
    image_id = field(entry, "image_id", int, where)
    if image_id in annotated.unusable_photos:
        return []  # its entry, or its file, is a mistake that is told
    if image_id not in annotated.photos:
        raise ValueError(f"{where}: image_id {image_id} is not among the annotated images; correct or remove it.")
    named, phrases = field(entry, "ann_ids", list, where), field(entry, "phrases", list, where)
    if any(whole(ann_id) in annotated.unusable for ann_id in named):
        return []
    ann_ids = [_ann_id(ann_id, image_id, annotated, where) for ann_id in named]
    if len(set(ann_ids)) < len(ann_ids):
        raise ValueError(f"{where}: ann_ids {reprlib.repr(named)} name an annotation twice; name each once.")
    if not phrases or not all(isinstance(phrase, str) and phrase_key(phrase) for phrase in phrases):
        told = reprlib.repr(phrases)
        raise ValueError(f"{where}: phrases {told} should be one or more texts; write one or remove the entry.")
    for phrase in phrases:
        refuse_no_text(phrase, f"{where}: the phrase")
    return [Question(image_id, tuple(ann_ids), phrase.strip()) for phrase in phrases]


def _ann_id(value: Any, image_id: int, annotated: Annotated, where: str) -> int:
    ann_id = whole(value)
    if ann_id in annotated.unseen:
        raise ValueError(f"{where}: ann_id {ann_id} has no mask with a pixel in it; draw one, or remove it here.")
    if ann_id is None or ann_id not in annotated.regions:
        raise ValueError(f"{where}: ann_id {reprlib.repr(value)} is not among the annotations; correct or remove it.")
    if annotated.regions[ann_id].image_id != image_id:
        belongs = annotated.regions[ann_id].image_id
        raise ValueError(f"{where}: ann_id {ann_id} belongs to image {belongs}; correct one of them.")
    return ann_id
