"""The `segmentation` of an annotation in COCO's form, in the forms that tools write it: polygon parts or run lengths.

It is read and checked as it stands; pixels are made of it only where they are asked for.
"""

import reprlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.geometry.raster import (
    fill,
    fill_as_pycocotools,
    fill_parts,
    parts_hold_a_pixel,
    pycocotools_holds_a_pixel,
    trace,
)
from envs.geometry.rle import mask_from_runs, runs_from_rle
from envs.geometry.spans import spans_from_rings
from envs.polygons import Ring, flatten_rings
from envs.reading import whole

_MOST_PX = 1e6
"""A vertex that is farther away is a mistake of a tool: nobody draws so far outside of a photo."""
_AS_IT_IS = (1.0, 1.0)


@dataclass(frozen=True)
class PolygonShape:
    """Polygon parts, each filled even-odd by itself, then united."""

    vertices: NDArray[np.float64]
    """[N, 2] vertices of all parts, px of the photo's own size."""
    offsets: NDArray[np.int64]
    """[R + 1]; part r is vertices[offsets[r] : offsets[r + 1]]."""

    def mask(self, height: int, width: int, scale: tuple[float, float] = _AS_IT_IS) -> NDArray[np.bool_]:
        """The pixels [height, width] once the vertices were multiplied by `scale` (x, y).

        At the photo's own size those of pycocotools; scaled, what has its centre inside.
        """
        if scale == _AS_IT_IS:
            return fill_as_pycocotools(self.vertices, self.offsets, height, width)
        return fill_parts(self.vertices * np.array(scale), self.offsets, height, width)

    def holds_a_pixel(self, height: int, width: int, scale: tuple[float, float] = _AS_IT_IS) -> bool:
        """Whether `mask` has a pixel, found without making it."""
        if scale == _AS_IT_IS:
            return pycocotools_holds_a_pixel(self.vertices, self.offsets, height, width)
        return parts_hold_a_pixel(self.vertices * np.array(scale), self.offsets, height, width)


@dataclass(frozen=True)
class RunLengthShape:
    """Run lengths of a mask, which stands for its exact pixel-edge rings."""

    runs: NDArray[np.int64]
    """Lengths of the runs of off, on, off, ... pixels, column by column."""
    height: int
    """H of the mask, that of the photo itself."""
    width: int
    """W of the mask, that of the photo itself."""

    @cached_property
    def _rings(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        vertices, offsets = trace(mask_from_runs(self.runs, self.height, self.width))
        return vertices, offsets

    @property
    def vertices(self) -> NDArray[np.float64]:
        """[N, 2] vertices of all rings, px of the photo's own size."""
        return self._rings[0]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[R + 1]; ring r is vertices[offsets[r] : offsets[r + 1]]."""
        return self._rings[1]

    def mask(self, height: int, width: int, scale: tuple[float, float] = _AS_IT_IS) -> NDArray[np.bool_]:
        """The pixels [height, width] once the vertices were multiplied by `scale` (x, y)."""
        if scale == _AS_IT_IS:
            return mask_from_runs(self.runs, height, width)
        return fill(self.vertices * np.array(scale), self.offsets, height, width)

    def holds_a_pixel(self, height: int, width: int, scale: tuple[float, float] = _AS_IT_IS) -> bool:
        """Whether `mask` has a pixel, found without making it."""
        if scale == _AS_IT_IS:
            return bool(self.runs[1::2].any())
        return len(spans_from_rings(self.vertices * np.array(scale), self.offsets, height, width).bounds) > 0


Shape = PolygonShape | RunLengthShape


def shape_of(segmentation: Any, height: int, width: int, where: str) -> Shape:
    """The shape of an annotation of a height x width photo.

    Polygon parts, of three points or more: a list of lists of numbers, of a single list, or of points. Run lengths, as
    text or as numbers. Raises ValueError, telling `where`, for anything else.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]
    if isinstance(segmentation, dict):
        return RunLengthShape(_run_lengths(segmentation, height, width, where), height, width)
    if not isinstance(segmentation, list | None):
        raise ValueError(f"{where}: segmentation {reprlib.repr(segmentation)} is neither polygons nor RLE; correct it.")
    parts = [_polygon_part(part, where) for part in polygon_parts(segmentation)]
    return PolygonShape(*flatten_rings([part for part in parts if len(part) > 2]))


def polygon_parts(segmentation: Any) -> list[Any]:
    """The parts of polygons, a list alone being one; [] for anything that is no list."""
    if not isinstance(segmentation, list):
        return []
    flat = bool(segmentation) and all(isinstance(number, int | float) for number in segmentation)
    return [segmentation] if flat else segmentation


def _polygon_part(part: Any, where: str) -> Ring:
    numbers = part
    if isinstance(part, list) and part and all(isinstance(point, list) and len(point) == 2 for point in part):
        numbers = [number for point in part for number in point]
    if isinstance(numbers, list) and len(numbers) % 2 == 0 and {*map(type, numbers)} <= {int, float}:
        try:
            ring = np.array(numbers, np.float64).reshape(-1, 2)
        except OverflowError:  # a whole number of JSON may be too long for a float
            ring = np.full((1, 2), np.inf)
        if (np.abs(ring) < _MOST_PX).all():
            return ring
    raise ValueError(
        f"{where}: polygon part {reprlib.repr(part)} is not x, y, x, y, ... in pixels of less than {_MOST_PX:.0e}; "
        "correct it."
    )


def _run_lengths(rle: dict[str, Any], height: int, width: int, where: str) -> NDArray[np.int64]:
    size, counts = rle.get("size"), rle.get("counts")
    sides = [whole(side) for side in size] if isinstance(size, list) else size
    if sides != [height, width]:
        raise ValueError(f"{where}: RLE size {reprlib.repr(size)} is not the image's [{height}, {width}]; correct it.")
    if isinstance(counts, str) and not (counts.isascii() and not counts.startswith(("b'", 'b"'))):
        raise ValueError(
            f"{where}: RLE counts {reprlib.repr(counts)} are not the text that pycocotools writes; decode its bytes as "
            "ASCII before they are written."
        )
    if isinstance(counts, list):
        runs = [whole(run) for run in counts]
        if not all(run is not None and 0 <= run <= height * width for run in runs):
            raise ValueError(f"{where}: RLE counts {reprlib.repr(counts)} are not run lengths; correct them.")
        counts = [int(run) for run in runs if run is not None]
    elif not isinstance(counts, str):
        raise ValueError(f"{where}: RLE counts {reprlib.repr(counts)} are neither a list nor text; correct them.")
    try:
        return runs_from_rle(counts, height, width)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
