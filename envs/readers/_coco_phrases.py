"""Written phrases about annotations in COCO's form: a JSON list of {image_id, ann_ids, phrases}."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.readers._coco_classes import crowds_of
from envs.readers._coco_json import CocoAnnotation, CocoJson, id_text
from envs.readers._image_files import ImageFiles
from envs.readers._loose_json import json_of
from envs.readers.base import AnnotatedPhoto, Findings, Reference
from envs.reading import plain_text

NOT_READ = "entries of the phrases file that cannot be read"
NO_IMAGE = "questions about an image that is not in the file"
NO_ANNOTATION = "questions about an annotation that is not in the file"
OTHER_IMAGE = "questions about an annotation of another image"
UNUSABLE = "questions about an annotation that cannot be used"


@dataclass(frozen=True)
class Phrase:
    """One phrase and what it means."""

    image_id: str
    ann_ids: tuple[str, ...]
    """() where nothing in the image fits."""
    text: str

    @property
    def id(self) -> str:
        """Image, annotations and a hash of the text, so that an edited phrase is another question."""
        meant = "+".join(self.ann_ids) or "none"
        return f"{self.image_id}/{meant}/{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"


def read_phrases(path: Path, findings: Findings) -> list[Phrase]:
    """The phrases of a file; one that is there twice for the same annotations counts once.

    Raises FileNotFoundError where there is no file, ValueError where it holds no list.
    """
    found = json_of(path)
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list; it should hold entries of image_id, ann_ids and phrases.")
    phrases: dict[str, Phrase] = {}
    for place, entry in enumerate(found):
        read = list(_of_entry(entry))
        if not read:
            findings.lose(NOT_READ, f"entry {place}")
        phrases |= {phrase.id: phrase for phrase in read}
    return list(phrases.values())


def _of_entry(entry: Any) -> Iterator[Phrase]:
    """Phrases of an entry; nothing where it is not of the form."""
    entry = entry if isinstance(entry, Mapping) else {}
    image_id, named, texts = id_text(entry.get("image_id")), entry.get("ann_ids"), entry.get("phrases")
    if not image_id or not isinstance(named, list) or not isinstance(texts, list):
        return
    ann_ids = tuple(dict.fromkeys(map(id_text, named)))
    texts = [plain_text(text).strip() for text in texts]
    if all(ann_ids) and all(texts):
        yield from (Phrase(image_id, ann_ids, text) for text in texts)


@dataclass(frozen=True)
class PhraseQuestions:
    """What is asked about the photos of a file: written phrases."""

    coco: CocoJson
    files: ImageFiles
    phrases: tuple[Phrase, ...]
    elsewhere: frozenset[str]
    """Images of other splits, which are no mistake here."""
    crowds_are_groups: bool

    def photos(self, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Every photo with a question, in the order of the file."""
        of_image: dict[str, list[Phrase]] = {}
        for phrase in self.phrases:
            if phrase.image_id in self.coco.images:
                of_image.setdefault(phrase.image_id, []).append(phrase)
            elif phrase.image_id not in self.elsewhere:
                findings.lose(NO_IMAGE, phrase.id)
        for image_id in self.coco.images:
            asked = of_image.get(image_id, [])
            path = asked and self.coco.found_photo(image_id, self.files, [phrase.id for phrase in asked])
            found = tuple(one for phrase in asked if (one := self._reference(phrase, findings))) if path else ()
            if path and found:
                yield AnnotatedPhoto(self.coco.photo(image_id, path), found)

    def _reference(self, phrase: Phrase, findings: Findings) -> Reference | None:
        meant = []
        for ann_id in phrase.ann_ids:
            found = self.coco.annotation(ann_id) if self.coco.has(ann_id) else None
            if not isinstance(found, CocoAnnotation):
                reason = NO_ANNOTATION if found is None else f"{UNUSABLE} ({found})"
                findings.lose(reason, f"{phrase.id} (annotation {ann_id})")
                return None
            if found.image_id != phrase.image_id:
                findings.lose(OTHER_IMAGE, f"{phrase.id} (annotation {ann_id})")
                return None
            meant.append(found)
        classes = {one.category_id for one in meant} if self.crowds_are_groups else set()
        crowds = crowds_of(self.coco, phrase.image_id, classes)
        ignore = tuple(shape for ann_id, shape in crowds if ann_id not in phrase.ann_ids)
        return Reference(phrase.id, (phrase.text,), tuple(one.shape for one in meant), ignore)
