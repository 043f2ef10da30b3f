"""What each vertex of an answer is worth, in Numba: its overlap with a true mask when that vertex is left out.

Without vertex v, the edges to and from it give way to a chord between its neighbours.

1. A ring seen whole from its middle (rewards/kernels/chains.py) is a signed sum over its edges, and stays one wherever
   the chord is passed in the same sense, too: its sums less those of two edges and with those of the chord.
2. Else pixels change in the rows of that triangle alone. The crossings of all rows are found once, and for each vertex
   only its rows are filled again, by the raster rule of envs/geometry/spans.py, whatever the outline crosses. Where
   vertices are few, each outline is filled by itself instead.

So all vertices of an outline cost a few times as much as the outline itself, however many they are.

Dimension letters: A answers, R rings of all answers, M vertices of all rings, H W pixels, E edges of an answer.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.spans import clipped_ceil, crossing_column
from rewards.kernels.chains import LANES, left_of, seen_whole, tame, write_columns
from rewards.kernels.overlap import overlap


class _Edge(NamedTuple):
    """An edge that runs down, and the rows whose centre lines it crosses."""

    x0: float
    y0: float
    x1: float
    y1: float
    up: int
    """1 where it ran up before it was turned round."""
    top: int
    bottom: int


class _Crossings(NamedTuple):
    """Crossings of the rows of an answer, by row, from left to right."""

    starts: NDArray[np.int64]
    """[H + 1] row i has the crossings starts[i]..starts[i + 1] - 1."""
    where: NDArray[np.int32]
    """Twice the column of each, plus 1 where its edge ran up."""
    edges: NDArray[np.int32]
    """Which edge of the answer each belongs to."""


@njit(cache=True, nogil=True)
def _edge(vertices: Any, k: int, n: int, height: int) -> Any:
    """The edge from vertex k to n; it crosses no row where an end is not finite."""
    x0, y0, x1, y1 = vertices[k, 0], vertices[k, 1], vertices[n, 0], vertices[n, 1]
    if not (np.isfinite(x0) and np.isfinite(y0) and np.isfinite(x1) and np.isfinite(y1)):
        return _Edge(x0, y0, x1, y1, 0, 0, 0)
    if y1 < y0:
        return _Edge(x1, y1, x0, y0, 1, clipped_ceil(y1 - 0.5, height), clipped_ceil(y0 - 0.5, height))
    return _Edge(x0, y0, x1, y1, 0, clipped_ceil(y0 - 0.5, height), clipped_ceil(y1 - 0.5, height))


@njit(cache=True, nogil=True)
def _crossing(edge: Any, row: int, width: int) -> int:
    return 2 * crossing_column(edge.x0, edge.y0, edge.x1, edge.y1, row, width) + edge.up


@njit(cache=True, nogil=True)
def _neighbours(offsets: Any, r: int, v: int) -> Any:
    """(before, after) of vertex v of ring r."""
    first, end = offsets[r], offsets[r + 1]
    return (v if v > first else end) - 1, v + 1 if v + 1 < end else first


@njit(cache=True, nogil=True)
def _all_crossings(vertices: Any, offsets: Any, height: int, width: int) -> Any:
    """Crossings of the rings that offsets [R + 1] bound; an edge is known by the vertex that it leaves, counted from
    the first of them."""
    starts, base = np.zeros(height + 1, np.int64), offsets[0]
    for r in range(len(offsets) - 1):
        for v in range(offsets[r], offsets[r + 1]):
            edge = _edge(vertices, v, _neighbours(offsets, r, v)[1], height)
            for i in range(edge.top, edge.bottom):
                starts[i + 1] += 1
    starts = np.cumsum(starts)
    filled = starts[:height].copy()
    where, edges = np.empty(starts[height], np.int32), np.empty(starts[height], np.int32)
    for r in range(len(offsets) - 1):
        for v in range(offsets[r], offsets[r + 1]):
            edge = _edge(vertices, v, _neighbours(offsets, r, v)[1], height)
            for i in range(edge.top, edge.bottom):
                crossing, k = _crossing(edge, i, width), filled[i]
                while k > starts[i] and where[k - 1] > crossing:
                    where[k], edges[k] = where[k - 1], edges[k - 1]
                    k -= 1
                where[k], edges[k] = crossing, v - base
                filled[i] += 1
    return _Crossings(starts, where, edges)


@njit(cache=True, nogil=True)
def _shared_in(spans: Any, i: int, first: int, end: int) -> int:
    """Pixels of columns first..end - 1 of row i that belong to spans."""
    shared = 0
    for k in range(spans.starts[i], spans.starts[i + 1], 2):
        if spans.bounds[k] >= end:
            break
        shared += max(0, min(end, spans.bounds[k + 1]) - max(first, spans.bounds[k]))
    return shared


@njit(cache=True, nogil=True)
def _row(where: Any, num: int, i: int, truth: Any, ignore: Any) -> Any:
    """(true pixels, pixels) that the sorted crossings where[:num] fill in row i, ignored ones left out."""
    shared = area = winding = opened = 0
    for k in range(num):
        before, column = winding, where[k] >> 1
        winding += 1 if where[k] & 1 else -1
        if before == 0 and k < num - 1:
            opened = column
        elif before != 0 and (winding == 0 or k == num - 1) and column > opened:
            shared += _shared_in(truth, i, opened, column)
            area += column - opened - _shared_in(ignore, i, opened, column)
    return shared, area


@njit(cache=True, nogil=True)
def _without(crossings: Any, i: int, to: int, away: int, chord: Any, scratch: Any) -> int:
    """Write the crossings of row i without the edges `to` and `away`, but with the chord (-1: it has none here); how
    many they are."""
    num, inserted = 0, chord < 0
    for k in range(crossings.starts[i], crossings.starts[i + 1]):
        if crossings.edges[k] != to and crossings.edges[k] != away:
            if not inserted and chord < crossings.where[k]:
                scratch[num] = chord
                num, inserted = num + 1, True
            scratch[num] = crossings.where[k]
            num += 1
    if not inserted:
        scratch[num] = chord
        num += 1
    return num


@njit(cache=True, nogil=True)
def _edge_sums(vertices: Any, k: int, n: int, table: Any, width: int, columns: Any) -> Any:
    """(true pixels, pixels) left of the edge from vertex k to n, in the rows that it crosses; negative where it runs
    down. columns: scratch of a row's length and LANES more."""
    edge = _edge(vertices, k, n, table.left.shape[1])
    num = edge.bottom - edge.top
    if num <= 0:
        return np.int64(0), np.int64(0)
    slope = (edge.x1 - edge.x0) / (edge.y1 - edge.y0)
    if write_columns(columns, 0, num, edge.x0 - 0.5 + (edge.top + 0.5 - edge.y0) * slope, slope, width):
        for i in range(num):
            columns[i] = crossing_column(edge.x0, edge.y0, edge.x1, edge.y1, edge.top + i, width)
    true = area = 0.0
    for i in range(num):
        area += columns[i]
    for n_th in range(len(table.rows)):
        first, end = max(edge.top, table.rows[n_th, 0]), min(edge.bottom, table.rows[n_th, 1])
        if first < end:
            true += left_of(columns, first - edge.top, end - first, table.left, table.right, n_th, first)
    sign = 1 if edge.up else -1
    return sign * np.int64(true), sign * np.int64(area)


