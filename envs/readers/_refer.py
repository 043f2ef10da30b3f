"""References to annotations, as the RefCOCO family has them: pickles read without running anything, and their joins."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.readers._coco_json import CocoAnnotation, CocoJson, id_text
from envs.readers._image_files import ImageFiles
from envs.readers._loose_json import json_of
from envs.readers._plain_pickle import plain_pickle
from envs.readers.base import AnnotatedPhoto, Findings, Reference
from envs.reading import plain_text

NO_SENTENCE = "references without a sentence"
NO_ANNOTATION = "questions about an annotation that is not in the file"
UNUSABLE = "questions about an annotation that cannot be used"
CROWD_TARGET = "questions about a crowd region, kept with its mask"
OTHER_IMAGE = "questions about an annotation of another image"
NO_TARGET_NAMED = "references that name no annotation and do not say that nothing is meant"
CONTRADICTION = "references that say that nothing is meant and name annotations"
REPEATED_REFERENCE = "references whose id was there before, told apart by their place in the file"


def read_references(path: Path) -> list[Mapping[str, Any]]:
    """The references of a `refs(*).p` or `.json` file: a list of mappings.

    A pickle is read without running anything of it. Raises FileNotFoundError where there is no file, ValueError where
    it asks for a class, or holds something else.
    """
    found = json_of(path) if path.suffix == ".json" else plain_pickle(path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path} holds no list of references, but {reprlib.repr(found)}; give a refs(*) file.")
    return found


@dataclass(frozen=True)
class Sentence:
    """One expression."""

    id: str
    text: str


@dataclass(frozen=True)
class Referred:
    """One reference: sentences that mean the same annotations of an image."""

    id: str
    image_id: str
    ann_ids: tuple[str, ...]
    """() where nothing in the image is meant."""
    sentences: tuple[Sentence, ...]
    place: int
    """Where it stands among the entries."""

    def question_ids(self) -> list[str]:
        """Ids of its questions, one a sentence."""
        return [f"{self.id}/{sentence.id}" for sentence in self.sentences]


def referred(
    entries: Iterable[Mapping[str, Any]],
    text_key: str,
    findings: Findings,
    asked: Callable[[Mapping[str, Any]], bool] = lambda entry: True,
) -> Iterator[Referred]:
    """References of entries in the form of `refs(*).p` or `grefs(*).json`; those that cannot be asked are told.

    text_key: "sent" (cleaned, lower case) or "raw" (as it was typed); the other one where it is missing. asked: which
    entries to give; ids depend on the file alone.
    """
    seen = set()
    for place, entry in enumerate(entries):
        ref_id = id_text(entry.get("ref_id")) or f"entry {place}"
        again = ref_id in seen
        seen.add(ref_id)
        if not asked(entry):
            continue
        if again:
            findings.note(REPEATED_REFERENCE, ref_id)
            ref_id = f"{ref_id} at {place}"
        sentences = tuple(_sentences(entry, ref_id, text_key))
        ann_ids = _ann_ids(entry)
        if not sentences:
            findings.lose(NO_SENTENCE, ref_id)
        elif isinstance(ann_ids, str):
            for sentence in sentences:
                findings.lose(ann_ids, f"{ref_id}/{sentence.id}")
        else:
            yield Referred(ref_id, id_text(entry.get("image_id")), ann_ids, sentences, place)


def split_of(entry: Mapping[str, Any]) -> str:
    """The split that an entry names; "train" where it names none."""
    return plain_text(entry.get("split")) or "train"


def _ann_ids(entry: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Ids of the annotations that are meant, () for none; or why they are not known."""
    named = entry.get("ann_id", entry.get("ann_ids"))
    listed: Sequence[Any] = named if isinstance(named, list) else [named]
    ids = tuple(id_text(value) for value in listed if value is not None)
    names_none = ids == ("-1",) or named == []
    if entry.get("no_target") in (True, 1):
        return () if names_none or not ids else CONTRADICTION
    return () if names_none else ids or NO_TARGET_NAMED


