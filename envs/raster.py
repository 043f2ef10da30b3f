"""The raster rule, in Numba: one set of kernels for data, rewards, evaluation, archive and refiner.

A pixel belongs to a shape if its centre is inside by the non-zero winding rule. Pixel (i, j) has its centre at
(x, y) = (j + 0.5, i + 0.5); a centre exactly on an edge is in for left and top edges, out for right and bottom ones.
So a crossing of row i at x turns pixels on from column ceil(x - 0.5), and shapes that share an edge share no pixel.

Kernels take flat rings: vertices [N, 2] float64 (x, y) px and offsets [R + 1] int64 (see envs/polygons.py). An edge
with a non-finite end is skipped, so no coordinates can break a kernel; what such an answer is worth is for its reader
to say.
"""

import heapq
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from envs.kernel_cache import kernel_cache_folder

# Numba reads it when a kernel is decorated, so it holds for rewards/kernels.py too, which imports this file first.
config.CACHE_DIR = config.CACHE_DIR or kernel_cache_folder()  # type: ignore[attr-defined]  # Numba makes it at run time

RASTER_VERSION = 1
"""Raised whenever the same rings may give other pixels; archived with every answer."""

# Steps from one lattice point to the next, by direction: right, down, left, up.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])


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
def _count_rows(vertices: Any, offsets: Any, height: int, starts: Any) -> None:
    """Add to starts[i + 1] the number of edges that cross the centre line of row i."""
    for r in range(len(offsets) - 1):
        first, end = offsets[r], offsets[r + 1]
        for k in range(first, end):
            top, bottom = _rows_crossed(vertices, k, k + 1 if k + 1 < end else first, height)
            for i in range(top, bottom):
                starts[i + 1] += 1


@njit(cache=True, nogil=True)
def _insert_sorted(columns: Any, turns: Any, first: int, end: int, column: int, turn: int) -> None:
    """Insert one crossing into the sorted stretch first..end of a row."""
    k = end
    while k > first and columns[k - 1] > column:
        columns[k], turns[k] = columns[k - 1], turns[k - 1]
        k -= 1
    columns[k], turns[k] = column, turn


