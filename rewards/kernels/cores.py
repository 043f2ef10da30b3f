"""Masks without their boundary band, from their spans, in Numba: what Boundary IoU asks of every answer of a benchmark.

An erosion by a square of 2 d + 1 pixels: rows are narrowed by `d` at both ends of every span; then a row of the core is
what all rows of its window share. Nothing is turned, so a row costs as many steps as it has spans.

Letters: N rows; `d` the width of the band in pixels.
"""

from typing import Any

import numpy as np
from numba import njit

from envs.geometry.spans import Spans


@njit(cache=True, nogil=True)
def _rows_used(spans: Any) -> Any:
    """(first, end) of the rows from the first to the last with a pixel; (0, 0) without one."""
    first, end = 0, len(spans.starts) - 1
    while end > 0 and spans.starts[end - 1] == spans.starts[end]:
        end -= 1
    while first < end and spans.starts[first + 1] == 0:
        first += 1
    return first, end


@njit(cache=True, nogil=True)
def _reach(values: Any, num_values: int, step: int) -> int:
    """Raise each value to the one `step` further on, where there is one; how many there are of these."""
    for k in range(num_values - step):
        values[k] = max(values[k], values[k + step])
    return num_values - step


@njit(cache=True, nogil=True)
def _core_of_single(spans: Any, top: int, bottom: int, d: int) -> Any:
    """`core` of a mask with one span or none in every row: the largest left and the smallest right bound of the rows of
    a window bound its core. Found by doubling, in loops that a processor does many values at a time."""
    lefts, rights = np.full(bottom - top, 1 << 30, np.int32), np.zeros(bottom - top, np.int32)
    for i in range(top, bottom):
        if spans.starts[i] < spans.starts[i + 1]:
            lefts[i - top], rights[i - top] = spans.bounds[spans.starts[i]], -spans.bounds[spans.starts[i] + 1]
    num_rows, done = bottom - top, 1
    while done < 2 * d + 1:
        step = min(done, 2 * d + 1 - done)
        _reach(lefts, num_rows, step)
        num_rows = _reach(rights, num_rows, step)
        done += step
    starts, bounds, num, area = np.zeros(len(spans.starts), np.int64), np.empty(2 * num_rows + 2, np.int32), 0, 0
    inside = starts[top + d + 1 :]
    for k in range(num_rows):
        left, right = lefts[k] + d, -rights[k] - d
        bounds[num], bounds[num + 1] = left, right
        num, area = num + 2 * (left < right), area + max(0, right - left)
        inside[k] = num
    inside[num_rows:] = num
    return Spans(starts, bounds[:num]), area


@njit(cache=True, nogil=True)
def _narrowed(spans: Any, top: int, bottom: int, d: int) -> Any:
    """Rows top..bottom - 1 of a mask, their spans shortened by `d` columns at both ends."""
    starts, bounds, num = np.zeros(bottom - top + 1, np.int64), np.empty(len(spans.bounds), np.int32), 0
    for i in range(top, bottom):
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            bounds[num], bounds[num + 1] = spans.bounds[k] + d, spans.bounds[k + 1] - d
            num += 2 * (bounds[num] < bounds[num + 1])
        starts[i - top + 1] = num
    return Spans(starts, bounds)


@njit(cache=True, nogil=True)
def _meet(a: Any, k: int, k_end: int, b: Any, n: int, n_end: int, shared: Any, num: int) -> int:  # noqa: PLR0913  # flat
    """Write what bounds k..k_end - 1 of `a` and n..n_end - 1 of `b` share to `shared`, from `num` on; the new `num`."""
    while k < k_end and n < n_end:
        end, other_end = a[k + 1], b[n + 1]
        shared[num], shared[num + 1] = max(a[k], b[n]), min(end, other_end)
        num += 2 * (shared[num] < shared[num + 1])
        a_is_done = end <= other_end
        k, n = k + 2 * a_is_done, n + 2 * (not a_is_done)
    return num


@njit(cache=True, nogil=True)
def _larger(bounds: Any, num: int) -> Any:
    """A copy of `bounds`, with room for twice `num` bounds."""
    larger = np.empty(2 * num, np.int32)
    larger[: len(bounds)] = bounds
    return larger


@njit(cache=True, nogil=True)
def _met(rows: Any, block: int, step: int) -> Any:
    """(starts [N], ends [N], bounds) of what each of N rows shares with all rows of its block before it (`step` 1) or
    after it (`step` -1)."""
    num_rows, num = len(rows.starts) - 1, 0
    starts, ends = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
    bounds = np.empty(2 * rows.starts[num_rows] + 2, np.int32)
    first_of_block, i = 0 if step == 1 else block - 1, 0 if step == 1 else num_rows - 1
    for m in range(num_rows):
        first, end = rows.starts[i], rows.starts[i + 1]
        alone = m == 0 or i % block == first_of_block
        before, before_end = (0, 0) if alone else (starts[i - step], ends[i - step])
        if num + end - first + before_end - before + 2 > len(bounds):
            bounds = _larger(bounds, num + end - first + before_end - before + 2)
        starts[i] = num
        if alone:
            for k in range(first, end):
                bounds[num + k - first] = rows.bounds[k]
            num += end - first
        else:
            num = _meet(rows.bounds, first, end, bounds, before, before_end, bounds, num)
        ends[i] = num
        i += step
    return starts, ends, bounds


@njit(cache=True, nogil=True)
def core(spans: Any, d: int) -> Any:
    """(spans, pixels) of the mask without its boundary band, as `eroded` of rewards/kernels/bands.py, but sooner.

    Rows are narrowed by `d`; then each of the core is what all rows of its window share: those of the window in one
    block of 2 d + 1 rows, and those in the next (van Herk 1992).
    """
    top, bottom = _rows_used(spans)
    starts, num, area, single = np.zeros(len(spans.starts), np.int64), 0, 0, True
    if bottom - top <= 2 * d:
        return Spans(starts, np.zeros(0, np.int32)), area
    for i in range(top, bottom):
        single &= spans.starts[i + 1] - spans.starts[i] <= 2
    if single:
        return _core_of_single(spans, top, bottom, d)
    rows = _narrowed(spans, top, bottom, d)
    first, first_end, above = _met(rows, 2 * d + 1, -1)
    second, second_end, below = _met(rows, 2 * d + 1, 1)
    bounds = np.empty(len(above) + len(below), np.int32)
    for k in range(bottom - top - 2 * d):
        n, before = k + 2 * d, num
        num = _meet(above, first[k], first_end[k], below, second[n], second_end[n], bounds, num)
        for m in range(before, num, 2):
            area += bounds[m + 1] - bounds[m]
        starts[top + d + k + 1] = num
    starts[bottom - d + 1 :] = num
    return Spans(starts, bounds[:num]), area
