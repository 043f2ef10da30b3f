"""Overlap and boundary kernels, built on the crossings of envs/raster.py: arrays in, numbers out.

A true mask becomes per-row running sums once. An answer is walked edge by edge, its spans are read off the crossings of
each row, and every count is a difference of two running sums: no bitmap of an answer is ever made.

Dimension letters: A answers, R rings of all answers, M vertices of all rings, H W pixels.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.raster import crossings, fill, importance, mask_from_rle, rle_from_mask, trace

BOUNDARY_SHARE = 0.02
"""Width of the boundary band as a share of the image diagonal (Cheng et al. 2021, arXiv 2103.16562)."""


@njit(cache=True, nogil=True)
def row_sums(mask: Any) -> Any:
    """Running sums s [H, W + 1] int32 along the rows of `mask` [H, W]: s[i, b] - s[i, a] pixels in columns a..b - 1."""
    height, width = mask.shape
    sums = np.zeros((height, width + 1), np.int32)
    for i in range(height):
        for j in range(width):
            sums[i, j + 1] = sums[i, j] + mask[i, j]
    return sums


@njit(cache=True, nogil=True)
def centre_sums(mask: Any) -> Any:
    """Running sums [H, W + 1] int64, as in `row_sums`, of twice the x of the pixel centres of `mask`: 2j + 1 each."""
    height, width = mask.shape
    sums = np.zeros((height, width + 1), np.int64)
    for i in range(height):
        for j in range(width):
            sums[i, j + 1] = sums[i, j] + (2 * j + 1) * mask[i, j]
    return sums


@njit(cache=True, nogil=True)
def _measure(starts: Any, columns: Any, turns: Any, true_sums: Any, pixel_sums: Any, twice_x_sums: Any) -> Any:
    """(intersection, area, sum of 2x, sum of 2y) of one answer from its crossings; see `overlap`."""
    intersection = area = twice_x = twice_y = 0
    one_row = len(pixel_sums) == 1
    for i in range(len(true_sums)):
        weights, row_area, winding = 0 if one_row else i, 0, 0
        for k in range(starts[i], starts[i + 1] - 1):
            winding += turns[k]
            if winding != 0:
                a, b = columns[k], columns[k + 1]
                intersection += true_sums[i, b] - true_sums[i, a]
                row_area += pixel_sums[weights, b] - pixel_sums[weights, a]
                twice_x += twice_x_sums[weights, b] - twice_x_sums[weights, a]
        area += row_area
        twice_y += row_area * (2 * i + 1)
    return intersection, area, twice_x, twice_y


@njit(cache=True, nogil=True)
def overlap(
    vertices: Any, ring_offsets: Any, answer_offsets: Any, true_sums: Any, pixel_sums: Any, twice_x_sums: Any
) -> Any:
    """Pixels of each answer, and those that it shares with a true mask, for a whole group at once.

    vertices: [M, 2] float64 (x, y) px of all rings, one after the other; each answer is filled by non-zero winding.
    ring_offsets: [R + 1] int64; ring r is vertices[ring_offsets[r]:ring_offsets[r + 1]].
    answer_offsets: [A + 1] int64; answer a has the rings answer_offsets[a]..answer_offsets[a + 1] - 1.
    true_sums: [H, W + 1] int32, `row_sums` of the true mask.
    pixel_sums, twice_x_sums: `row_sums` and `centre_sums` of the pixels that count; [1, W + 1] stands for every row.
    Returns (intersection [A] int64 px, area [A] int64 px, moments [A, 2] float64: sums of x and of y of pixel centres).
    """
    height, width = len(true_sums), true_sums.shape[1] - 1
    num_answers = len(answer_offsets) - 1
    intersection, area = np.zeros(num_answers, np.int64), np.zeros(num_answers, np.int64)
    moments = np.zeros((num_answers, 2), np.float64)
    for a in range(num_answers):
        offsets = ring_offsets[answer_offsets[a] : answer_offsets[a + 1] + 1]
        starts, columns, turns = crossings(vertices, offsets, height, width)
        measured = _measure(starts, columns, turns, true_sums, pixel_sums, twice_x_sums)
        intersection[a], area[a] = measured[0], measured[1]
        moments[a, 0], moments[a, 1] = measured[2] / 2, measured[3] / 2
    return intersection, area, moments


@njit(cache=True, nogil=True)
def _boundary_band(mask: Any, band_px: int) -> Any:
    """`mask` less the pixels whose (2 * band_px + 1)^2 window lies inside it; a window never leaves the image."""
    height, width = mask.shape
    side = 2 * band_px + 1
    band = mask.copy()
    down = np.zeros(width, np.int64)  # rows up to this one in which the window's row around this column is full
    for i in range(height):
        across = 0
        for j in range(width):
            across = across + 1 if mask[i, j] else 0
            centre = j - band_px
            if centre < 0:
                continue
            down[centre] = down[centre] + 1 if across >= side else 0
            if down[centre] >= side:
                band[i - band_px, centre] = False
    return band


def boundary_band_px(height: int, width: int) -> int:
    """Width in pixels of the boundary band of a height x width image: 2 % of its diagonal, at least 1."""
    return max(1, round(BOUNDARY_SHARE * float(np.hypot(height, width))))


def boundary_band(mask: NDArray[np.bool_], band_px: int) -> NDArray[np.bool_]:
    """Pixels of bool `mask` [H, W] within `band_px` of its boundary, [H, W] bool; the image border counts as boundary.

    It is what `band_px` erosions by a 3 x 3 square take away, in one pass. Raises ValueError where band_px is below 1.
    """
    if band_px < 1:
        raise ValueError(f"band_px is {band_px}; a boundary band is 1 pixel wide or more (see boundary_band_px).")
    return _boundary_band(np.ascontiguousarray(mask, np.bool_), band_px)


def boundary_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU of the boundary bands of two bool masks [H, W] (Cheng et al. 2021, arXiv 2103.16562); 1 where both are empty.

    Raises ValueError where the masks differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"The masks are {a.shape} and {b.shape}; resample one to the size of the other first.")
    band_px = boundary_band_px(*a.shape)
    band_a, band_b = boundary_band(a, band_px), boundary_band(b, band_px)
    union = int((band_a | band_b).sum())
    return int((band_a & band_b).sum()) / union if union else 1.0


def warm() -> None:
    """Compile every kernel of this file and of envs/raster.py, or load it from the cache: then no step waits for it."""
    mask = np.ones((1, 1), np.bool_)
    vertices, ring_offsets = trace(mask)
    importance(vertices)
    fill(vertices, ring_offsets, 1, 1)
    mask_from_rle(rle_from_mask(mask), 1, 1)
    sums = row_sums(mask)
    overlap(vertices, ring_offsets, np.array([0, 1]), sums, sums, centre_sums(mask))
    boundary_iou(mask, mask)