@njit(cache=True, nogil=True)
def crossings(vertices: Any, offsets: Any, height: int, width: int) -> Any:
    """Where rings cross the centre lines of the rows of a height x width image.

    Returns (starts [H + 1] int64, columns [C] int64, turns [C] int8): row i owns crossings starts[i]:starts[i + 1],
    sorted by column; from columns[k] on, the winding number changes by turns[k] (+1 for an edge that runs up).
    """
    starts = np.zeros(height + 1, np.int64)
    _count_rows(vertices, offsets, height, starts)
    for i in range(height):
        starts[i + 1] += starts[i]
    columns = np.empty(starts[height], np.int64)
    turns = np.empty(starts[height], np.int8)
    filled = starts[:height].copy()
    for r in range(len(offsets) - 1):
        first, end = offsets[r], offsets[r + 1]
        for k in range(first, end):
            n = k + 1 if k + 1 < end else first
            x0, y0, x1, y1 = vertices[k, 0], vertices[k, 1], vertices[n, 0], vertices[n, 1]
            top, bottom = _rows_crossed(vertices, k, n, height)
            turn = 1 if y1 < y0 else -1
            if y1 < y0:  # always upwards in y: the same edge gives the same columns in both directions
                x0, y0, x1, y1 = x1, y1, x0, y0
            for i in range(top, bottom):
                # Multiplied before it is divided: exact where an edge between half-integers meets a pixel centre.
                x = x0 + (i + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                column = clipped_ceil(x - 0.5, width)
                _insert_sorted(columns, turns, starts[i], filled[i], column, turn)
                filled[i] += 1
    return starts, columns, turns


@njit(cache=True, nogil=True)
def _fill(vertices: Any, offsets: Any, height: int, width: int) -> Any:
    mask = np.zeros((height, width), np.bool_)
    starts, columns, turns = crossings(vertices, offsets, height, width)
    for i in range(height):
        winding = 0
        for k in range(starts[i], starts[i + 1] - 1):
            winding += turns[k]
            if winding != 0:
                mask[i, columns[k] : columns[k + 1]] = True
    return mask


def fill(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of the rings, filled together by non-zero winding at pixel centres."""
    return _fill(np.ascontiguousarray(vertices, np.float64), offsets, height, width)


@njit(cache=True, nogil=True)
def _boundary_directions(mask: Any) -> Any:
    """Bits [H + 1, W + 1] of the boundary edges that leave each lattice point: 1 right, 2 down, 4 left, 8 up."""
    height, width = mask.shape
    out = np.zeros((height + 1, width + 1), np.uint8)
    for i in range(height):
        for j in range(width):
            if not mask[i, j]:
                continue
            if i == 0 or not mask[i - 1, j]:
                out[i, j] |= 1
            if j == width - 1 or not mask[i, j + 1]:
                out[i, j + 1] |= 2
            if i == height - 1 or not mask[i + 1, j]:
                out[i + 1, j + 1] |= 4
            if j == 0 or not mask[i, j - 1]:
                out[i + 1, j] |= 8
    return out


@njit(cache=True, nogil=True)
def _count_bits(out: Any) -> int:
    total = 0
    for value in out.ravel():
        total += (value & 1) + ((value >> 1) & 1) + ((value >> 2) & 1) + ((value >> 3) & 1)
    return total


@njit(cache=True, nogil=True)
def _trace_ring(out: Any, y: int, x: int, vertices: Any, num_vertices: int) -> int:
    """Take the ring that begins at lattice point (x, y) out of `out`; its vertices go to vertices[num_vertices:].

    Returns the number of vertices then.
    """
    direction = 0 if out[y, x] & 1 else 1
    while out[y, x] & (1 << direction):
        vertices[num_vertices] = (x, y)
        num_vertices += 1
        # Right turn first: it stays with the same pixel where two touch at a corner.
        right, left = (direction + 1) % 4, (direction + 3) % 4
        while out[y, x] & (1 << direction):
            out[y, x] ^= 1 << direction
            y, x = y + _STEP_Y[direction], x + _STEP_X[direction]
            if out[y, x] & (1 << right):
                break
        direction = right if out[y, x] & (1 << right) else left
    return num_vertices


@njit(cache=True, nogil=True)
def trace(mask: Any) -> Any:
    """Trace a bool mask [H, W] along pixel edges.

    Returns flat rings (vertices [N, 2] float64 px, offsets [R + 1] int64) that fill to exactly `mask`. Outer rings run
    clockwise on screen, holes the other way; each starts at its topmost, then leftmost vertex, and rings are ordered by
    that vertex. Pixels that touch only at a corner are kept apart. Only corners are vertices.
    """
    out = _boundary_directions(mask)
    capacity = _count_bits(out)
    vertices = np.empty((capacity, 2), np.float64)
    offsets = np.zeros(capacity // 4 + 1, np.int64)
    num_rings = 0
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            while out[i, j]:
                num_rings += 1
                offsets[num_rings] = _trace_ring(out, i, j, vertices, offsets[num_rings - 1])
    return vertices[: offsets[num_rings]].copy(), offsets[: num_rings + 1].copy()


@njit(cache=True, nogil=True)
def _triangle_area(ring: Any, a: int, b: int, c: int) -> float:
    return (
        abs(
            (ring[b, 0] - ring[a, 0]) * (ring[c, 1] - ring[a, 1])
            - (ring[c, 0] - ring[a, 0]) * (ring[b, 1] - ring[a, 1])
        )
        / 2
    )


@njit(cache=True, nogil=True)
def importance(ring: Any) -> Any:
    """Order in which Visvalingam and Whyatt (1993) would drop the vertices of [N, 2] `ring`.

    Returns [N] int64: rank[k] is the number of vertices still there when vertex k goes; the last three have ranks 1
    to 3. So ring[rank <= n] is the ring simplified to n vertices, still in order.
    """
    num = len(ring)
    rank, version = np.zeros(num, np.int64), np.zeros(num, np.int64)
    if num == 0:
        return rank
    before, after = np.arange(num) - 1, np.arange(num) + 1
    before[0], after[num - 1] = num - 1, 0
    heap = [(_triangle_area(ring, before[k], k, after[k]), k, 0) for k in range(num)]
    heapq.heapify(heap)
    remaining = num
    while remaining > 0:
        area, k, stamp = heapq.heappop(heap)
        if rank[k] or stamp != version[k]:
            continue
        rank[k] = remaining
        remaining -= 1
        a, c = before[k], after[k]
        after[a], before[c] = c, a
        for n in (a, c):
            if rank[n] == 0:
                version[n] += 1
                # Never below the area just dropped, so that ranks grow with importance.
                new_area = max(area, _triangle_area(ring, before[n], n, after[n]))
                heapq.heappush(heap, (new_area, n, version[n]))
    return rank


@njit(cache=True, nogil=True)
def _run_lengths(mask: Any) -> Any:
    """Lengths of the runs of off, on, off, ... pixels of `mask` read column by column; the first may be 0."""
    height, width = mask.shape
    runs = np.empty(height * width + 1, np.int64)
    num, length, value = 0, 0, False
    for j in range(width):
        for i in range(height):
            if mask[i, j] != value:
                runs[num] = length
                num, length, value = num + 1, 0, not value
            length += 1
    runs[num] = length
    return runs[: num + 1].copy()


@njit(cache=True, nogil=True)
def _pack_runs(runs: Any) -> Any:
    """COCO's text form of run lengths: each, less the one two before it from the fourth on, in 5-bit groups plus 48."""
    text = np.empty(13 * len(runs), np.uint8)
    num = 0
    for k in range(len(runs)):
        value = runs[k] - (runs[k - 2] if k > 2 else 0)
        more = True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            text[num] = 48 + (group | (32 if more else 0))
            num += 1
    return text[:num].copy()


@njit(cache=True, nogil=True)
def _unpack_runs(text: Any) -> Any:
    runs = np.empty(len(text), np.int64)
    num, k = 0, 0
    while k < len(text):
        value, shift, more = np.int64(0), 0, True
        while more and k < len(text) and shift < 60:
            group = np.int64(text[k]) - 48
            k += 1
            value |= (group & 31) << shift
            shift += 5
            more = (group & 32) != 0
            if not more and group & 16:
                value |= -1 << shift
        runs[num] = value + (runs[num - 2] if num > 2 else 0)
        num += 1
    return runs[:num].copy()


@njit(cache=True, nogil=True)
def _fill_runs(runs: Any, height: int, width: int) -> Any:
    columns_first = np.zeros(height * width, np.bool_)
    start = 0
    for k in range(len(runs)):
        if k % 2 == 1:
            columns_first[start : start + runs[k]] = True
        start += runs[k]
    return np.ascontiguousarray(columns_first.reshape((width, height)).T)


def rle_from_mask(mask: NDArray[np.bool_]) -> str:
    """COCO's compressed run-length text of a bool mask [H, W] (the `counts` of pycocotools)."""
    return _pack_runs(_run_lengths(np.ascontiguousarray(mask, np.bool_))).tobytes().decode("ascii")


def mask_from_rle(counts: str | list[int], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] from COCO run lengths, as compressed text or as a list of numbers.

    Raises ValueError where the runs do not add up to height * width pixels.
    """
    if isinstance(counts, str):
        runs = _unpack_runs(np.frombuffer(counts.encode("ascii"), np.uint8))
    else:
        runs = np.asarray(counts, np.int64)
    num_pixels = height * width
    # Each run is checked before the sum, which could wrap around to the right number.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > num_pixels or runs.sum() != num_pixels:
        raise ValueError(
            f"RLE covers {runs.sum()} pixels (runs {runs[:4].tolist()}...), the mask has {height} x {width} = "
            f"{num_pixels}; check `size` and `counts` of this annotation."
        )
    return _fill_runs(runs, height, width)
