"""Reader: LVIS, v1 and v0.5: "find all of this class" where a photo shows all of them, and classes known to be absent.

A class is asked for where the photo does not list it as only partly drawn (`not_exhaustive_category_ids`); that nothing
of a class is there is known only of the classes that the photo lists as such (`neg_category_ids`). Names are cleaned:
`bat_(animal)` is asked as "bat", and keeps its sense where another class would have the same name. There are no crowds.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from envs.ranges import at_least
from envs.readers._by_class import ClassedObject, class_references
from envs.readers._by_photo import refuse_unknown_split
from envs.readers._coco_json import NO_PIXEL, CocoJson, id_text
from envs.readers._glimpse import head, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._refs_folder import photo_folders
from envs.readers.base import AnnotatedPhoto, Findings, Found, Reference
from envs.reading import plain_text

NOT_ALL = "classes of a photo of which not all objects are drawn, not asked for"
ABSENT_YET_DRAWN = "classes that a photo lists as absent and has drawn, not asked for as absent"
_NAME = re.compile(r"lvis_(?P<version>v[0-9.]+)_(?P<split>\w+)\.json")
_WORDS = ("neg_category_ids", "not_exhaustive_category_ids")
_BESIDE = (".", "coco", "images", "..", "../coco", "../images", "../coco/images", "../../coco", "../../images")


@dataclass(frozen=True)
class Reader:
    """A folder with files such as `lvis_v1_val.json`, or one of them."""

    path: str
    """The folder, or one file."""
    images: str | None = None
    """Folder that holds `train2017` and `val2017`; None looks beside the files, and in `coco` and `images` there."""
    version: str | None = None
    """Which files: "v1" or "v0.5"; None where there are only those of one."""
    negatives: Annotated[int, at_least(0)] = 1
    """Most questions of a photo about classes that are known to be absent."""
    synonyms: bool = False
    """Whether one of the names of a class is asked, chosen by the ids of photo and class, in place of the first."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Files named as LVIS names them, or one that lists absent classes."""
        names = [file.name for file in _files(path)]
        return Found(f"LVIS: {', '.join(names)}", 3) if names else None

    def splits(self) -> tuple[str, ...]:
        """train, val and what else there is, by the names of the files; test files hold no annotations."""
        return tuple(self._found)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order of the file."""
        refuse_unknown_split(split, self.splits(), self.path)
        coco = CocoJson(self._found[split], findings)
        files = ImageFiles(self._folders(self._found[split].parent))
        names = class_names(coco.classes)
        for image_id, image in coco.images.items():
            drawn = {ann_id: id_text(coco.entry(ann_id).get("category_id")) for ann_id in coco.annotation_ids(image_id)}
            absent = _ids(image, "neg_category_ids")
            asked = {category: self._asked(image_id, category, names) for category in (*drawn.values(), *absent)}
            found = [
                *class_references(image_id, _objects(image_id, coco, drawn, asked, findings), "all", findings),
                *self._absent(image_id, set(drawn.values()), absent, asked, findings),
            ]
            path = found and coco.found_photo(image_id, files, [one.id for one in found])
            if path:
                yield AnnotatedPhoto(coco.photo(image_id, path), tuple(found))

    def _asked(self, image_id: str, category: str, names: Mapping[str, tuple[str, ...]]) -> str:
        """What a class is called in questions about a photo; "" for one that is not in the file."""
        given = names.get(category, ())
        return given[_hash(image_id, category) % len(given) if self.synonyms else 0] if given else ""

    def _absent(
        self, image_id: str, drawn: set[str], absent: list[str], asked: Mapping[str, str], findings: Findings
    ) -> Iterator[Reference]:
        """Questions about classes of which the photo has nothing."""
        for category in sorted(drawn.intersection(absent)):
            findings.note(ABSENT_YET_DRAWN, f"{image_id} ({asked[category] or category})")
        known = {category for category in absent if asked[category]} - drawn
        chosen = sorted(known, key=lambda category: (_hash(image_id, category, "absent"), category))
        for category in chosen[: self.negatives]:
            yield Reference(f"{image_id}/none/{category}", (asked[category],), ())

    @cached_property
    def _found(self) -> dict[str, Path]:
        files = [file for file in _files(Path(self.path)) if self.version in (None, _version(file))]
        if not files:
            wanted = f"a folder with lvis_{self.version or 'v1'}_train.json or _val.json, or such a file"
            raise nothing_here(Path(self.path), wanted, self.recognise)
        versions = sorted({_version(file) for file in files})
        if len(versions) > 1:
            raise ValueError(f"{self.path} holds files of {' and '.join(versions)}; set version to one of them.")
        return {_split(file): file for file in files}

    def _folders(self, here: Path) -> list[Path]:
        if self.images is not None:
            return [Path(self.images), Path(self.images) / "images"]
        return [*(here / beside for beside in _BESIDE), *photo_folders(here)]


def class_names(classes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The names of each class, cleaned, by its id: first the one that it goes by, then those that no other class has.

    A sense in brackets is dropped where what is left is the name of no other class.
    """
    written = {category: _written(entry) for category, entry in classes.items()}
    bare = Counter(name for names in written.values() for name in set(map(_bare, names)))
    found = {}
    for category, names in written.items():
        clear = [_bare(name) if bare[_bare(name)] == 1 else _spaced(name) for name in names]
        others = [name for name in clear[1:] if bare[name] == 1 or name != _bare(name)]
        found[category] = tuple(dict.fromkeys([*clear[:1], *others]))
    return found


