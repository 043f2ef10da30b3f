"""Polygons drawn as OpenCV draws them, outline included, over one another, the largest first.

Corners are whole pixels (fractions are cut off), so a drawn polygon is about half a pixel fatter than COCO's rule makes
it. Nothing is drawn before a mask is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
Edge = tuple[Point, Point]

TARGET, IGNORED = 1, 2
"""What a drawn shape stands for."""


@dataclass(frozen=True)
class DrawnShape:
    """What is left to be seen of one kind, once all shapes of a photo were drawn over one another."""

    corners: NDArray[np.int64]
    """[N, 2] corners (x, y) of all shapes, pixels."""
    offsets: NDArray[np.int64]
    """[R + 1]; shape r is corners[offsets[r] : offsets[r + 1]]."""
    kinds: tuple[int, ...]
    """TARGET or IGNORED, for each shape."""
    shown: int
    """The kind that the mask is of."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """[height, width] the pixels of that kind.

        A shape of fewer pixels is drawn later and so lies above; of two that are as large, the later one lies below.
        """
        drawn = [
            drawn_polygon(self.corners[first:end], height, width) for first, end in pairwise(self.offsets.tolist())
        ]
        canvas = np.zeros((height, width), np.uint8)
        smallest_first = sorted(range(len(drawn)), key=lambda place: int(drawn[place].sum()))
        for place in reversed(smallest_first):
            canvas[drawn[place]] = self.kinds[place]
        return canvas == self.shown


def drawn_polygon(corners: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """[height, width] the outline of [N, 2] `corners` (x, y), closed, and what it encloses, even-odd row by row."""
    closed = [(int(x), int(y)) for x, y in corners]
    edges = list(zip(closed[-1:] + closed[:-1], closed, strict=True))
    clipped = [_clipped(start, end, height, width) for start, end in edges]
    mask = _enclosed(edges, [(start, end) for start, end, _ in clipped], height, width)
    for start, end, inside in clipped:
        if inside:
            xs, ys = _line(start, end)
            mask[ys, xs] = True
    return mask


def _enclosed(edges: list[Edge], clipped: list[Edge], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels between pairs of edges on each row; an edge belongs to its upper row and not to its lower one.

    clipped: the edges with their ends moved to the border of the photo, through which lines are drawn.
    """
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    crossings: list[NDArray[np.floating]] = [np.zeros(0)]
    for edge, inside in zip(edges, clipped, strict=True):
        top, bottom = sorted((edge[0][1], edge[1][1]))
        ys = np.arange(max(top, 0), min(bottom, height))
        if len(ys) == 0:
            continue
        (ax, ay), (bx, by) = inside
        if ay == by:  # OpenCV then takes the columns at the border, and the rows from where they were
            ay, by = edge[0][1], edge[1][1]
        rows.append(ys)
        crossings.append(np.float64(ax) + (ys - ay) * ((bx - ax) / (by - ay)))
    row, x = np.concatenate(rows), np.concatenate(crossings)
    order = np.lexsort((x, row))
    row, x = row[order][::2], x[order]
    first = np.clip(np.ceil(x[::2]), 0, width).astype(np.int64)
    end = np.clip(np.floor(x[1::2]) + 1, 0, width).astype(np.int64)
    some = end > first
    steps = np.zeros((height, width + 1), np.int32)
    np.add.at(steps, (row[some], first[some]), 1)
    np.add.at(steps, (row[some], end[some]), -1)
    return np.asarray(steps.cumsum(axis=1)[:, :width] > 0)


def _line(start: Point, end: Point) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(xs, ys) of Bresenham's line between two pixels, both included, from left to right."""
    (x0, y0), (x1, y1) = (start, end) if start[0] <= end[0] else (end, start)
    across, down = x1 - x0, abs(y1 - y0)
    longer, shorter = max(across, down), min(across, down)
    along = np.arange(longer + 1)
    # Halves stay behind: a step aside is taken once the line is more than half a pixel away.
    aside = -((longer - 2 * shorter * along) // (2 * longer)) if longer else along
    xs, ys = (along, aside) if across >= down else (aside, along)
    return x0 + xs, y0 + (ys if y1 >= y0 else -ys)


def _clipped(start: Point, end: Point, height: int, width: int) -> tuple[Point, Point, bool]:
    """A line with its ends moved to the border of the photo, in whole pixels, and whether any of it lies inside."""
    line = [start, end]
    borders = ((1, height - 1), (0, width - 1))
    if any(_side(start[axis], last) == _side(end[axis], last) != 0 for axis, last in borders):
        return start, end, False
    for axis, last in borders:
        sides = [_side(point[axis], last) for point in line]
        if sides[0] == sides[1] != 0:
            return line[0], line[1], False
        for place, side in enumerate(sides):
            if side:
                line[place] = _cut(line, place, axis, 0 if side < 0 else last)
    return line[0], line[1], True


def _side(value: int, last: int) -> int:
    """-1 before the photo, 1 behind it, 0 within."""
    return -1 if value < 0 else int(value > last)


def _cut(line: Sequence[Point], place: int, axis: int, border: int) -> Point:
    """One end of a line moved along it to where it crosses a border; the other coordinate is cut towards the end."""
    moved, (start, end) = line[place], line
    rise, run = end[1 - axis] - start[1 - axis], end[axis] - start[axis]
    steps = (border - moved[axis]) * rise
    other = moved[1 - axis] + (abs(steps) // abs(run)) * (1 if (steps < 0) == (run < 0) else -1)
    return (border, other) if axis == 0 else (other, border)


def cut_to_pixels(points: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """[N, 2] points (x, y) with their fractions cut off, towards zero."""
    return np.trunc(np.array(points, np.float64).reshape(-1, 2)).astype(np.int64)


def flat_corners(shapes: Iterator[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shapes, each [N, 2], as (corners, offsets) of a DrawnShape."""
    listed = list(shapes)
    offsets = np.cumsum([0, *map(len, listed)]).astype(np.int64)
    return np.concatenate([np.zeros((0, 2), np.int64), *listed]), offsets
