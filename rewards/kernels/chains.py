"""How answers overlap a true mask, edge by edge, in Numba: the hot loop of every reward.

An outline is walked once and cut into chains: stretches in which y only grows or only falls, so that a chain crosses
each row at most once and its columns lie side by side in memory, written and read by vector instructions. Then, the
cheapest case first (see `overlap` in rewards/kernels/overlap.py):

1. A ring seen whole from its middle (each vertex passed in the same sense, once around) covers no pixel twice: every
   count is a signed sum over its chains, in any order.
2. Else rows are cut where chains begin or end (rewards/kernels/slabs.py). If the order of the chains holds all through
   such a slab, it is filled from chain to chain by non-zero winding, again row after row at once.
3. Else, and where coordinates are huge or not finite, or chains many, the general spans of envs/geometry/spans.py.

All three give the pixels of envs/geometry/spans.py, to the last one: a column is computed from the slope of its edge,
and where that lies within 1e-8 of a pixel centre, by the very formula of the raster rule.

Letters: A answers, H W pixels, L most spans in one row of the truth, M vertices, R rings.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.spans import crossing_column

_TAME_PX = 1e5
"""Coordinates up to here are handled in closed form: rounding stays far under _CLOSE."""
_CLOSE = 1e-8
LANES = 8
"""Columns written at once. What is written beyond the end of an edge is overwritten by the next, or read by nobody."""


class SpanTable(NamedTuple):
    """Spans of a mask by their place in the row, so that one place of many rows is read at once."""

    left: NDArray[np.float64]
    """[L, H] first column of the l-th span of row i; 0 where there is none."""
    right: NDArray[np.float64]
    """[L, H] column after its last; 0 where there is none."""
    rows: NDArray[np.int64]
    """[L, 2] first row that has an l-th span, and the row after the last."""


@njit(cache=True, nogil=True)
def span_table(spans: Any) -> Any:
    """The SpanTable of spans."""
    height = len(spans.starts) - 1
    most = 1  # one place at least, so that it need not be asked for
    for i in range(height):
        most = max(most, (spans.starts[i + 1] - spans.starts[i]) // 2)
    left, right = np.zeros((most, height)), np.zeros((most, height))
    rows = np.zeros((most, 2), np.int64)
    for i in range(height):
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            place = (k - spans.starts[i]) // 2
            left[place, i], right[place, i] = spans.bounds[k], spans.bounds[k + 1]
            if rows[place, 1] == 0:
                rows[place, 0] = i
            rows[place, 1] = i + 1
    return SpanTable(left, right, rows)


@njit(cache=True, nogil=True)
def edges(vertices: Any, ring_offsets: Any, height: int) -> Any:
    """The edge from each vertex to the next of its ring, all rings at once.

    Returns (rows [M, 2] int32, slopes [M] float64): the first row whose centre is at or below the vertex, and the same
    of the next vertex, clipped to 0..height; and dx / dy.
    """
    num = len(vertices)
    row, rows, slopes = np.empty(num, np.int32), np.empty((num, 2), np.int32), np.empty(num, np.float64)
    last = np.float64(height)
    for k in range(num):  # clipped before it is converted; NaN gives 0
        first = np.ceil(vertices[k, 1] - 0.5)
        first = first if first > 0.0 else 0.0
        row[k] = np.int32(first if first < last else last)
    for k in range(num - 1):
        rows[k, 0], rows[k, 1] = row[k], row[k + 1]
        dy = vertices[k + 1, 1] - vertices[k, 1]
        slopes[k] = (vertices[k + 1, 0] - vertices[k, 0]) / (dy if dy != 0.0 else 1.0)
    for r in range(len(ring_offsets) - 1):
        first_vertex, k = ring_offsets[r], ring_offsets[r + 1] - 1
        if k >= first_vertex:
            rows[k, 0], rows[k, 1] = row[k], row[first_vertex]
            dy = vertices[first_vertex, 1] - vertices[k, 1]
            slopes[k] = (vertices[first_vertex, 0] - vertices[k, 0]) / (dy if dy != 0.0 else 1.0)
    return rows, slopes


@njit(cache=True, nogil=True)
def tame(vertices: Any, first: int, end: int) -> bool:
    """Whether vertices first..end - 1 are small enough to be handled in closed form; False where one is not finite."""
    num = 0
    for k in range(first, end):
        num += (abs(vertices[k, 0]) <= _TAME_PX) & (abs(vertices[k, 1]) <= _TAME_PX)
    return num == end - first


@njit(cache=True, nogil=True)
def write_columns(columns: Any, place: int, num: int, x: float, slope: float, width: int) -> int:
    """Columns of `num` rows, rounded up to LANES, from x - 0.5 at the first; above 0 where one may be off by one."""
    doubtful, last, first = 0, np.float64(width), np.uintp(place)
    for i in range((num + LANES - 1) & ~(LANES - 1)):
        at = x + np.int32(i) * slope
        column = np.ceil(at + _CLOSE)
        doubtful |= column != np.ceil(at - _CLOSE)
        column = column if column > 0.0 else 0.0
        columns[first + np.uintp(i)] = column if column < last else last
    return doubtful


# One loop, since a call a chain, with as many arrays as this takes, costs more than the chain does.
@njit(cache=True, nogil=True)
def add_chains(
    vertices: Any,
    first: int,
    end: int,
    rows: Any,
    slopes: Any,
    width: int,
    columns: Any,
    chains: Any,
    num: int,
    place: int,
) -> Any:
    """Append the chains of the ring of vertices first..end - 1 to `chains`, and their columns from `place` on.

    A row of chains [., 4]: first row, end row, winding (1 where it runs up), place of its first column. Returns the
    number of chains and the place after the last column then.
    """
    k = first
    while k < end:
        if rows[k, 0] == rows[k, 1]:
            k += 1
            continue
        up, begin = rows[k, 1] < rows[k, 0], k
        k += 1
        while k < end and (rows[k, 0] == rows[k, 1] or (rows[k, 1] < rows[k, 0]) == up):
            k += 1
        top, bottom = (rows[k - 1, 1], rows[begin, 0]) if up else (rows[begin, 0], rows[k - 1, 1])
        chains[num, 0], chains[num, 1], chains[num, 2], chains[num, 3] = top, bottom, 1 if up else -1, place
        num += 1
        for j in range(begin, k):
            n = begin + k - 1 - j if up else j  # downwards in both cases
            after = n + 1 if n + 1 < end else first
            upper, lower, row, rows_end = (
                (after, n, rows[n, 1], rows[n, 0]) if up else (n, after, rows[n, 0], rows[n, 1])
            )
            if row == rows_end:
                continue
            x0, y0, slope = vertices[upper, 0], vertices[upper, 1], slopes[n]
            count = int(rows_end - row)
            if write_columns(columns, place, count, x0 - 0.5 + (row + 0.5 - y0) * slope, slope, width):
                for i in range(count):
                    columns[place + i] = crossing_column(x0, y0, vertices[lower, 0], vertices[lower, 1], row + i, width)
            place += count
    return num, place


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def seen_whole(vertices: Any, first: int, end: int) -> bool:
    """Whether the ring runs once around the mean of its vertices, always in one sense; then it never crosses itself."""
    middle_x = middle_y = 0.0
    for k in range(first, end):
        middle_x += vertices[k, 0]
        middle_y += vertices[k, 1]
    middle_x, middle_y = middle_x / (end - first), middle_y / (end - first)
    right = left = around = 0
    x0, y0 = vertices[end - 1, 0] - middle_x, vertices[end - 1, 1] - middle_y
    for k in range(first, end):
        x1, y1 = vertices[k, 0] - middle_x, vertices[k, 1] - middle_y
        cross = x0 * y1 - x1 * y0
        right += cross > 1e-6
        left += cross < -1e-6
        around += (y0 < 0.0) & (y1 >= 0.0)
        x0, y0 = x1, y1
    return around == 1 and (right == end - first or left == end - first)


# Sums of whole numbers under 2**53 are exact in float64 in any order, so the compiler may reorder them.
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _row_sums(columns: Any, place: int, num: int, left: Any, right: Any, n: int, top: int) -> Any:
    """(true pixels left of the columns, sums of c, c^2, c * (2i + 1)) over the columns c of `num` rows i from `top`."""
    true = area = squares = products = 0.0
    first, start, row, m = np.float64(2 * top + 1), np.uintp(place), np.uintp(top), np.uintp(n)
    for i in range(num):
        k = np.uintp(i)
        column, a = columns[start + k], left[m, row + k]
        true += min(max(column, a), right[m, row + k]) - a
        area += column
        squares += column * column
        products += column * (first + 2.0 * np.float64(np.int32(i)))
    return true, area, squares, products


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def left_of(columns: Any, place: int, num: int, left: Any, right: Any, n: int, top: int) -> float:
    """Pixels of the n-th spans that lie left of the columns, over `num` rows from `top` on."""
    total, start, row, m = 0.0, np.uintp(place), np.uintp(top), np.uintp(n)
    for i in range(num):
        k = np.uintp(i)
        a = left[m, row + k]
        total += min(max(columns[start + k], a), right[m, row + k]) - a
    return total


@njit(cache=True, nogil=True)
def add_sums(sums: Any, sign: int, columns: Any, place: int, top: int, bottom: int, table: Any) -> None:
    """Add `sign` times what lies left of one chain's columns to sums [4]."""
    true, area, squares, products = _row_sums(columns, place, bottom - top, table.left, table.right, 0, top)
    for n in range(1, len(table.rows)):
        first, end = max(top, table.rows[n, 0]), min(bottom, table.rows[n, 1])
        if first < end:
            true += left_of(columns, place + first - top, end - first, table.left, table.right, n, first)
    sums[0] += sign * np.int64(true)
    sums[1] += sign * np.int64(area)
    sums[2] += sign * np.int64(squares)
    sums[3] += sign * np.int64(products)


@njit(cache=True, nogil=True)
def sum_chains(sums: Any, chains: Any, num: int, columns: Any, table: Any) -> None:
    """Add up a ring that covers no pixel twice."""
    for c in range(num):
        add_sums(sums, chains[c, 2], columns, chains[c, 3], chains[c, 0], chains[c, 1], table)
    if sums[1] < 0:
        for k in range(4):
            sums[k] = -sums[k]
