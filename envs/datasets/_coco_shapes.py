"""The `segmentation` of an annotation in COCO's form, in the forms that tools write it, as rings of vertices."""

import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.geometry.raster import trace
from envs.geometry.rle import mask_from_rle
from envs.polygons import Ring, flatten_rings, split_rings
from envs.reading import whole

_MOST_PX = 1e6
"""A vertex that is farther away is a mistake of a tool: nobody draws so far outside of a photo."""


def shape_rings(
    segmentation: Any, height: int, width: int, where: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
    """(vertices [N, 2] px, ring offsets [R + 1], whether they are polygon parts) of an annotation.

    Polygon parts, of three points or more, as they stand: a list of lists of numbers, of a single list, or of points.
    Run lengths as their pixel-edge rings. Raises ValueError, telling `where`, for anything else.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0]
    if isinstance(segmentation, dict):
        return *flatten_rings(_run_length_rings(segmentation, height, width, where)), False
    if not isinstance(segmentation, list | None):
        raise ValueError(f"{where}: segmentation {reprlib.repr(segmentation)} is neither polygons nor RLE; correct it.")
    parts = [_polygon_part(part, where) for part in polygon_parts(segmentation)]
    return *flatten_rings([part for part in parts if len(part) > 2]), True


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


def _run_length_rings(rle: dict[str, Any], height: int, width: int, where: str) -> list[Ring]:
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
        return split_rings(*trace(mask_from_rle(counts, height, width)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
