"""What labelme's shapes cover, by its own rule: Pillow draws them, outline and inside, at the size of the photo.

So a polygon is about half a pixel fatter than COCO's rule would have it: every pixel that its outline passes through is
in. A circle is the ellipse that Pillow fits into the square around it; a rectangle holds both corner pixels. A brush
mask is a picture of its own, laid with its first pixel on the rounded first point.
"""

import base64
import binascii
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from envs.readers._loose_json import points_of
from envs.readers._pixels import indices_of
from envs.readers._united import placed
from envs.readers.base import Shape

POLYGONS = ("polygon", "oriented_rectangle", None)
NO_AREA = ("line", "linestrip", "point", "points")


@dataclass(frozen=True)
class PolygonDrawing:
    """A polygon, filled even-odd, with every pixel of its outline."""

    points: tuple[tuple[float, float], ...]
    """Corners (x, y), pixels; three or more."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels that Pillow draws."""
        canvas = Image.new("L", (width, height))
        ImageDraw.Draw(canvas).polygon(self.points, outline=1, fill=1)
        return np.array(canvas) > 0


@dataclass(frozen=True)
class BoxDrawing:
    """A rectangle, or the ellipse that fits into it."""

    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1), pixels; the corners are in."""
    round: bool = False
    """Whether it is the ellipse."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels that Pillow draws."""
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        (draw.ellipse if self.round else draw.rectangle)(self.box, outline=1, fill=1)
        return np.array(canvas) > 0


@dataclass(frozen=True)
class Patch:
    """A brush mask."""

    png: bytes
    """The picture; what is not 0 is on."""
    corner: tuple[int, int]
    """(left, top) of its first pixel."""
    size: tuple[int, int] | None = None
    """(height, width) that it is cut to; None leaves it whole."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels that are on; raises ValueError where the picture cannot be read."""
        on = indices_of(io.BytesIO(self.png), "the picture of a brush mask") != 0
        if self.size:
            on = on[: self.size[0], : self.size[1]]
        return placed(on, self.corner, height, width)


def labelme_shape(entry: Any) -> Shape:
    """The shape of an entry of `shapes`.

    Raises ValueError, in words to count by, where it is none that can be drawn.
    """
    kind, points = entry.get("shape_type"), points_of(entry.get("points"))
    if kind in POLYGONS:
        if len(points) < 3:
            raise ValueError("a polygon of fewer than three points")
        return PolygonDrawing(tuple(points))
    if kind not in ("rectangle", "circle", "mask") or len(points) < 2:
        raise ValueError(f"shape_type {kind!r} with {len(points)} points")
    if kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        return BoxDrawing((x - radius, y - radius, x + radius, y + radius), round=True)
    if kind == "rectangle":  # two opposite corners in any order; other tools write all four
        xs, ys = zip(*points, strict=True)
        return BoxDrawing((min(xs), min(ys), max(xs), max(ys)))
    return _patch(entry.get("mask"), points)


def _patch(mask: Any, points: list[tuple[float, float]]) -> Patch:
    try:
        png = base64.b64decode(mask) if isinstance(mask, str) else b""
    except binascii.Error as error:
        raise ValueError("a brush mask that is not base64") from error
    if not png:
        raise ValueError("a brush mask without a picture")
    (left, top), (right, bottom) = (tuple(round(number) for number in point) for point in points[:2])
    # Points of fractions were moved after the mask was drawn: labelme then takes the picture as large as it is.
    whole = all(number == int(number) for point in points[:2] for number in point)
    return Patch(png, (left, top), (bottom - top + 1, right - left + 1) if whole else None)
