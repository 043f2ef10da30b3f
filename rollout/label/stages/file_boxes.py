"""Stage: boxes that a detector wrote, or people drew, read from a file in COCO's form.

The file has `images` (file_name, height, width), `annotations` (image_id, bbox [x, y, w, h], category_id, perhaps
score) and `categories`. An image is found by the end of its path.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from envs.ranges import between
from rollout.label.record import Box, LabelImage, Shown

_LEAST_PX = 1.0
"""Shortest side of a box that is taken."""


@dataclass(frozen=True)
class _Boxes:
    """The boxes of an image in its own pixels."""

    height: float
    width: float
    found: tuple[tuple[str, Box, float], ...]
    """Name, box and score of each."""


@dataclass(frozen=True)
class Labeller:
    """Boxes from a file."""

    path: str
    """The file."""
    least_score: Annotated[float, between(0, 1)] = 0.0
    """Least score of a box that is taken; a box without one has 1."""
    crowds: bool = False
    """Whether boxes around groups (iscrowd 1) are taken."""
    HAS_MODEL: ClassVar[bool] = True  # a large file takes long to read

    def check(self) -> None:
        """Raise FileNotFoundError or ValueError where the file is not in COCO's form."""
        if not self._of_name:
            raise ValueError(f"{self.path} has no image; give a file of boxes in COCO's form.")

    @cached_property
    def _of_name(self) -> dict[str, list[tuple[str, _Boxes]]]:
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"file_boxes.path is {self.path}, which is no file; give boxes in COCO's form.")
        return _read(self.path, self.crowds, Path(self.path).stat().st_mtime_ns)

    def label(self, images: Sequence[Shown]) -> list[LabelImage]:
        """Adds an object for each box of an image, in the order of the file, cut at the image's edges."""
        return [self._with_boxes(one.image) if one.image.is_open else one.image for one in images]

    def _with_boxes(self, image: LabelImage) -> LabelImage:
        path = PurePosixPath(image.origin.key.replace("\\", "/"))
        for name, boxes in self._of_name.get(path.name, ()):
            if path.parts[-len(PurePosixPath(name).parts) :] == PurePosixPath(name).parts:
                scale = (image.width / boxes.width, image.height / boxes.height)
                shown = [(each, _shown(box, scale, image), score) for each, box, score in boxes.found]
                taken = [one for one in shown if one[2] >= self.least_score and _has_area(one[1])]
                return image.add(
                    [(each, box) for each, box, _ in taken], [{"score": s} for *_, s in taken], "file_boxes"
                )
        return image


def _shown(box: Box, scale: tuple[float, float], image: LabelImage) -> Box:
    """A box in the pixels in which the image is shown, cut at its edges."""
    x0, y0, x1, y1 = (value * scale[k % 2] for k, value in enumerate(box))
    x0, x1 = (min(max(x, 0.0), image.width) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), image.height) for y in (y0, y1))
    return x0, y0, x1, y1


def _has_area(box: Box) -> bool:
    return box[2] - box[0] >= _LEAST_PX and box[3] - box[1] >= _LEAST_PX


@lru_cache(maxsize=2)
def _read(path: str, crowds: bool, changed_ns: int) -> dict[str, list[tuple[str, _Boxes]]]:
    """Boxes of the images by the last part of their names, with the names as the file has them; changed_ns: when the
    file was last changed, so that another one in its place is read anew."""
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {one["id"]: str(one["name"]) for one in held["categories"]}
        of_image: dict[Any, list[tuple[str, Box, float]]] = {}
        for one in held["annotations"]:
            if crowds or not one.get("iscrowd"):
                of_image.setdefault(one["image_id"], []).append(_box(one, names))
        found: dict[str, list[tuple[str, _Boxes]]] = {}
        for one in held["images"]:
            name = str(one["file_name"]).replace("\\", "/")
            boxes = _Boxes(float(one["height"]), float(one["width"]), tuple(of_image.get(one["id"], ())))
            found.setdefault(PurePosixPath(name).name, []).append((name, boxes))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of boxes in COCO's form ({type(error).__name__}: {error}); it needs images "
            "(id, file_name, height, width), annotations (image_id, category_id, bbox) and categories (id, name)."
        ) from error
    return found


def _box(one: Mapping[str, Any], names: Mapping[Any, str]) -> tuple[str, Box, float]:
    x, y, width, height = map(float, one["bbox"])
    return names[one["category_id"]], (x, y, x + width, y + height), float(one.get("score", 1.0))
