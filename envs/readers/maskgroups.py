"""Reader: MaskGroups-HQ: groups of masks that words ask for, or words with regions of the photo between them.

A question's truth is the group that `gt_mask_group` names of `gt_mask_pool`; `mask_pool` holds proposals to choose
from. A token in the words stands for a region. Where those are listed is not told by the files' makers, so the column
is a setting; where it lists another number of regions than there are tokens, the question is lost, nothing is guessed.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from envs.ranges import one_of
from envs.readers._by_photo import by_photo, refuse_unknown_split, usable_shape
from envs.readers._coco_json import id_text
from envs.readers._glimpse import head, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._json_lists import parsed, raw_lists
from envs.readers._parquet_rows import Rows, columns_of, split_files
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Reference
from envs.reading import plain_text
from envs.shapes import Shape

Entry = Callable[[], dict[str, Any]]

NO_QUERY = "entries without words to ask"
NO_GROUP = "questions without a group of masks"
BAD_GROUP = "questions whose group names a mask that is not there or cannot be read"
UNPAIRED = "questions with another number of regions in their words than are listed; nothing is guessed"
BAD_REGION = "questions that point at a region that is not there or cannot be read"
BAD_CANDIDATE = "masks to choose from that cannot be read"
NO_PHOTO = "entries that cannot be read, or that name no photo"
_COLUMNS = ("id", "image", "conversations", "mask_pool", "gt_mask_pool", "gt_mask_group")
_REGION = re.compile(r"<mask[-_]ref>")
_BESIDE = (".", "images_resized", "images", "..", "../images_resized", "../images")


@dataclass(frozen=True)
class Reader:
    """A folder with Parquet or JSON files named by split, or one of them."""

    path: str
    """The folder, or one file."""
    images: str | None = None
    """Folder of the photos; None looks for `images_resized` beside the files."""
    regions: str = "mask_ref"
    """Column that lists the regions that tokens of the words stand for: numbers of masks, or run lengths."""
    regions_of: Annotated[str, one_of("gt_mask_pool", "mask_pool")] = "gt_mask_pool"
    """The masks that those numbers count."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """Files whose rows or entries have pools and groups of masks."""
        if columns_of(split_files(path)).issuperset(_COLUMNS):
            return Found("MaskGroups: Parquet rows with mask_pool and gt_mask_group", 3)
        files = _json_files(path)
        return Found(f"MaskGroups: {', '.join(files)}", 3) if files else None

    def splits(self) -> tuple[str, ...]:
        """train and validation, by the names of the files."""
        return tuple(self._files)

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of a split, in the order in which they come first."""
        refuse_unknown_split(split, self.splits(), self.path)
        first = self._files[split][0].parent
        folders = [Path(self.images)] if self.images is not None else [first / beside for beside in _BESIDE]
        files = ImageFiles(folders)
        for name, entries in by_photo(self._named(split, findings)):
            found: list[Reference] = []
            size = (0, 0)
            for question, get in entries:
                entry = get()
                size = size if size[0] else _size(entry)
                found += self._references(question, entry, findings)
            path = found and files.found(name, [one.id for one in found], findings)
            if path:
                yield AnnotatedPhoto(PhotoFile(PurePosixPath(name).stem, path, *size, name), tuple(found))

    def _named(self, split: str, findings: Findings) -> Iterator[tuple[str, tuple[str, Entry]]]:
        """(photo, (id, how to read the entry)) of each; pools of many masks are read when their photo's turn comes."""
        seen = set()
        for place, (values, get) in enumerate(_entries(self._files[split], (*_COLUMNS, self.regions), findings)):
            name, question = plain_text(values.get("image")), id_text(values.get("id")) or f"entry {place}"
            question = f"{question} at {place}" if question in seen else question
            seen.add(question)
            if name:
                yield name, (question, get)
            else:
                findings.lose(NO_PHOTO, question)

    def _references(self, question: str, entry: Mapping[str, Any], findings: Findings) -> Iterator[Reference]:
        words, size = _words(entry.get("conversations")), _size(entry)
        group = _list(entry.get("gt_mask_group"))
        meant = [_pooled(number, entry.get("gt_mask_pool"), size) for number in _list(group[0] if group else None)]
        regions = self._regions(entry, size)
        num_tokens = len(_REGION.findall(words))
        masks = tuple(mask for mask in meant if mask is not None)
        shown = [region for region in regions if region is not None]
        listed = f"{len(regions)} in `{self.regions}`" if self.regions in entry else f"no column `{self.regions}`"
        checks = (
            (NO_QUERY, not _REGION.sub("", words).strip(), ""),
            (NO_GROUP, not meant, ""),
            (BAD_GROUP, len(masks) < len(meant), ""),
            (UNPAIRED, num_tokens != len(regions), f" ({num_tokens} in the words, {listed})"),
            (BAD_REGION, len(shown) < len(regions), ""),
        )
        for reason, is_so, details in checks:
            if is_so:
                findings.lose(reason, question + details)
                return
        candidates = _candidates(entry, size, question, findings)
        yield Reference(question, _parts(words, shown), masks, candidates=candidates)

    def _regions(self, entry: Mapping[str, Any], size: tuple[int, int]) -> list[Shape | None]:
        """The regions that tokens stand for, None for one that cannot be read."""
        pool = entry.get(self.regions_of)
        listed = _list(entry.get(self.regions))
        alone = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in listed]
        return [_shape(each, size) if isinstance(each, dict) else _pooled(each, pool, size) for each in alone]

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        path = Path(self.path)
        if self.recognise(path) is None:
            wanted = f"Parquet or JSON files with {', '.join(_COLUMNS)}"
            raise nothing_here(path, wanted, self.recognise)
        return _json_files(path) or split_files(path)