@njit(cache=True, nogil=True)
def _as_seen_whole(sums: Any, vertices: Any, ends: Any, table: Any, width: int, left_over: Any) -> int:
    """Fill sums [M, 2] of the ring of vertices ends[0]..ends[1] - 1, which is seen whole from its middle; how many are
    left over, which are written to left_over [M]: without one of them the ring may not be seen whole."""
    first, end = ends[0], ends[1]
    columns = np.empty(table.left.shape[1] + LANES, np.float64)
    x, y = vertices[first:end, 0].mean(), vertices[first:end, 1].mean()
    of_edges = np.empty((end - first, 2), np.int64)
    whole, num = np.zeros(2, np.int64), 0
    around = 0.0
    for v in range(first, end):
        after = v + 1 if v + 1 < end else first
        of_edges[v - first, 0], of_edges[v - first, 1] = _edge_sums(vertices, v, after, table, width, columns)
        whole += of_edges[v - first]
        around += (vertices[v, 0] - x) * (vertices[after, 1] - y) - (vertices[after, 0] - x) * (vertices[v, 1] - y)
    for v in range(first, end):
        before, after = (v if v > first else end) - 1, v + 1 if v + 1 < end else first
        dx, dy = vertices[before, 0] - x, vertices[before, 1] - y
        cross = dx * (vertices[after, 1] - y) - (vertices[after, 0] - x) * dy
        if (cross > 1e-6) if around > 0 else (cross < -1e-6):
            shared, area = _edge_sums(vertices, before, after, table, width, columns)
            sign = 1 if around < 0 else -1
            sums[v, 0] = sign * (whole[0] - of_edges[before - first, 0] - of_edges[v - first, 0] + shared)
            sums[v, 1] = sign * (whole[1] - of_edges[before - first, 1] - of_edges[v - first, 1] + area)
        else:
            left_over[num] = v
            num += 1
    return num


