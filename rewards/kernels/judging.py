"""Answers judged for a benchmark, one true mask each, in Numba: pixels, shared pixels, boundary bands and tight boxes.

Masks that are stored come as COCO run-length texts and are read as spans of rows without a bitmap: positions of a mask
that is read column by column differ from their left neighbours exactly where the mask differs from itself moved on by
one column, so the two sorted lists of run ends, merged, hold the bounds of all rows in the order of their columns.

Dimension letters: A answers, K masks of all answers, H W pixels.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.rle import unpack_runs
from envs.geometry.spans import Spans, spans_from_rings
from rewards.kernels.bands import united, without
from rewards.kernels.cores import core

NUM_COUNTS = 13
"""Columns of what `judged_answers` and `judged_masks` count."""


class CodedMasks(NamedTuple):
    """COCO run-length texts of the masks of A answers, in three arrays."""

    text: NDArray[np.uint8]
    """[M] compressed `counts` of all masks, one after the other."""
    text_offsets: NDArray[np.int64]
    """[K + 1] mask k is text[text_offsets[k]:text_offsets[k + 1]]."""
    mask_offsets: NDArray[np.int64]
    """[A + 1] answer a has the masks mask_offsets[a]..mask_offsets[a + 1] - 1, which are united."""


@njit(cache=True, nogil=True)
def _fit(runs: Any, num_pixels: int) -> bool:
    """Whether run lengths add up to a number of pixels, none of them negative."""
    total = np.int64(0)
    for run in runs:
        if run < 0 or run > num_pixels:
            return False
        total += run
    return total == num_pixels


@njit(cache=True, nogil=True)
def _moved_on(ends: Any, line: int) -> Any:
    """[2 N] sorted ends [N] of the runs of a mask, and the same a line on: between the first and second, third and
    fourth, ... of them, the mask differs from itself moved on by a line."""
    num = len(ends)
    merged = np.empty(2 * num, np.int64)
    k = n = 0
    while k < num:
        own, other = ends[k], ends[n] + line
        merged[k + n] = min(own, other)  # without a branch, which no processor could foresee
        is_own = own <= other
        k, n = k + is_own, n + (not is_own)
    for m in range(n, num):
        merged[num + m] = ends[m] + line
    return merged


@njit(cache=True, nogil=True)
def turned(ends: Any, line: int) -> Any:
    """Spans across the lines that a mask is read by.

    ends: sorted places, even in number, at which the runs of a mask begin and end, read line by line of `line` pixels.
    Returns Spans of `line` rows: of its columns where it was read by rows, of its rows where it was read by columns.
    """
    merged = _moved_on(ends, line)
    num = np.int64(0)
    for k in range(0, len(merged), 2):
        num += merged[k + 1] - merged[k]
    rows, columns = np.empty(num, np.int32), np.empty(num, np.int32)
    starts = np.zeros(line + 1, np.int64)
    num = top = np.int64(0)  # top: the place of the first pixel of the line `column`
    column = 0
    for k in range(0, len(merged), 2):
        for place in range(merged[k], merged[k + 1]):
            while place >= top + line:
                top, column = top + line, column + 1
            rows[num], columns[num] = place - top, column
            starts[place - top + 1] += 1
            num += 1
    starts = np.cumsum(starts)
    filled, bounds = starts[:line].copy(), np.empty(num, np.int32)
    for k in range(num):
        bounds[filled[rows[k]]] = columns[k]
        filled[rows[k]] += 1
    return Spans(starts, bounds)


@njit(cache=True, nogil=True)
def spans_from_runs(runs: Any, height: int) -> Any:
    """Row spans of run lengths (off, on, off, ... down columns of `height` pixels)."""
    return turned(np.cumsum(runs)[: len(runs) - len(runs) % 2], height)  # a last run of off ends nothing


@njit(cache=True, nogil=True)
def _area_and_box(spans: Any) -> Any:
    """(pixels, x0, y0, x1, y1) of spans: their number and the tight box, of zeros where there is none."""
    area, x0, x1, y0, y1 = np.int64(0), np.int64(1 << 31), np.int64(0), -1, 0
    for i in range(len(spans.starts) - 1):
        first, end = spans.starts[i], spans.starts[i + 1]
        if first == end:
            continue
        x0, x1 = min(x0, np.int64(spans.bounds[first])), max(x1, np.int64(spans.bounds[end - 1]))
        y0, y1 = i if y0 < 0 else y0, i + 1
        for k in range(first, end, 2):
            area += spans.bounds[k + 1] - spans.bounds[k]
    return (area, x0, y0, x1, y1) if area else (area, np.int64(0), 0, np.int64(0), 0)


@njit(cache=True, nogil=True)
def _shared_in_row(a: Any, b: Any, i: int) -> int:
    """Pixels that two masks share in row i."""
    k, k_end, n, n_end = a.starts[i], a.starts[i + 1], b.starts[i], b.starts[i + 1]
    total = 0
    while k < k_end and n < n_end:
        end, other_end = a.bounds[k + 1], b.bounds[n + 1]
        total += max(0, min(end, other_end) - max(a.bounds[k], b.bounds[n]))
        if end <= other_end:
            k += 2
        else:
            n += 2
    return total


@njit(cache=True, nogil=True)
def _shared(a: Any, a_core: Any, b: Any, b_core: Any) -> Any:
    """Pixels that two masks share, and those that their bands share: masks without their cores, which lie inside."""
    shared = of_bands = 0
    for i in range(len(a.starts) - 1):
        if a.starts[i] == a.starts[i + 1] or b.starts[i] == b.starts[i + 1]:
            continue
        in_row = _shared_in_row(a, b, i)
        shared, of_bands = shared + in_row, of_bands + in_row
        if a_core.starts[i] < a_core.starts[i + 1]:
            of_bands += _shared_in_row(a_core, b_core, i) - _shared_in_row(a_core, b, i)
        if b_core.starts[i] < b_core.starts[i + 1]:
            of_bands -= _shared_in_row(a, b_core, i)
    return shared, of_bands


class Known(NamedTuple):
    """What is true of an example, read once for all answers in a row that are judged against it."""

    fits: bool
    """Whether run lengths cover the image; if not, the rest means nothing."""
    true: Spans
    core: Spans
    """The true mask without its boundary band."""
    core_px: int
    ignored: Spans


@njit(cache=True, nogil=True)
def _count(counts: Any, drawn: Any, known: Any, band_px: int) -> None:
    """Fill a row of what `judged_answers` returns."""
    if len(known.ignored.bounds):
        drawn = without(drawn, known.ignored)
    drawn_core, drawn_core_px = core(drawn, band_px)
    counts[0], counts[9], counts[10], counts[11], counts[12] = _area_and_box(known.true)
    counts[1], counts[5], counts[6], counts[7], counts[8] = _area_and_box(drawn)
    counts[2], counts[3] = _shared(drawn, drawn_core, known.true, known.core)
    counts[4] = counts[0] + counts[1] - known.core_px - drawn_core_px - counts[3]


@njit(cache=True, nogil=True)
def _read(coded: Any, a: int, height: int, width: int) -> Any:
    """(whether they fit the image, spans) of the masks of answer a, united."""
    fits, spans = True, Spans(np.zeros(height + 1, np.int64), np.zeros(0, np.int32))
    for k in range(coded.mask_offsets[a], coded.mask_offsets[a + 1]):
        runs = unpack_runs(coded.text[coded.text_offsets[k] : coded.text_offsets[k + 1]])
        if not _fit(runs, height * width):
            fits = False
        elif k == coded.mask_offsets[a]:
            spans = spans_from_runs(runs, height)
        else:
            spans = united(spans, spans_from_runs(runs, height))
    return fits, spans


@njit(cache=True, nogil=True)
def _known(truths: Any, ignored: Any, a: int, size: Any) -> Any:
    """What is true of the example of answer a."""
    fits, true = _read(truths, a, size[0], size[1])
    ignored_fit, out = _read(ignored, a, size[0], size[1])
    if len(out.bounds):
        true = without(true, out)
    true_core, core_px = core(true, size[2])
    return Known(fits and ignored_fit, true, true_core, core_px, out)


@njit(cache=True, nogil=True)
def _as_before(coded: Any, a: int) -> bool:
    """Whether answer a has the same masks as the one before it, as where several sentences mean one object."""
    first, middle, end = coded.mask_offsets[a - 1], coded.mask_offsets[a], coded.mask_offsets[a + 1]
    if middle - first != end - middle:
        return False
    for k in range(first, middle):
        n = k + middle - first
        before = coded.text[coded.text_offsets[k] : coded.text_offsets[k + 1]]
        now = coded.text[coded.text_offsets[n] : coded.text_offsets[n + 1]]
        if len(before) != len(now) or np.any(before != now):
            return False
    return True


@njit(cache=True, nogil=True)
def _known_next(known: Any, truths: Any, ignored: Any, a: int, sizes: Any) -> Any:
    """What is true of the example of answer a; `known`: of the one before it."""
    same = a > 0 and np.all(sizes[a - 1] == sizes[a]) and _as_before(truths, a) and _as_before(ignored, a)
    return known if same else _known(truths, ignored, a, sizes[a])


@njit(cache=True, nogil=True)
def judged_answers(flat: Any, truths: Any, ignored: Any, sizes: Any) -> Any:
    """Counts of A answers, each against a truth of its own, in an image of its own.

    flat: FlatAnswers, their rings in px, filled by non-zero winding. truths, ignored: CodedMasks of what is true, and
    of what counts neither way. sizes: [A, 3] int64 height, width and width of the boundary band, px.
    Returns [A, 13] int64: pixels true, drawn and shared; pixels shared and united of the boundary bands; tight box
    (x0, y0, x1, y1) of what is drawn, then of what is true, zeros without a pixel. The first is -1 where a run-length
    text does not fit its image.
    """
    counts = np.zeros((len(sizes), NUM_COUNTS), np.int64)
    if len(sizes):
        known = _known(truths, ignored, 0, sizes[0])
    for a in range(len(sizes)):
        known = _known_next(known, truths, ignored, a, sizes)
        if known.fits:
            offsets = flat.ring_offsets[flat.answer_offsets[a] : flat.answer_offsets[a + 1] + 1]
            drawn = spans_from_rings(flat.vertices, offsets, sizes[a, 0], sizes[a, 1])
            _count(counts[a], drawn, known, sizes[a, 2])
        else:
            counts[a, 0] = -1
    return counts


@njit(cache=True, nogil=True)
def judged_masks(drawn: Any, truths: Any, ignored: Any, sizes: Any) -> Any:
    """`judged_answers` of masks, given as CodedMasks, in place of rings."""
    counts = np.zeros((len(sizes), NUM_COUNTS), np.int64)
    if len(sizes):
        known = _known(truths, ignored, 0, sizes[0])
    for a in range(len(sizes)):
        known = _known_next(known, truths, ignored, a, sizes)
        fits, spans = _read(drawn, a, sizes[a, 0], sizes[a, 1])
        if known.fits and fits:
            _count(counts[a], spans, known, sizes[a, 2])
        else:
            counts[a, 0] = -1
    return counts
