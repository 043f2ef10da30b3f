"""Overlap, boundary and shape of answers, in Numba: flat arrays in, numbers out, a whole group at once.

Usable alone. Rings are flat, see `overlap`; answers are filled by non-zero winding at pixel centres
(envs/geometry/spans.py).

- intersection, area, centroid, so IoU: `overlap`, the hot loop, explained in rewards/kernels/chains.py
- the same where some pixels count neither way: `counted_overlap`
- Boundary IoU: `boundary_overlap`, and `boundary_iou` of two masks
- tight box, a pixel inside, second moments: `shapes`
- crossings of an outline with itself: `self_crossings`
- a bitmap: `fill` of envs/geometry/raster.py; COCO's run-length code, without a bitmap: `rle_from_rings` of
  envs/geometry/rle.py

Dimension letters: A answers, R rings of all answers, M vertices of all rings, H W pixels.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.raster import fill, importance, trace
from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.geometry.spans import mask_from_spans, spans_from_mask, spans_from_rings
from rewards.kernels.bands import band_overlap, eroded, shared_pixels, span_sums, united, without
from rewards.kernels.chains import LANES, add_chains, edges, seen_whole, span_table, sum_chains, tame
from rewards.kernels.slabs import MAX_SLAB_CHAINS, sum_slabs

BOUNDARY_SHARE = 0.02
"""Width of the boundary band as a share of the image diagonal (Cheng et al. 2021, arXiv 2103.16562)."""


@njit(cache=True, nogil=True)
def _sum_spans(sums: Any, vertices: Any, offsets: Any, truth: Any, width: int) -> None:
    drawn = spans_from_rings(vertices, offsets, len(truth.starts) - 1, width)
    sums[1], sums[2], sums[3] = span_sums(drawn)
    sums[0] = shared_pixels(drawn, truth)


@njit(cache=True, nogil=True)
def overlap(vertices: Any, ring_offsets: Any, answer_offsets: Any, truth: Any, table: Any, width: int) -> Any:
    """Pixels of each answer, and those that it shares with a true mask, for a whole group at once.

    vertices: [M, 2] float64 (x, y) px of all rings, one after the other; each answer is filled by non-zero winding.
    ring_offsets: [R + 1] int64; ring r is vertices[ring_offsets[r]:ring_offsets[r + 1]].
    answer_offsets: [A + 1] int64; answer a has the rings answer_offsets[a]..answer_offsets[a + 1] - 1.
    truth, table: Spans and SpanTable of the true mask, of up to 32,767 pixels a side and `width` columns.
    Returns [A, 4] int64: true pixels, pixels, and twice the sums of x and of y of the pixel centres.
    """
    height = len(truth.starts) - 1
    rows, slopes = edges(vertices, ring_offsets, height)
    num_columns = np.abs(rows[:, 1] - rows[:, 0]).sum() + LANES
    columns, chains = np.empty(num_columns, np.float64), np.empty((len(rows), 4), np.int64)
    scratch = np.empty((3, 2 * MAX_SLAB_CHAINS), np.int64)
    sums = np.zeros((len(answer_offsets) - 1, 4), np.int64)
    for a in range(len(sums)):
        first_ring, end_ring = answer_offsets[a], answer_offsets[a + 1]
        first, end = ring_offsets[first_ring], ring_offsets[end_ring]
        done, num, place = first == end, 0, 0
        if not done and tame(vertices, first, end):
            for r in range(first_ring, end_ring):
                num, place = add_chains(
                    vertices, ring_offsets[r], ring_offsets[r + 1], rows, slopes, width, columns, chains, num, place
                )
            if end_ring - first_ring == 1 and seen_whole(vertices, first, end):
                sum_chains(sums[a], chains, num, columns, table)
                done = True
            elif num <= MAX_SLAB_CHAINS:
                done = sum_slabs(sums[a], chains, num, columns, table, scratch)
        if not done:
            _sum_spans(sums[a], vertices, ring_offsets[first_ring : end_ring + 1], truth, width)
    return sums


@njit(cache=True, nogil=True)
def ratios(sums: Any, true_px: int) -> Any:
    """What the sums [A, 4] of `overlap` with a true mask of `true_px` pixels come to.

    Returns (intersection [A] int64 px, area [A] int64 px, IoU [A] float64, 1 where neither has a pixel, and centroid
    [A, 2] float64 (x, y) px, NaN without a pixel).
    """
    iou, centroid = np.ones(len(sums)), np.full((len(sums), 2), np.nan)
    for a in range(len(sums)):
        either = sums[a, 1] + true_px - sums[a, 0]
        if either > 0:
            iou[a] = sums[a, 0] / either
        if sums[a, 1] > 0:
            centroid[a] = sums[a, 2] / 2 / sums[a, 1], sums[a, 3] / 2 / sums[a, 1]
    return sums[:, 0].copy(), sums[:, 1].copy(), iou, centroid


@njit(cache=True, nogil=True)
def counted_overlap(vertices: Any, ring_offsets: Any, answer_offsets: Any, truth: Any, ignore: Any, width: int) -> Any:
    """Counts of `overlap` over the pixels that are not in `ignore`, Spans of the same height."""
    height = len(truth.starts) - 1
    sums = np.zeros((len(answer_offsets) - 1, 4), np.int64)
    for a in range(len(sums)):
        offsets = ring_offsets[answer_offsets[a] : answer_offsets[a + 1] + 1]
        drawn = without(spans_from_rings(vertices, offsets, height, width), ignore)
        sums[a, 1], sums[a, 2], sums[a, 3] = span_sums(drawn)
        sums[a, 0] = shared_pixels(drawn, truth)
    return sums


@njit(cache=True, nogil=True)
def boundary_overlap(
    vertices: Any, ring_offsets: Any, answer_offsets: Any, truth: Any, core: Any, ignore: Any, width: int, band_px: int
) -> Any:
    """(shared, united) pixels [A, 2] int64 of the boundary bands of each answer and of a true mask.

    core: the true Spans `truth`, eroded by band_px. ignore: Spans of pixels that are taken out of every answer first.
    """
    height = len(truth.starts) - 1
    counts = np.zeros((len(answer_offsets) - 1, 2), np.int64)
    for a in range(len(counts)):
        offsets = ring_offsets[answer_offsets[a] : answer_offsets[a + 1] + 1]
        drawn = without(spans_from_rings(vertices, offsets, height, width), ignore)
        counts[a, 0], counts[a, 1] = band_overlap(drawn, eroded(drawn, width, band_px), truth, core)
    return counts


@njit(cache=True, nogil=True)
def _second_moments(spans: Any, area: int, x: float, y: float) -> Any:
    """(xx, xy, yy): mean squares and product of the distances of the pixel centres from (x, y)."""
    xx = xy = yy = 0.0
    for i in range(len(spans.starts) - 1):
        down = i + 0.5 - y
        for k in range(spans.starts[i], spans.starts[i + 1], 2):
            num = float(spans.bounds[k + 1] - spans.bounds[k])
            right = (spans.bounds[k] + spans.bounds[k + 1]) / 2 - x
            xx += num * right * right + num * (num * num - 1) / 12
            xy += num * right * down
            yy += num * down * down
    return xx / area, xy / area, yy / area


@njit(cache=True, nogil=True)
def shapes(vertices: Any, ring_offsets: Any, answer_offsets: Any, ignore: Any, width: int) -> Any:
    """What the pixels of each answer look like, those of the Spans `ignore` left out: [A, 9] float64, NaN without any.

    x0, y0, x1, y1: tight box, px. x, y: a pixel centre inside, the middle of the longest run of pixels in a row, the
    topmost, then leftmost of equals. xx, xy, yy: mean squares and product of the distances from the centroid, px^2.
    """
    height = len(ignore.starts) - 1
    found = np.full((len(answer_offsets) - 1, 9), np.nan)
    for a in range(len(found)):
        offsets = ring_offsets[answer_offsets[a] : answer_offsets[a + 1] + 1]
        drawn = without(spans_from_rings(vertices, offsets, height, width), ignore)
        if len(drawn.bounds) == 0:
            continue
        area, twice_x, twice_y = span_sums(drawn)
        found[a, 6:] = _second_moments(drawn, area, twice_x / 2 / area, twice_y / 2 / area)
        found[a, :4] = np.inf, np.inf, -np.inf, -np.inf
        longest = 0
        for i in range(height):
            for k in range(drawn.starts[i], drawn.starts[i + 1], 2):
                first, end = drawn.bounds[k], drawn.bounds[k + 1]
                found[a, 0], found[a, 1] = min(found[a, 0], first), min(found[a, 1], i)
                found[a, 2], found[a, 3] = max(found[a, 2], end), max(found[a, 3], i + 1)
                if end - first > longest:
                    longest = end - first
                    found[a, 4], found[a, 5] = first + (longest - 1) // 2 + 0.5, i + 0.5
    return found


@njit(cache=True, nogil=True)
def _side(vertices: Any, a: int, b: int, c: int) -> float:
    """Above 0 where vertex c lies right of the line from vertex a to b, on screen; below 0 where it lies left."""
    x, y = vertices[a, 0], vertices[a, 1]
    return (vertices[b, 0] - x) * (vertices[c, 1] - y) - (vertices[b, 1] - y) * (vertices[c, 0] - x)


@njit(cache=True, nogil=True)
def self_crossings(vertices: Any, ring_offsets: Any, answer_offsets: Any) -> Any:
    """[A] int64: pairs of edges of one answer, of one ring or of two, that cross inside of both; touching is none."""
    counts = np.zeros(len(answer_offsets) - 1, np.int64)
    after = np.arange(1, len(vertices) + 1)
    for r in range(len(ring_offsets) - 1):
        if ring_offsets[r + 1] > ring_offsets[r]:
            after[ring_offsets[r + 1] - 1] = ring_offsets[r]
    for a in range(len(counts)):
        first, end = ring_offsets[answer_offsets[a]], ring_offsets[answer_offsets[a + 1]]
        for j in range(first, end):
            for k in range(j + 1, end):
                p, q = after[j], after[k]
                apart = _side(vertices, j, p, k) * _side(vertices, j, p, q) < 0.0
                if apart and _side(vertices, k, q, j) * _side(vertices, k, q, p) < 0.0:
                    counts[a] += 1
    return counts


def boundary_band_px(height: int, width: int) -> int:
    """Width in pixels of the boundary band of a height x width image: 2 % of its diagonal, at least 1."""
    return max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))


def boundary_band(mask: NDArray[np.bool_], band_px: int) -> NDArray[np.bool_]:
    """Pixels of bool `mask` [H, W] within `band_px` of its boundary, [H, W] bool; the image border counts as boundary.

    It is what `band_px` erosions by a 3 x 3 square take away. Raises ValueError where band_px is below 1.
    """
    if band_px < 1:
        raise ValueError(f"band_px is {band_px}; a boundary band is 1 pixel wide or more (see boundary_band_px).")
    core = eroded(spans_from_mask(np.ascontiguousarray(mask, np.bool_)), mask.shape[1], band_px)
    return np.asarray(mask & ~mask_from_spans(core, *mask.shape))


def boundary_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU of the boundary bands of two bool masks [H, W] (Cheng et al. 2021, arXiv 2103.16562); 1 where both are empty.

    Raises ValueError where the masks differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"The masks are {a.shape} and {b.shape}; resample one to the size of the other first.")
    band_px, width = boundary_band_px(*a.shape), a.shape[1]
    spans_a, spans_b = (spans_from_mask(np.ascontiguousarray(mask, np.bool_)) for mask in (a, b))
    core_a, core_b = eroded(spans_a, width, band_px), eroded(spans_b, width, band_px)
    shared, united = band_overlap(spans_a, core_a, spans_b, core_b)
    return shared / united if united else 1.0


def warm() -> None:
    """Compile every kernel of the toolkit, or load it from the cache: then no step waits for it."""
    mask = np.ones((1, 1), np.bool_)
    vertices, ring_offsets = trace(mask)
    importance(vertices)
    fill(vertices, ring_offsets, 1, 1)
    mask_from_rle(rle_from_mask(mask), 1, 1)
    spans = spans_from_mask(mask)
    rings = vertices, ring_offsets, np.array([0, 1])
    ratios(overlap(*rings, spans, span_table(spans), 1), 1)
    counted_overlap(*rings, spans, spans, 1)
    boundary_overlap(*rings, spans, spans, spans, 1, 1)
    shapes(*rings, spans, 1)
    self_crossings(*rings)
    boundary_iou(mask, mask)
    united(spans, spans)