@njit(cache=True, nogil=True)
def _row_by_row(  # noqa: PLR0913  # flat, as kernels are
    sums: Any, vertices: Any, offsets: Any, wanted: Any, truth: Any, ignore: Any, width: int
) -> None:
    """Fill sums [M, 2] of the wanted vertices (sorted) of one answer, whose rings offsets [R + 1] bound."""
    height, base = len(truth.starts) - 1, offsets[0]
    crossings = _all_crossings(vertices, offsets, height, width)
    rows, whole = np.zeros((height, 2), np.int64), np.zeros(2, np.int64)
    for i in range(height):
        first, end = crossings.starts[i], crossings.starts[i + 1]
        if first < end:
            rows[i, 0], rows[i, 1] = _row(crossings.where[first:end], end - first, i, truth, ignore)
            whole += rows[i]
    scratch, r = np.empty(offsets[-1] - base + 1, np.int32), 0
    for v in wanted:
        while v >= offsets[r + 1]:
            r += 1
        before, after = _neighbours(offsets, r, v)
        to, away = _edge(vertices, before, v, height), _edge(vertices, v, after, height)
        chord = _edge(vertices, before, after, height)
        sums[v] = whole
        for i in range(min(to.top, away.top, chord.top), max(to.bottom, away.bottom, chord.bottom)):
            crossing = _crossing(chord, i, width) if chord.top <= i < chord.bottom else -1
            num = _without(crossings, i, before - base, v - base, crossing, scratch)
            shared, area = _row(scratch, num, i, truth, ignore)
            sums[v, 0] += shared - rows[i, 0]
            sums[v, 1] += area - rows[i, 1]


@njit(cache=True, nogil=True)
def _one_by_one(  # noqa: PLR0913  # flat
    sums: Any, vertices: Any, offsets: Any, wanted: Any, truth: Any, table: Any, width: int
) -> None:
    """Fill sums [M, 2] of the wanted vertices (sorted) of one answer by the overlap of each outline without one."""
    base, num = offsets[0], offsets[-1] - offsets[0] - 1
    rest, rings, r = np.empty((num, 2), np.float64), offsets - base, 0
    for v in wanted:
        while v >= offsets[r + 1]:
            r += 1
        rest[: v - base], rest[v - base :] = vertices[base:v], vertices[v + 1 : offsets[-1]]
        fewer = rings.copy()
        fewer[r + 1 :] -= 1
        sums[v] = overlap(rest, fewer, np.array([0, len(rings) - 1]), truth, table, width)[0, :2]


@njit(cache=True, nogil=True)
def _better_one_by_one(num_wanted: int, num: int, rows: int) -> bool:
    """Whether `num_wanted` outlines of `num` vertices, so many rows high, are sooner done than their rows; by times of
    `polytrace bench vertices`, in microseconds."""
    return num_wanted * (0.7 + 0.012 * num + 0.003 * rows) < 30.0 + 0.75 * rows


@njit(cache=True, nogil=True)
def left_out(  # noqa: PLR0913  # flat
    vertices: Any, ring_offsets: Any, answer_offsets: Any, truth: Any, table: Any, ignore: Any, width: int
) -> Any:
    """Pixels of each answer without one of its vertices, and those of them that are true, for every vertex.

    Arguments as those of `overlap` of rewards/kernels/overlap.py, the answers flat; ignore: Spans of the pixels that
    count neither way, already out of truth. Returns [M, 2] int64: true pixels and pixels without vertex m.
    """
    sums = np.zeros((len(vertices), 2), np.int64)
    for a in range(len(answer_offsets) - 1):
        offsets = ring_offsets[answer_offsets[a] : answer_offsets[a + 1] + 1]
        first, end = offsets[0], offsets[-1]
        if first == end:
            continue
        wanted, num = np.arange(first, end), end - first
        single = len(offsets) == 2 and len(ignore.bounds) == 0
        if single and tame(vertices, first, end) and seen_whole(vertices, first, end):
            num = _as_seen_whole(sums, vertices, offsets, table, width, wanted)
        if not num:
            continue
        rows = min(len(truth.starts), vertices[first:end, 1].max() - vertices[first:end, 1].min())
        if len(ignore.bounds) == 0 and _better_one_by_one(num, end - first, rows):
            _one_by_one(sums, vertices, offsets, wanted[:num], truth, table, width)
        else:
            _row_by_row(sums, vertices, offsets, wanted[:num], truth, ignore, width)
    return sums
