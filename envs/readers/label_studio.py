"""Reader: Label Studio, the tasks that it exports as JSON.

Polygons are points in percent of the photo, filled by COCO's rule; brush masks are run lengths of their own
(envs/readers/_brush_rle.py). Boxes and ellipses are left out, and so is what was drawn on a turned photo. Of several
annotations of a task one is taken: that of `ground_truth`, else the first that was not cancelled. Browsers show photos
upright, so outlines lie on the upright photo.

A photo is found by the last part of its address, with or without the eight letters that an upload puts before its name
(`1a2b3c4d-name.jpg`). Everything is the split train: an export knows no others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

from envs.ranges import one_of
from envs.readers._brush_rle import brush_shape
from envs.readers._by_class import ASK, ClassedObject, class_references
from envs.readers._coco_json import NO_PIXEL, NOT_READ, id_text
from envs.readers._glimpse import head, is_image, nothing_here
from envs.readers._image_files import ImageFiles
from envs.readers._loose_json import json_of, points_of, side_of
from envs.readers.base import AnnotatedPhoto, Findings, Found, PhotoFile, Shape
from envs.reading import plain_text
from envs.shapes import shape_of

NOT_OUTLINED = ("rectangle", "ellipse", "keypoint")
TOOLS = ("polygon", "brush", *NOT_OUTLINED)
TURNED = "regions drawn on a turned photo (image_rotation)"
OTHER_SIZE = "regions of another size than the first of their photo"
CANCELLED = "annotations that were cancelled"
SEVERAL = "tasks with several annotations, of which one is taken"
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
_WANTED = "an export of Label Studio (a .json file with a list of tasks)"


@dataclass(frozen=True)
class Reader:
    """The JSON file of an export, or a folder with one."""

    path: str
    """The file, or its folder."""
    images: str | None = None
    """Folder of the photos; None looks beside the file, in `images/` and in `upload/`."""
    ask: Annotated[str, one_of(*ASK)] = "all"
    """What a label means: `all` its objects of a photo together, or the `single` one, where there is but one."""

    @staticmethod
    def recognise(path: Path) -> Found | None:
        """A list of tasks with annotations, by its first bytes."""
        found = _task_files(path)
        return Found(f"Label Studio: {', '.join(file.name for file in found)}", 3) if found else None

    def splits(self) -> tuple[str, ...]:
        """The only one: train."""
        return ("train",) if self._file else ()

    def photos(self, split: str, findings: Findings) -> Iterator[AnnotatedPhoto]:
        """Photos of the tasks, in their order."""
        if split not in self.splits():
            raise ValueError(f"{self.path} has no split {split!r}; an export of Label Studio is the split train.")
        tasks = json_of(self._file)
        if not isinstance(tasks, list):
            raise ValueError(f"{self._file} holds no list of tasks; export it as JSON.")
        here = self._file.parent
        folders = [here, here / "images", here / "upload", here / "media" / "upload"]
        files = ImageFiles(folders if self.images is None else [Path(self.images)])
        for place, task in enumerate(tasks):
            if isinstance(task, dict):
                yield from _task_photo(task, id_text(task.get("id")) or f"task{place}", self.ask, files, findings)
            else:
                findings.leave_out("tasks that cannot be read", f"task {place}")

    @cached_property
    def _file(self) -> Path:
        found = _task_files(Path(self.path))
        if not found:
            raise nothing_here(Path(self.path), _WANTED, Reader.recognise)
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{self.path} holds several exports ({names}); give one of the files.")
        return found[0]


def _task_photo(
    task: Mapping[str, Any], name: str, ask: str, files: ImageFiles, findings: Findings
) -> Iterator[AnnotatedPhoto]:
    regions = _regions(task, name, findings)
    size = next((found for region in regions if all(found := _size(region))), (0, 0))
    objects = (each for region in regions for each in _objects(region, size, f"{name}", findings))
    asked = class_references(name, objects, ask, findings)
    if not asked:
        return
    names = _photo_names(task)
    there = next((path for each in names if (path := files.find(each))), None)
    path = there or files.found((names or [f"(of task {name})"])[0], [one.id for one in asked], findings)
    if path:
        yield AnnotatedPhoto(PhotoFile(name, path, *size, names[0], upright=True), tuple(asked))


def _regions(task: Mapping[str, Any], name: str, findings: Findings) -> list[Mapping[str, Any]]:
    """The entries of the annotation that counts, of any kind."""
    listed = task.get("annotations", task.get("completions"))
    given = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    kept = [each for each in given if not each.get("was_cancelled")]
    for each in given:
        if each.get("was_cancelled"):
            findings.leave_out(CANCELLED, f"{name}/{id_text(each.get('id'))}")
    if len(kept) > 1:
        findings.note(SEVERAL, name)
    chosen = next((each for each in kept if each.get("ground_truth")), kept[0] if kept else {})
    result = chosen.get("result")
    listed = [each for each in result if isinstance(each, dict)] if isinstance(result, list) else []
    drawn = [each for each in listed if _tool(each) in TOOLS]
    said = {id_text(each.get("id")): _labels(each) for each in listed if each.get("type") == "labels"}
    return [{**each, "labels": _labels(each) or said.get(id_text(each.get("id")))} for each in drawn]


def _tool(region: Mapping[str, Any]) -> str:
    """What an entry was drawn with: "brush" for the type brushlabels, or brush, whose label is an entry of its own."""
    return plain_text(region.get("type")).removesuffix("labels")


def _labels(region: Mapping[str, Any]) -> list[str]:
    value = region.get("value")
    found = value.get(plain_text(region.get("type")), value.get("labels")) if isinstance(value, dict) else None
    return [plain_text(label).strip() for label in found] if isinstance(found, list) else []


def _objects(
    region: Mapping[str, Any], size: tuple[int, int], name: str, findings: Findings
) -> Iterator[ClassedObject]:
    """The object of an entry, once for each of its labels."""
    region_id = id_text(region.get("id")) or "?"
    found = _shape(_tool(region), region, size)
    if isinstance(found, str):
        findings.leave_out(found, f"{name}/{region_id}")
    if _tool(region) == "keypoint":
        return
    for place, label in enumerate(region["labels"] or [""]):
        which = f"{region_id}.{place}" if place else region_id
        yield ClassedObject(which, label, None if isinstance(found, str) else found, speck=found == NO_PIXEL)


def _shape(tool: str, region: Mapping[str, Any], size: tuple[int, int]) -> Shape | str:
    """What an entry covers; or, where it cannot be used, why, in words to count by."""
    value = region["value"] if isinstance(region.get("value"), dict) else {}
    if tool in NOT_OUTLINED:
        return f"{tool} regions, of which no mask is read"
    if region.get("image_rotation") not in (None, 0, 0.0):
        return TURNED
    if not all(size) or _size(region) != size:
        return OTHER_SIZE if all(size) else "regions whose photo's size is not recorded"
    height, width = size
    try:
        if tool == "brush":
            packed = value.get("rle")
            shape, num_on = brush_shape(bytes(packed) if isinstance(packed, list) else b"", height, width)
            return shape if num_on else NO_PIXEL
        points = [[x * width / 100, y * height / 100] for x, y in points_of(value.get("points"))]
        polygon = shape_of([points], height, width, "polygon")
    except (ValueError, TypeError):
        return NOT_READ
    return polygon if polygon.holds_a_pixel(height, width) else NO_PIXEL


def _size(region: Mapping[str, Any]) -> tuple[int, int]:
    return side_of(region.get("original_height")), side_of(region.get("original_width"))


def _photo_names(task: Mapping[str, Any]) -> list[str]:
    """Names under which a task's photo may lie, the likeliest first."""
    data = task.get("data")
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    if isinstance(data, dict) and isinstance(data.get("image"), str):
        texts.insert(0, data["image"])
    names = []
    for text in [plain_text(task.get("file_upload")), *texts]:
        parts = urlsplit(text)
        local = parse_qs(parts.query).get("d", [parts.path])[0]  # /data/local-files/?d=folder/name.jpg
        if is_image(Path(local)):
            last = PurePosixPath(unquote(local).replace("\\", "/")).name
            uploaded = _UPLOAD.fullmatch(last)
            names += [unquote(local).lstrip("/"), last, *([uploaded[1]] if uploaded else [])]
    return list(dict.fromkeys(names))


def _task_files(path: Path) -> list[Path]:
    """Exports in a folder; or the file itself."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [file for file in files if file.suffix.lower() == ".json" and _lists_tasks(head(file))]


def _lists_tasks(seen: str) -> bool:
    result = any(f'"{key}"' in seen for key in ("annotations", "completions")) and '"result"' in seen
    return seen.lstrip().startswith("[") and result
