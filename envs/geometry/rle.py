"""COCO's run-length code of masks: runs of off, on, off, ... pixels read column by column, packed as text.

Between rings, spans and run lengths no bitmap is made: the code of an outline costs as much as the outline is long.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.spans import Spans, mask_from_spans, spans_from_mask, spans_from_rings, transposed


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
def unpack_runs(text: Any) -> Any:
    """[N] int64 run lengths of COCO's compressed text, given as its bytes [T] uint8."""
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
def _runs_from_spans(spans: Any, width: int) -> Any:
    """Lengths of the runs of off, on, off, ... pixels of row spans, read column by column; the first may be 0."""
    height = len(spans.starts) - 1
    columns = transposed(spans, width)
    runs = np.empty(len(columns.bounds) + 1, np.int64)
    num = last = 0
    for j in range(width):
        for k in range(columns.starts[j], columns.starts[j + 1]):
            place = j * height + columns.bounds[k]
            if num > 0 and place == last and k == columns.starts[j]:  # the run goes on from the column before
                num -= 1
                last = place - runs[num]
                continue
            runs[num] = place - last
            num, last = num + 1, place
    if last < height * width or num == 0:
        runs[num] = height * width - last
        num += 1
    return runs[:num].copy()


@njit(cache=True, nogil=True)
def _spans_from_runs(runs: Any, height: int, width: int) -> Any:
    """Row spans of run lengths that add up to height * width pixels."""
    starts = np.zeros(width + 1, np.int64)
    bounds = np.empty(2 * (len(runs) + width) + 2, np.int32)
    num = place = 0
    j = 0  # column that is being filled
    for k in range(len(runs)):
        end = place + runs[k]
        while k % 2 == 1 and place < end:
            while place // height > j:
                j += 1
                starts[j] = num
            top, bottom = place - j * height, min(end - j * height, height)
            if num > starts[j] and bounds[num - 1] == top:  # a run of no pixel lay in between
                bounds[num - 1] = bottom
            else:
                bounds[num], bounds[num + 1] = top, bottom
                num += 2
            place = j * height + bottom
        place = end
    starts[j + 1 :] = num
    return transposed(Spans(starts, bounds[:num]), height)


def rle_from_spans(spans: Spans, width: int) -> str:
    """COCO's compressed run-length text (the `counts` of pycocotools) of spans whose rows have `width` columns."""
    return _pack_runs(_runs_from_spans(spans, width)).tobytes().decode("ascii")


def rle_from_rings(vertices: NDArray[np.float64], offsets: NDArray[np.int64], height: int, width: int) -> str:
    """COCO's compressed run-length text of flat rings, filled together by non-zero winding."""
    vertices = np.ascontiguousarray(vertices, np.float64)
    return rle_from_spans(spans_from_rings(vertices, offsets, height, width), width)


def rle_from_mask(mask: NDArray[np.bool_]) -> str:
    """COCO's compressed run-length text of a bool mask [H, W]."""
    return rle_from_spans(spans_from_mask(np.ascontiguousarray(mask, np.bool_)), mask.shape[1])


def runs_from_rle(counts: str | list[int], height: int, width: int) -> NDArray[np.int64]:
    """Runs of off, on, off, ... pixels of a height x width mask, given as compressed text or as a list of numbers.

    Raises ValueError where the runs do not add up to height * width pixels.
    """
    if isinstance(counts, str):
        runs: NDArray[np.int64] = unpack_runs(np.frombuffer(counts.encode("ascii"), np.uint8))
    else:
        runs = np.asarray(counts, np.int64)
    num_pixels = height * width
    # Each run is checked before the sum, which could wrap around to the right number.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > num_pixels or runs.sum() != num_pixels:
        raise ValueError(
            f"RLE covers {runs.sum()} pixels (runs {runs[:4].tolist()}...), the mask has {height} x {width} = "
            f"{num_pixels}; check `size` and `counts` of this annotation."
        )
    return runs


def mask_from_runs(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of run lengths that add up to its pixels."""
    return mask_from_spans(Spans(*_spans_from_runs(runs, height, width)), height, width)


def spans_from_rle(counts: str | list[int], height: int, width: int) -> Spans:
    """Spans of COCO run lengths; as `runs_from_rle`."""
    return Spans(*_spans_from_runs(runs_from_rle(counts, height, width), height, width))


def mask_from_rle(counts: str | list[int], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] from COCO run lengths; as `runs_from_rle`."""
    return mask_from_runs(runs_from_rle(counts, height, width), height, width)
