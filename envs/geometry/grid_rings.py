"""Rings on a coarse grid: what a codec writes of an instance once its vertices have moved to the grid.

A ring may then lose its area or turn over, a hole may become as large as the ring around it, so that the two cancel
out, or reach beyond it, and two rings may become one. Of all that, what serves the reader is written: the pixels of an
answer stay as near to those of the shape as its own rings allow, and where the shape has a pixel, so has the answer.

Frames: _px and _grid of envs/polygons.py. Letters: R rings, N vertices.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.geometry.contours import mask_from_rings
from envs.geometry.masks import iou
from envs.polygons import Box, Ring, grid_from_px, signed_area_px

GridRing = NDArray[np.int64]


def rounded(ring_px: Ring, bins: int | NDArray[np.int64], extent_px: Box) -> GridRing:
    """A ring [N, 2] by its nearest points of the grid, none twice in a row; [0, 2] where it lost its area.

    bins: as `grid_from_px` takes it.
    """
    grid = grid_from_px(ring_px, bins, extent_px)
    grid = grid[(grid != np.roll(grid, 1, axis=0)).any(axis=1)]
    return grid if signed_area_px(grid) else grid[:0]


def worth_writing(rings_px: Sequence[Ring], read_px: Sequence[Ring], height: int, width: int) -> list[int]:
    """Places of the rings that make an instance, in order; [] where they would draw none of its pixels.

    rings_px: R rings of the instance. read_px: the same, rounded, as a reader gets them; [0, 2] where nothing is left.
    Left out are a hole without which the pixels are nearer to the instance's (by IoU), and a ring that only rounding
    turned over, or made the same as one before it, where nothing is lost by it. Without a pixel to go by, all but those
    turned over stay.
    """
    shape = mask_from_rings(list(rings_px), height, width)
    places = [k for k, ring in enumerate(read_px) if len(ring)]
    spoilt = {k for k in places if signed_area_px(read_px[k]) * signed_area_px(rings_px[k]) <= 0}
    if not shape.any():
        return [k for k in places if k not in spoilt]
    spoilt |= {k for k in places if any(_made_alike(rings_px, read_px, j, k) for j in places if j < k)}
    overlap = _overlap(shape, [read_px[k] for k in places])
    for k in [k for k in places if k in spoilt or signed_area_px(read_px[k]) < 0]:
        rest = [place for place in places if place != k]
        without = _overlap(shape, [read_px[place] for place in rest])
        if without > overlap or (rest and k in spoilt and without == overlap):
            places, overlap = rest, without
    return places if overlap else []


def stand_ins(box_grid: GridRing, num_vertices: int) -> list[GridRing]:
    """What may stand for an instance of `num_vertices` of which nothing is left: a box [4, 2] of the grid around it.

    Or, since no more vertices may be written than were given, the two halves [3, 2] of the box for a triangle.
    """
    return [box_grid] if num_vertices > 3 else [box_grid[[0, 1, 2]], box_grid[[0, 2, 3]]]


def nearest(rings_px: Sequence[Ring], read_px: Sequence[Ring], height: int, width: int) -> int:
    """Place of the ring of `read_px` whose pixels are nearest to those of an instance, by IoU; of equals the first."""
    shape = mask_from_rings(list(rings_px), height, width)
    return int(np.argmax([_overlap(shape, [ring]) for ring in read_px]))


def _overlap(shape: NDArray[np.bool_], rings_px: list[Ring]) -> float:
    """IoU of a mask [H, W] with the rings, filled; 0 where the mask has no pixel."""
    return iou(mask_from_rings(rings_px, *shape.shape), shape) if shape.any() else 0.0


def _made_alike(rings_px: Sequence[Ring], read_px: Sequence[Ring], j: int, k: int) -> bool:
    """Whether rings j and k differ, but no longer once they are read."""
    return _same(read_px[j], read_px[k]) and not _same(rings_px[j], rings_px[k])


def _same(a: Ring, b: Ring) -> bool:
    """Whether two rings [N, 2] go round the same vertices in the same direction, wherever they begin."""
    if len(a) != len(b):
        return False
    return any(np.array_equal(a, np.roll(b, k, axis=0)) for k in range(len(b)))
