"""CVAT's own XML, "CVAT for images 1.1": polygons, and brush masks as run lengths within a box.

A mask has runs of off, on, off, ... pixels, row by row of the box at (left, top) of width x height pixels. Polygons are
filled by COCO's rule, as CVAT fills them for its own exports. Shapes of one label and one group are one object.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from envs.readers._by_class import ClassedObject
from envs.readers._coco_json import NO_PIXEL, NOT_READ
from envs.readers._loose_json import side_of
from envs.readers._united import placed, united
from envs.readers.base import Findings, Shape
from envs.reading import refuse_no_text
from envs.shapes import shape_of

NOT_OUTLINED = ("box", "ellipse", "cuboid")
"""What stands for an object without telling its pixels, or not in a form that is read."""
NO_AREA = ("polyline", "points", "skeleton", "tag")


@dataclass(frozen=True)
class BoxRuns:
    """A brush mask."""

    runs: NDArray[np.int64]
    """Lengths of the runs of off, on, off, ... pixels, row by row; they add up to the pixels of the box."""
    corner: tuple[int, int]
    """(left, top) of the box, pixels; it may reach out of the photo."""
    size: tuple[int, int]
    """(height, width) of the box."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels that are on, cut off at the edge of the photo."""
        on = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.size)
        return placed(on, self.corner, height, width)


@dataclass(frozen=True)
class XmlImage:
    """One `<image>`: what it says of the photo, and the shapes in it."""

    id: str
    name: str
    """Path of the photo as CVAT has it."""
    subset: str
    """Name of its subset; "" where there is none."""
    height: int
    width: int
    shapes: tuple[tuple[str, Mapping[str, str]], ...]
    """(tag, attributes) of each."""


def read_images(path: Path) -> list[XmlImage]:
    """The images of a file.

    Raises FileNotFoundError where there is none, ValueError where it is no such XML or about a video.
    """
    refuse_no_text(str(path), "the path")
    images, tracks, root = [], 0, ""
    try:
        for event, element in ElementTree.iterparse(path, ("start", "end")):
            root = root or element.tag
            if event == "end" and element.tag == "image":
                images.append(_image(element))
                element.clear()
            elif event == "end" and element.tag == "track":
                tracks += 1
                element.clear()
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise ValueError(f"{path} is no XML that can be read whole ({error}); export it again.") from error
    if tracks and not images:
        raise ValueError(f'{path} has {tracks:,} tracks of a video; export the task as "CVAT for images 1.1".')
    if root != "annotations":
        raise ValueError(f"{path} is not CVAT's XML: it begins with <{root}>, not with <annotations>.")
    return images


def _image(element: ElementTree.Element) -> XmlImage:
    said = element.attrib
    shapes = tuple((each.tag, dict(each.attrib)) for each in element)
    height, width = side_of(_number(said.get("height"))), side_of(_number(said.get("width")))
    return XmlImage(said.get("id", ""), said.get("name", ""), said.get("subset", ""), height, width, shapes)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def objects_of(image: XmlImage, findings: Findings) -> Iterator[ClassedObject]:
    """The objects of an image; what cannot be used is told."""
    grouped: dict[tuple[str, str], list[Shape]] = {}
    for place, (tag, said) in enumerate(image.shapes):
        which, label = f"{image.id}/{place}", said.get("label", "").strip()
        if tag in NO_AREA:
            findings.leave_out(f"{tag} shapes, which cover nothing", which)
            continue
        shape = _shape(tag, said, image)
        if isinstance(shape, str):
            findings.leave_out(shape, which)
            yield ClassedObject(which, label, None, speck=shape == NO_PIXEL)
        else:
            group = said.get("group_id", "0")
            grouped.setdefault((label, group if group != "0" else which), []).append(shape)
    for (label, group), shapes in grouped.items():
        name = group if "/" in group else f"{image.id}/group{group}"
        yield ClassedObject(name, label, united(shapes))


def _shape(tag: str, said: Mapping[str, str], image: XmlImage) -> Shape | str:
    """What a shape covers; or, where it cannot be used, why, in words to count by."""
    if not (image.height and image.width):
        return "shapes of an image whose size is not recorded"
    if tag in NOT_OUTLINED:
        return f"{tag} shapes, of which no mask is read"
    try:
        if tag == "mask":
            runs = _brush(said)
            return runs if runs.runs[1::2].any() else NO_PIXEL
        if tag == "polygon":
            numbers = [float(number) for point in said["points"].split(";") for number in point.split(",")]
            polygon = shape_of([numbers], image.height, image.width, "polygon")
            return polygon if polygon.holds_a_pixel(image.height, image.width) else NO_PIXEL
    except (KeyError, ValueError, OverflowError):
        return NOT_READ
    return f"{tag} shapes, which are not known"


def _brush(said: Mapping[str, str]) -> BoxRuns:
    left, top, width, height = (int(float(said[key])) for key in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in said["rle"].split(",")], np.int64)
    if width < 1 or height < 1 or runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise ValueError(f"rle covers {runs.sum()} pixels, its box {width} x {height}.")
    return BoxRuns(runs, (left, top), (height, width))