def _sentences(entry: Mapping[str, Any], ref_id: str, text_key: str) -> Iterator[Sentence]:
    listed = entry.get("sentences")
    sent_ids = entry.get("sent_ids")
    seen = set()
    for place, sentence in enumerate(listed if isinstance(listed, list) else []):
        said = sentence if isinstance(sentence, dict) else {"sent": sentence}
        other = "raw" if text_key == "sent" else "sent"
        text = plain_text(said.get(text_key)).strip() or plain_text(said.get(other)).strip()
        sent_id = id_text(said.get("sent_id")) or _at(sent_ids, place) or f"{place}"
        if text:
            yield Sentence(f"{sent_id} at {place}" if sent_id in seen else sent_id, text)
        seen.add(sent_id)


def _at(ids: Any, place: int) -> str:
    return id_text(ids[place]) if isinstance(ids, list) and place < len(ids) else ""


def in_split(split: str, asked: str) -> bool:
    """Whether a reference of `split` belongs to the split that is asked for.

    testA, testB and testC are in a joined split such as testAB too; `test` takes every one that has "test" in it.
    """
    if asked in ("testA", "testB", "testC"):
        return split.startswith("test") and asked[-1] in split[4:]
    return "test" in split if asked == "test" else split == asked


def splits_of(found: Iterable[str]) -> tuple[str, ...]:
    """Names to ask for, of the splits that references name: train, val, then the tests, joined ones taken apart."""
    names = set(found)
    parts = {f"test{letter}" for name in names if name.startswith("test") for letter in name[4:] if letter in "ABC"}
    rest = {name for name in names if not (name.startswith("test") and name[4:] and set(name[4:]) <= set("ABC"))}
    order = ["train", "val"]
    return (*(name for name in order if name in rest), *sorted((rest | parts) - set(order)))


def referring_photos(
    references: Iterable[Referred], coco: CocoJson, files: ImageFiles, findings: Findings
) -> Iterator[AnnotatedPhoto]:
    """References joined with annotations and photos, photo after photo in the order of the images."""
    of_image: dict[str, list[Referred]] = {}
    for one in references:
        of_image.setdefault(one.image_id, []).append(one)
    for image_id in [image_id for image_id in of_image if image_id not in coco.images]:
        for one in of_image.pop(image_id):
            for question in one.question_ids():
                findings.lose("questions about an image that is not in the file", f"{question} (image {image_id})")
    for image_id in coco.images:
        asked = of_image.get(image_id, [])
        path = asked and coco.found_photo(image_id, files, [name for one in asked for name in one.question_ids()])
        if not path:
            continue
        questions = tuple(question for one in asked for question in _questions(one, coco, findings))
        if questions:
            yield AnnotatedPhoto(coco.photo(image_id, path), questions)


def _questions(one: Referred, coco: CocoJson, findings: Findings) -> Iterator[Reference]:
    meant = _meant(one, coco)
    if isinstance(meant, str):
        for question in one.question_ids():
            findings.lose(meant, f"{question} (annotation {', '.join(one.ann_ids)})")
        return
    if any(annotation.crowd for annotation in meant):
        findings.note(CROWD_TARGET, one.id)
    shapes = tuple(annotation.shape for annotation in meant)
    for question, sentence in zip(one.question_ids(), one.sentences, strict=True):
        yield Reference(question, (sentence.text,), shapes)


def _meant(one: Referred, coco: CocoJson) -> list[CocoAnnotation] | str:
    """The annotations that are meant; or why they cannot be asked for."""
    found = []
    for ann_id in one.ann_ids:
        if not coco.has(ann_id):
            return NO_ANNOTATION
        annotation = coco.annotation(ann_id)
        if isinstance(annotation, str):
            return f"{UNUSABLE} ({annotation})"
        if annotation.image_id != one.image_id:
            return OTHER_IMAGE
        found.append(annotation)
    return found