def _written(entry: Mapping[str, Any]) -> list[str]:
    synonyms = entry.get("synonyms")
    names = [entry.get("name"), *(synonyms if isinstance(synonyms, list) else [])]
    return list(dict.fromkeys(text for name in names if (text := plain_text(name).strip())))


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _bare(name: str) -> str:
    """A name without the sense that stands in brackets."""
    return _spaced(re.sub(r"\([^)]*\)", " ", name)) or _spaced(name)


def _objects(
    image_id: str, coco: CocoJson, drawn: Mapping[str, str], asked: Mapping[str, str], findings: Findings
) -> Iterator[ClassedObject]:
    """The objects of classes of which the photo has all drawn; drawn: the class of each annotation."""
    partly = set(_ids(coco.images[image_id], "not_exhaustive_category_ids"))
    for category in dict.fromkeys(each for each in drawn.values() if each in partly):
        findings.note(NOT_ALL, f"{image_id} ({asked[category] or category})")
    for ann_id, category in drawn.items():
        if category in partly:
            continue
        found = coco.annotation(ann_id)
        if isinstance(found, str):
            findings.leave_out(found, ann_id)
            yield ClassedObject(ann_id, asked[category], None, speck=found == NO_PIXEL)
        else:
            yield ClassedObject(ann_id, asked[category], found.shape)


def _ids(image: Mapping[str, Any], key: str) -> list[str]:
    listed = image.get(key)
    return [text for value in listed if (text := id_text(value))] if isinstance(listed, list) else []


def _hash(*ids: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(ids).encode()).digest()[:8], "big")


def _files(path: Path) -> list[Path]:
    """Files with annotations of a folder or its folder `annotations`, or the one that is named."""
    if path.is_file():
        start = head(path) if path.suffix == ".json" else ""
        return [path] if _NAME.fullmatch(path.name) or all(word in start for word in _WORDS) else []
    found = [file for under in ("", "annotations/", "lvis/") for file in sorted(path.glob(f"{under}lvis_v*_*.json"))]
    return [file for file in found if _NAME.fullmatch(file.name) and "image_info" not in file.name]


def _split(file: Path) -> str:
    match = _NAME.fullmatch(file.name)
    return match["split"] if match else file.stem


def _version(file: Path) -> str:
    match = _NAME.fullmatch(file.name)
    return match["version"] if match else ""
