"""Spans and what is made of them without a bitmap, against NumPy, SciPy and pycocotools on bitmaps."""

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_erosion

from envs.geometry.raster import fill
from envs.geometry.rle import mask_from_rle, rle_from_mask, rle_from_rings, spans_from_rle
from envs.geometry.spans import Spans, mask_from_spans, spans_from_mask, spans_from_rings, transposed
from envs.polygons import Ring, flatten_rings
from rewards.kernels.bands import band_overlap, eroded, shared_pixels, span_sums, united, without

H, W = 7, 9
masks = hnp.arrays(np.bool_, (H, W))
any_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
quarters = st.integers(-12, 48).map(lambda quarter: quarter / 4)
rings = st.lists(st.tuples(quarters, quarters), max_size=8).map(lambda points: np.array(points, float).reshape(-1, 2))


def bitmap(spans: Spans, width: int = W) -> NDArray[np.bool_]:
    return np.asarray(mask_from_spans(spans, len(spans.starts) - 1, width))


def test_spans_of_two_rows_by_hand() -> None:
    spans = spans_from_mask(np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool))
    assert spans.starts.tolist() == [0, 4, 4, 6]
    assert spans.bounds.tolist() == [0, 2, 3, 4, 1, 4]


def test_rings_that_touch_are_one_span_and_a_ring_without_a_centre_is_none() -> None:
    def square(x: float, size: float) -> Ring:
        return np.array([[x, 0], [x + size, 0], [x + size, 1], [x, 1]])

    spans = spans_from_rings(*flatten_rings([square(1, 2), square(3, 2), square(6.6, 0.3)]), 1, 9)
    assert spans.bounds.tolist() == [1, 5]


@settings(max_examples=300)
@given(any_masks)
def test_spans_give_the_mask_back_and_transposed_its_transpose(mask: NDArray[np.bool_]) -> None:
    spans = spans_from_mask(mask)
    assert (bitmap(spans, mask.shape[1]) == mask).all()
    assert (bitmap(transposed(spans, mask.shape[1]), mask.shape[0]) == mask.T).all()


@settings(max_examples=300)
@given(st.lists(rings, max_size=3))
def test_rle_of_rings_is_that_of_pycocotools_on_the_filled_mask(shape: list[Ring]) -> None:
    mask = fill(*flatten_rings(shape), H, W)
    counts = rle_from_rings(*flatten_rings(shape), H, W)
    assert counts == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() == rle_from_mask(mask)
    assert (mask_from_rle(counts, H, W) == mask).all()


@settings(max_examples=300)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_runs_of_no_pixel_are_read_as_pycocotools_reads_them(runs: list[int]) -> None:
    height, width = 3, -(-sum(runs) // 3) or 1
    runs = [*runs, height * width - sum(runs)] if len(runs) % 2 == 0 else [*runs, 0, height * width - sum(runs)]
    theirs = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    assert (bitmap(spans_from_rle(runs, height, width), width) == coco_mask.decode(theirs).astype(bool)).all()


@settings(max_examples=300)
@given(masks, masks)
def test_combined_spans_are_those_of_combined_masks(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    spans_a, spans_b = spans_from_mask(a), spans_from_mask(b)
    assert (bitmap(without(spans_a, spans_b)) == (a & ~b)).all()
    assert (bitmap(united(spans_a, spans_b)) == (a | b)).all()
    assert shared_pixels(spans_a, spans_b) == (a & b).sum()
    rows, columns = np.nonzero(a)
    assert span_sums(spans_a) == (len(rows), (2 * columns + 1).sum(), (2 * rows + 1).sum())


@settings(max_examples=300)
@given(any_masks, st.integers(1, 4))
def test_eroded_spans_are_what_repeated_erosions_by_a_3_by_3_square_leave(mask: NDArray[np.bool_], d: int) -> None:
    left = binary_erosion(mask, np.ones((3, 3), bool), iterations=d, border_value=0)
    assert (bitmap(eroded(spans_from_mask(mask), mask.shape[1], d), mask.shape[1]) == left).all()


@settings(max_examples=300)
@given(masks, masks, st.integers(1, 3))
def test_bands_overlap_as_their_bitmaps_do(a: NDArray[np.bool_], b: NDArray[np.bool_], d: int) -> None:
    spans = [spans_from_mask(mask) for mask in (a, b)]
    cores = [eroded(one, W, d) for one in spans]
    bands = [mask & ~bitmap(core) for mask, core in zip((a, b), cores, strict=True)]
    shared, either = band_overlap(spans[0], cores[0], spans[1], cores[1])
    assert (shared, either) == ((bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum())