def _json_files(path: Path) -> dict[str, list[Path]]:
    candidates = sorted(path.glob("*.json")) if path.is_dir() else [path]
    named = [file for file in candidates if file.suffix == ".json" and _begins(head(file))]
    return {file.stem: [file] for file in named}


def _begins(start: str) -> bool:
    """Whether a file begins like this format; pools are long, so that the first bytes may end in the first one."""
    return '"conversations"' in start and any(f'"{name}"' in start for name in ("mask_pool", "gt_mask_group"))


def _entries(files: list[Path], columns: tuple[str, ...], findings: Findings) -> Iterator[tuple[dict[str, Any], Entry]]:
    """(its id and photo, how to read it whole) of each entry of the files of a split."""
    if files[0].suffix == ".parquet":
        rows = Rows(files, findings)
        yield from ((values, partial(rows.values, row, *columns)) for row, values in rows.columns("id", "image"))
        return
    for raw in (entry for file in files for entries in raw_lists(file).values() for entry in entries):
        yield _parsed(raw), partial(_parsed, raw)


def _parsed(raw: Any) -> dict[str, Any]:
    return _mapping(parsed(raw))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _size(entry: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the masks, which is that of the photo; (0, 0) where none tells."""
    for mask in (*_list(entry.get("gt_mask_pool")), *_list(entry.get("mask_pool"))):
        size = _list(_mapping(mask).get("size"))
        if len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
            return size[0], size[1]
    return 0, 0


def _words(conversations: Any) -> str:
    """What the human asks: all behind the photo and the pool, region tokens included."""
    for turn in map(_mapping, _list(conversations)):
        if turn.get("from") == "human":
            said = plain_text(turn.get("value"))
            return said.split("<mask_pool>")[-1].split("<image>")[-1].strip()
    return ""


def _shape(mask: Any, size: tuple[int, int]) -> Shape | None:
    shape = usable_shape(mask, *size)
    return None if isinstance(shape, str) else shape


def _pooled(number: Any, pool: Any, size: tuple[int, int]) -> Shape | None:
    """The mask of a pool; None where there is none of that number, or it cannot be used."""
    listed = _list(pool)
    whole = isinstance(number, int) and not isinstance(number, bool)
    return _shape(listed[number], size) if whole and 0 <= number < len(listed) else None


def _parts(words: str, regions: list[Shape]) -> tuple[str | Shape, ...]:
    """Words with the regions in the places of their tokens."""
    texts = [text.strip() for text in _REGION.split(words)]
    parts: list[str | Shape] = [texts[0]]
    for region, text in zip(regions, texts[1:], strict=True):
        parts += [region, text]
    return tuple(part for part in parts if part != "")


def _candidates(
    entry: Mapping[str, Any], size: tuple[int, int], question: str, findings: Findings
) -> tuple[Shape, ...]:
    shapes = [_shape(mask, size) for mask in _list(entry.get("mask_pool"))]
    for place in (place for place, shape in enumerate(shapes) if shape is None):
        findings.leave_out(BAD_CANDIDATE, f"{question} (mask_pool[{place}])")
    return tuple(shape for shape in shapes if shape is not None)
