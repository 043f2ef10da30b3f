"""Masks and rings under the raster rule of envs/spans.py, in Numba: filling, tracing along pixel edges, simplification.

One set of kernels serves data, rewards, evaluation, archive and refiner. Rings are flat: vertices [N, 2] float64
(x, y) px and offsets [R + 1] int64 (see envs/polygons.py).
"""

import heapq
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.spans import mask_from_spans, spans_from_rings

RASTER_VERSION = 1
"""Raised whenever the same rings may give other pixels; archived with every answer."""

# Steps from one lattice point to the next, by direction: right, down, left, up.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])


def fill(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of the rings, filled together by non-zero winding at pixel centres."""
    spans = spans_from_rings(np.ascontiguousarray(vertices, np.float64), offsets, height, width)
    return mask_from_spans(spans, height, width)


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
