"""Shapes as spans, in Numba: the pixels of each row as runs of columns, and what a run-length code makes of them.

The raster rule: a pixel belongs to a shape if its centre is inside by the non-zero winding rule. Pixel (i, j) has its
centre at (x, y) = (j + 0.5, i + 0.5); a centre exactly on an edge is in for left and top edges, out for right and
bottom ones. So a crossing of row i at x turns pixels on from column ceil(x - 0.5), and shapes that share an edge share
no pixel.

Kernels take flat rings: vertices [N, 2] float64 (x, y) px and offsets [R + 1] int64 (see envs/polygons.py). An edge
with a non-finite end is skipped, so no coordinates can break a kernel; what such an answer is worth is for its reader
to say. Everything here costs as much as the outline is long, never as much as the image is large.

Dimension letters: H W pixels, S spans.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from envs.geometry.kernel_cache import kernel_cache_folder

# Numba reads it when a kernel is decorated, so it holds for the other kernel files too, which import this file first.
config.CACHE_DIR = config.CACHE_DIR or kernel_cache_folder()  # type: ignore[attr-defined]  # Numba makes it at run time


class Spans(NamedTuple):
    """The pixels of an H x W mask, row by row, as sorted runs of columns with a gap between them."""

    starts: NDArray[np.int64]
    """[H + 1] row i has the bounds starts[i]..starts[i + 1] - 1, an even number."""
    bounds: NDArray[np.int32]
    """[2 S] first column of a span and the column after its last, one span after the other."""


@njit(cache=True, nogil=True)
def clipped_ceil(value: float, limit: int) -> int:
    """ceil(value) clipped to 0..limit, 0 for NaN; compares before it converts, so 1e300 is safe."""
    if not value > 0.0:
        return 0
    if value >= limit:
        return limit
    return int(np.ceil(value))


@njit(cache=True, nogil=True)
def _rows_crossed(vertices: Any, k: int, n: int, height: int) -> Any:
    """(first, end) of the rows whose centre lines the edge from vertex k to n crosses; none if an end is not finite."""
    x0, y0, x1, y1 = vertices[k, 0], vertices[k, 1], vertices[n, 0], vertices[n, 1]
    if not (np.isfinite(x0) and np.isfinite(y0) and np.isfinite(x1) and np.isfinite(y1)):
        return 0, 0
    return clipped_ceil(min(y0, y1) - 0.5, height), clipped_ceil(max(y0, y1) - 0.5, height)


@njit(cache=True, nogil=True)
def _row_starts(vertices: Any, offsets: Any, height: int) -> Any:
    """[H + 1] running count of the edges that cross the centre line of each row."""
    starts = np.zeros(height + 2, np.int64)
    for r in range(len(offsets) - 1):
        first, end = offsets[r], offsets[r + 1]
        for k in range(first, end):
            top, bottom = _rows_crossed(vertices, k, k + 1 if k + 1 < end else first, height)
            starts[top + 1] += 1
            starts[bottom + 1] -= 1
    starts = np.cumsum(starts[: height + 1])  # edges that cross row i - 1
    return np.cumsum(starts)


@njit(cache=True, nogil=True)
def _insert_sorted(crossings: Any, first: int, end: int, crossing: int) -> None:
    """Insert one crossing into the sorted stretch first..end of a row."""
    k = end
    while k > first and crossings[k - 1] > crossing:
        crossings[k] = crossings[k - 1]
        k -= 1
    crossings[k] = crossing


@njit(cache=True, nogil=True)
def crossing_column(x0: float, y0: float, x1: float, y1: float, row: int, width: int) -> int:
    """First column whose centre is right of the edge, which must run down (y0 < y1), on the centre line of `row`."""
    # Multiplied before it is divided: exact where an edge between half-integers meets a pixel centre.
    return clipped_ceil(x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0) - 0.5, width)


@njit(cache=True, nogil=True)
def crossings_of_rows(vertices: Any, offsets: Any, height: int, width: int) -> Any:
    """(starts [H + 1], crossings): by row, sorted, twice the column of each crossing, plus 1 where the edge runs up."""
    starts = _row_starts(vertices, offsets, height)
    crossings = np.empty(starts[height], np.int32)
    filled = starts[:height].copy()
    for r in range(len(offsets) - 1):
        first, end = offsets[r], offsets[r + 1]
        for k in range(first, end):
            n = k + 1 if k + 1 < end else first
            x0, y0, x1, y1 = vertices[k, 0], vertices[k, 1], vertices[n, 0], vertices[n, 1]
            top, bottom = _rows_crossed(vertices, k, n, height)
            up = 1 if y1 < y0 else 0
            if up:  # always downwards: the same edge gives the same columns in both directions
                x0, y0, x1, y1 = x1, y1, x0, y0
            for i in range(top, bottom):
                crossing = 2 * crossing_column(x0, y0, x1, y1, i, width) + up
                _insert_sorted(crossings, starts[i], filled[i], crossing)
                filled[i] += 1
    return starts, crossings


@njit(cache=True, nogil=True)
def spans_from_rings(vertices: Any, offsets: Any, height: int, width: int) -> Any:
    """Spans of the rings, filled together by non-zero winding at pixel centres of a height x width image."""
    crossed, crossings = crossings_of_rows(vertices, offsets, height, width)
    starts, bounds = np.zeros(height + 1, np.int64), np.empty(len(crossings), np.int32)
    num = 0
    for i in range(height):
        winding = 0
        for k in range(crossed[i], crossed[i + 1]):
            before = winding
            winding += 1 if crossings[k] & 1 else -1
            column = crossings[k] >> 1
            if before == 0 and k < crossed[i + 1] - 1:
                if num > starts[i] and bounds[num - 1] == column:
                    num -= 1  # the span before it goes on
                else:
                    bounds[num] = column
                    num += 1
            elif before != 0 and (
                winding == 0 or k == crossed[i + 1] - 1
            ):  # the last ends what a skipped edge left open
                if bounds[num - 1] == column:
                    num -= 1  # no pixel centre in between
                else:
                    bounds[num] = column
                    num += 1
        starts[i + 1] = num
    return Spans(starts, bounds[:num].copy())


@njit(cache=True, nogil=True)
def spans_from_mask(mask: Any) -> Any:
    """Spans of a bool mask [H, W]."""
    height, width = mask.shape
    starts, num = np.zeros(height + 1, np.int64), 0
    for i in range(height):
        on = False
        for j in range(width):
            num += mask[i, j] != on
            on = mask[i, j]
        num += on
        starts[i + 1] = num
    bounds = np.empty(num, np.int32)
    num = 0
    for i in range(height):
        on = False
        for j in range(width):
            if mask[i, j] != on:
                bounds[num] = j
                num, on = num + 1, not on
        if on:
            bounds[num] = width
            num += 1
    return Spans(starts, bounds)


@njit(cache=True, nogil=True)
def mask_from_spans(spans: Any, height: int, width: int) -> Any:
    """Bool mask [height, width] of spans."""
    mask = np.zeros((height, width), np.bool_)
    for i in range(height):
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            mask[i, spans.bounds[k] : spans.bounds[k + 1]] = True
    return mask


@njit(cache=True, nogil=True)
def _changes(bounds: Any, k: int, k_end: int, n: int, n_end: int, changes: Any) -> int:
    """Write to `changes` where rows with bounds k..k_end - 1 and n..n_end - 1 begin or cease to differ; how often."""
    num = 0
    while k < k_end or n < n_end:
        if n == n_end or (k < k_end and bounds[k] < bounds[n]):
            changes[num] = bounds[k]
            k += 1
        else:
            changes[num] = bounds[n]
            n += 1
        num += 1
    return num


@njit(cache=True, nogil=True)
def transposed(spans: Any, width: int) -> Any:
    """The spans of the transposed mask: its rows are the `width` columns of the mask that `spans` has the rows of."""
    height = len(spans.starts) - 1
    changes = np.empty(2 * len(spans.bounds) + 2, np.int32)
    starts = np.zeros(width + 2, np.int64)
    filled = np.zeros(0, np.int64)
    bounds = np.zeros(0, np.int32)
    for counting in (True, False):
        above = end_above = 0
        for i in range(height + 1):  # a row of nothing follows the last
            first, end = (spans.starts[i], spans.starts[i + 1]) if i < height else (0, 0)
            num = _changes(spans.bounds, above, end_above, first, end, changes)
            above, end_above = first, end
            for k in range(0, num, 2):
                if counting:
                    starts[changes[k] + 1] += 1
                    starts[changes[k + 1] + 1] -= 1
                else:
                    for j in range(changes[k], changes[k + 1]):
                        bounds[filled[j]] = i
                        filled[j] += 1
        if counting:
            starts = np.cumsum(np.cumsum(starts[: width + 1]))
            filled = starts[:width].copy()
            bounds = np.empty(starts[width], np.int32)
    return Spans(starts, bounds)
