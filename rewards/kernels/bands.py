"""Spans of shapes combined: shared, without, eroded. Boundary bands come of it, at the cost of the outline, in Numba.

An erosion by a square is two shrinkings: of the spans of every row, then, transposed, of the spans of every column. So
the band along a boundary is found without a bitmap, whatever its width.

Letters: H W pixels; `d` the width of a band in pixels.
"""

from typing import Any

import numpy as np
from numba import njit

from envs.geometry.spans import Spans, transposed


@njit(cache=True, nogil=True)
def shared_pixels(a: Any, b: Any) -> int:
    """Pixels that two masks of the same height share, from their spans."""
    total = 0
    for i in range(len(a.starts) - 1):
        n, n_end = b.starts[i], b.starts[i + 1]
        for k in range(a.starts[i], a.starts[i + 1], 2):
            first, end = a.bounds[k], a.bounds[k + 1]
            while n < n_end and b.bounds[n + 1] <= first:
                n += 2
            m = n
            while m < n_end and b.bounds[m] < end:
                total += min(end, b.bounds[m + 1]) - max(first, b.bounds[m])
                m += 2
    return total


@njit(cache=True, nogil=True)
def span_sums(spans: Any) -> Any:
    """(pixels, twice the sum of x, twice the sum of y) of the pixel centres of spans."""
    area = twice_x = twice_y = np.int64(0)
    for i in range(len(spans.starts) - 1):
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            first, end = np.int64(spans.bounds[k]), np.int64(spans.bounds[k + 1])
            area += end - first
            twice_x += (end + first) * (end - first)
            twice_y += (end - first) * (2 * i + 1)
    return area, twice_x, twice_y


@njit(cache=True, nogil=True)
def without(a: Any, b: Any) -> Any:
    """Spans of the pixels of `a` that are not in `b`, masks of the same height."""
    starts = np.zeros(len(a.starts), np.int64)
    bounds = np.empty(len(a.bounds) + len(b.bounds), np.int32)
    num = 0
    for i in range(len(a.starts) - 1):
        n, n_end = b.starts[i], b.starts[i + 1]
        for k in range(a.starts[i], a.starts[i + 1], 2):
            first, end = a.bounds[k], a.bounds[k + 1]
            while n < n_end and b.bounds[n + 1] <= first:
                n += 2
            m = n
            while first < end:
                stop = min(end, b.bounds[m]) if m < n_end else end
                if first < stop:
                    bounds[num], bounds[num + 1] = first, stop
                    num += 2
                first = b.bounds[m + 1] if m < n_end else end
                m += 2
        starts[i + 1] = num
    return Spans(starts, bounds[:num].copy())


@njit(cache=True, nogil=True)
def united(a: Any, b: Any) -> Any:
    """Spans of the pixels of `a` or `b`, masks of the same height."""
    starts = np.zeros(len(a.starts), np.int64)
    bounds = np.empty(len(a.bounds) + len(b.bounds), np.int32)
    num = 0
    for i in range(len(a.starts) - 1):
        k, n, first = a.starts[i], b.starts[i], num
        while k < a.starts[i + 1] or n < b.starts[i + 1]:
            from_a = n == b.starts[i + 1] or (k < a.starts[i + 1] and a.bounds[k] <= b.bounds[n])
            left, right = (a.bounds[k], a.bounds[k + 1]) if from_a else (b.bounds[n], b.bounds[n + 1])
            k, n = (k + 2, n) if from_a else (k, n + 2)
            if num > first and left <= bounds[num - 1]:
                bounds[num - 1] = max(bounds[num - 1], right)
            else:
                bounds[num], bounds[num + 1] = left, right
                num += 2
        starts[i + 1] = num
    return Spans(starts, bounds[:num].copy())


@njit(cache=True, nogil=True)
def _shrunk(spans: Any, d: int) -> Any:
    """Spans shortened by `d` columns at both ends."""
    starts, bounds, num = np.zeros(len(spans.starts), np.int64), np.empty(len(spans.bounds), np.int32), 0
    for i in range(len(spans.starts) - 1):
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            first, end = spans.bounds[k] + d, spans.bounds[k + 1] - d
            if first < end:
                bounds[num], bounds[num + 1] = first, end
                num += 2
        starts[i + 1] = num
    return Spans(starts, bounds[:num].copy())


@njit(cache=True, nogil=True)
def eroded(spans: Any, width: int, d: int) -> Any:
    """Spans of the pixels whose (2 d + 1)^2 window lies inside the mask; a window never leaves the image.

    It is what `d` erosions by a 3 x 3 square leave, with nothing outside of the image.
    """
    height = len(spans.starts) - 1
    columns = transposed(_shrunk(spans, d), width)
    return transposed(_shrunk(columns, d), height)


@njit(cache=True, nogil=True)
def band_overlap(a: Any, a_core: Any, b: Any, b_core: Any) -> Any:
    """(shared, united) pixels of the bands of two masks: of each mask without its core, which lies inside of it."""
    shared = shared_pixels(a, b) - shared_pixels(a_core, b) - shared_pixels(a, b_core) + shared_pixels(a_core, b_core)
    band_a, band_b = span_sums(a)[0] - span_sums(a_core)[0], span_sums(b)[0] - span_sums(b_core)[0]
    return shared, band_a + band_b - shared
