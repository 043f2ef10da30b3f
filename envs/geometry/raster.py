"""Masks and rings under the raster rule of envs/geometry/spans.py, in Numba: filling, tracing along pixel edges,
simplification.

One set of kernels serves data, rewards, evaluation, archive and refiner. Rings are flat: vertices [N, 2] float64
(x, y) px and offsets [R + 1] int64 (see envs/polygons.py).
"""

import heapq
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.spans import crossings_of_rows, mask_from_spans, spans_from_rings

RASTER_VERSION = 1
"""Raised whenever the same rings may give other pixels; archived with every answer."""

# Steps from one lattice point to the next, by direction: right, down, left, up.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])


def fill(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of the rings, filled together by non-zero winding at pixel centres."""
    spans = spans_from_rings(np.ascontiguousarray(vertices, np.float64), offsets, height, width)
    return mask_from_spans(spans, height, width)


def fill_parts(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of the rings, each filled even-odd by itself at pixel centres, then united.

    What polygons of COCO's annotations mean; `fill`, the rule of answers, differs where a ring crosses itself.
    """
    mask = np.zeros((height, width), np.bool_)
    vertices = np.ascontiguousarray(vertices, np.float64)
    for first, end in pairwise(offsets.tolist()):
        _paint_even_odd(vertices[first:end], mask)
    return mask


@njit(cache=True, nogil=True)
def _paint_even_odd(ring: Any, mask: Any) -> None:
    """Set the pixels of `mask` [H, W] to whose left the centre line crosses `ring` [N, 2] an odd number of times."""
    height, width = mask.shape
    starts, crossings = crossings_of_rows(ring, np.array([0, len(ring)]), height, width)
    for i in range(height):
        for k in range(starts[i], starts[i + 1] - 1, 2):
            mask[i, crossings[k] >> 1 : crossings[k + 1] >> 1] = True


def parts_hold_a_pixel(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> bool:
    """Whether the mask of `fill_parts` has a pixel, found without making it."""
    vertices = np.ascontiguousarray(vertices, np.float64)
    return any(_even_odd_holds(vertices[first:end], height, width) for first, end in pairwise(offsets.tolist()))


@njit(cache=True, nogil=True)
def _even_odd_holds(ring: Any, height: int, width: int) -> bool:
    starts, crossings = crossings_of_rows(ring, np.array([0, len(ring)]), height, width)
    for i in range(height):
        for k in range(starts[i], starts[i + 1] - 1, 2):
            if crossings[k] >> 1 < crossings[k + 1] >> 1:
                return True
    return False


def fill_as_pycocotools(
    vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int
) -> NDArray[np.bool_]:
    """Mask [height, width] of `fill_parts` to the very pixel of pycocotools, which draws on fifths of a pixel.

    Vertices are rounded to that grid and so are the points of edges between them: a pixel here and there differs.
    """
    mask = np.zeros((height, width), np.bool_)
    _paint_parts(np.ascontiguousarray(vertices, np.float64), offsets, mask)
    return mask


@njit(cache=True, nogil=True)
def pycocotools_holds_a_pixel(vertices: Any, offsets: Any, height: int, width: int) -> bool:
    """Whether the mask of `fill_as_pycocotools` has a pixel, found without making it."""
    for r in range(len(offsets) - 1):
        ring = vertices[offsets[r] : offsets[r + 1]]
        top, bottom, left, right = _window(ring, height, width)
        if left < right and top < bottom and _part_holds(ring, (bottom - top, right - left), left, top):
            return True
    return False


@njit(cache=True, nogil=True)
def _paint_parts(vertices: Any, offsets: Any, mask: Any) -> None:
    for r in range(len(offsets) - 1):
        ring = vertices[offsets[r] : offsets[r + 1]]
        top, bottom, left, right = _window(ring, mask.shape[0], mask.shape[1])
        if left < right and top < bottom:
            _paint_part(ring, mask[top:bottom, left:right], left, top)


@njit(cache=True, nogil=True)
def _window(ring: Any, height: int, width: int) -> Any:
    """Rows and columns of the image around `ring` [N, 2] px: first row, end, first column, end."""
    if len(ring) == 0:
        return 0, 0, 0, 0
    x0, y0, x1, y1 = ring[:, 0].min(), ring[:, 1].min(), ring[:, 0].max(), ring[:, 1].max()
    top, bottom = min(max(int(np.floor(y0)), 0), height), min(max(int(np.ceil(y1)) + 1, 0), height)
    left, right = min(max(int(np.floor(x0)), 0), width), min(max(int(np.ceil(x1)) + 1, 0), width)
    return top, bottom, left, right


_FINE = 5
"""Steps a pixel of the grid that COCO's polygons are drawn on."""


@njit(cache=True, nogil=True)
def _paint_part(ring: Any, mask: Any, left: int, top: int) -> None:
    """Set the pixels inside `ring` [N, 2] px, even-odd, in `mask` [H, W], whose corner is at (left, top) px."""
    height, width = mask.shape
    toggled = np.zeros(height * width, np.bool_)  # below, in its column, inside and outside change places
    for cell in _toggled_cells(ring, (height, width), left, top):
        toggled[cell] ^= True
    for j in range(width):
        inside = False
        for i in range(height):
            inside ^= toggled[i * width + j]
            mask[i, j] |= inside


@njit(cache=True, nogil=True)
def _part_holds(ring: Any, size: Any, left: int, top: int) -> bool:
    """Whether `_paint_part` would set a pixel: there is one where a cell is toggled an odd number of times."""
    cells = np.sort(_toggled_cells(ring, size, left, top))
    k = 0
    while k < len(cells):
        same = k + 1
        while same < len(cells) and cells[same] == cells[k]:
            same += 1
        if (same - k) % 2:
            return True
        k = same
    return False


@njit(cache=True, nogil=True)
def _toggled_cells(ring: Any, size: Any, left: int, top: int) -> Any:
    """Cells (row * W + column) of a window of `size` H, W at (left, top) px that `ring` toggles.

    It does where it crosses the middle line of their column; a cell that is crossed twice is there twice.
    """
    fine = np.empty(ring.shape, np.int64)
    for k in range(len(ring)):
        fine[k, 0], fine[k, 1] = int(_FINE * ring[k, 0] + 0.5), int(_FINE * ring[k, 1] + 0.5)
    most = 0
    for k in range(len(ring)):
        most += min(abs(fine[(k + 1) % len(ring), 0] - fine[k, 0]) // _FINE + 2, size[1])
    cells = np.empty(most, np.int64)
    num = 0
    for k in range(len(ring)):
        num = _add_toggled(fine[k], fine[(k + 1) % len(ring)], size, (left, top), cells, num)
    return cells[:num]


@njit(cache=True, nogil=True)
def _add_toggled(start: Any, end: Any, size: Any, corner: Any, cells: Any, num: int) -> int:
    """Walk an edge on the fine grid; write the cells of the window that it toggles to cells[num:].

    Returns the number of cells then; an edge crosses a column once at most.
    """
    height, width = size
    left, top = corner
    across, down = abs(end[0] - start[0]), abs(end[1] - start[1])
    steps = max(across, down)
    # The walk is the same in both directions, as it always counts from the end that comes first along the longer axis.
    axis = 0 if across >= down else 1
    backwards = start[axis] > end[axis]
    first, last = (end, start) if backwards else (start, end)
    slope = (last[1 - axis] - first[1 - axis]) / steps if steps else 0.0
    before_x = before_y = 0
    for step in range(steps + 1):
        t = steps - step if backwards else step
        along, beside = first[axis] + t, int(first[1 - axis] + slope * t + 0.5)
        x, y = (along, beside) if axis == 0 else (beside, along)
        crossed = min(x, before_x)  # the fine column to the left of the line that was crossed
        if step and x != before_x and crossed % _FINE == _FINE // 2 and 0 <= crossed // _FINE - left < width:
            row = max(0, int(np.ceil((min(y, before_y) + 0.5) / _FINE - 0.5)) - top)
            if row < height:
                cells[num] = row * width + crossed // _FINE - left
                num += 1
        before_x, before_y = x, y
    return num


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
