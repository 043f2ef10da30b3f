"""Overlap against bitmaps, boundary bands against repeated erosion, and the cache of compiled kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from envs.geometry.raster import fill
from envs.geometry.spans import spans_from_mask
from envs.polygons import Ring, flat_answers, flatten_rings
from rewards.kernels import overlap as kernels
from rewards.kernels.chains import span_table
from rewards.score import Target

H, W = 6, 8
ROOT = Path(__file__).resolve().parents[2]
masks = hnp.arrays(np.bool_, (H, W))
any_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
quarters = st.integers(-8, 40).map(lambda quarter: quarter / 4)
rings = st.lists(st.tuples(quarters, quarters), max_size=7).map(lambda points: np.array(points, float).reshape(-1, 2))
groups = st.lists(st.lists(rings, max_size=3), max_size=4)
TOP_HALF = np.repeat([True, False], [3, 3])[:, None] & np.ones((H, W), bool)


def overlap(answers: list[list[Ring]], true: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    spans, ignored = spans_from_mask(true & counted), spans_from_mask(~counted)
    if counted.all():
        return kernels.overlap(*flat_answers(answers), spans, span_table(spans), true.shape[1])
    return kernels.counted_overlap(*flat_answers(answers), spans, ignored, true.shape[1])


def python(source: str, folder: Path, **environment: str) -> str:
    """What `source` prints in a new process that imports the packages from `folder`."""
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment = {**clean, "PYTHONPATH": str(folder), **environment}
    result = subprocess.run([sys.executable, "-c", source], env=environment, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def copied_packages(tmp_path: Path) -> Path:
    """A folder with a copy of the two packages that hold kernels."""
    for package in ("envs", "rewards", "policies"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@settings(max_examples=300)
@given(groups, masks, st.one_of(masks, st.just(np.ones((H, W), bool))))
def test_overlap_of_a_group_equals_counting_on_filled_bitmaps(
    answers: list[list[Ring]], true: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> None:
    sums = overlap(answers, true, counted)
    assert len(sums) == len(answers)
    for row, answer in zip(sums, answers, strict=True):
        pixels = fill(*flatten_rings(answer), H, W) & counted
        rows, columns = np.nonzero(pixels)
        assert row.tolist() == [
            *((pixels & true).sum(), len(rows), (2 * columns + 1).sum(), (2 * rows + 1).sum()),
        ]


def test_overlap_of_a_rectangle_with_the_top_half_by_hand() -> None:
    answer = [np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 4.0]])]
    sums = overlap([answer], TOP_HALF, np.ones((H, W), bool))
    assert sums.tolist() == [[8, 12, 72, 60]]
    intersection, area, iou, centroid = kernels.ratios(sums, 24)
    assert (intersection.tolist(), area.tolist(), iou.tolist()) == ([8], [12], [8 / 28])
    assert centroid.tolist() == [[3.0, 2.5]]


def test_overlap_of_hostile_coordinates_stays_within_the_image() -> None:
    huge = [[1e308, -1e308], [1e308, 1e308], [-1e308, 1e308], [np.nan, np.inf]]
    everything = [[-1e300, -1e300], [1e300, -1e300], [1e300, 1e300], [-1e300, 1e300]]
    sums = overlap([[np.array(huge)], [np.array(everything)]], TOP_HALF, np.ones((H, W), bool))
    assert 0 <= sums[0, 0] <= sums[0, 1] <= H * W
    assert sums[1, :2].tolist() == [24, 48]


def test_self_crossings_of_a_figure_eight_a_pentagram_and_two_crossing_squares() -> None:
    eight = np.array([[0.0, 0], [4, 4], [4, 0], [0, 4]])
    turns = np.arange(5) * 4 * np.pi / 5
    pentagram = np.stack([4 + 3 * np.sin(turns), 4 - 3 * np.cos(turns)], axis=1)
    square = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    answers = [
        [eight],
        [pentagram],
        [square, square + 2],
        [square, square + np.array([4, 0])],
        [square],
        [],
        [square[:2]],
    ]
    assert kernels.self_crossings(*flat_answers(answers)).tolist() == [1, 5, 2, 0, 0, 0, 0]


@settings(deadline=None)
@given(any_masks, st.integers(1, 5))
def test_the_band_is_what_repeated_erosions_by_a_3_by_3_square_take_away(mask: NDArray[np.bool_], band_px: int) -> None:
    eroded = binary_erosion(mask, np.ones((3, 3), bool), iterations=band_px, border_value=0)
    assert (kernels.boundary_band(mask, band_px) == (mask & ~eroded)).all()


def test_the_image_border_counts_as_boundary() -> None:
    assert kernels.boundary_band(np.ones((10, 10), bool), 2).sum() == 100 - 36


def test_the_band_of_a_strided_view_is_that_of_its_copy() -> None:
    view = np.ones((12, 9), bool)[::2].T
    assert (kernels.boundary_band(view, 1) == kernels.boundary_band(view.copy(), 1)).all()


def test_the_band_is_2_percent_of_the_diagonal_and_at_least_one_pixel() -> None:
    assert kernels.boundary_band_px(480, 640) == 16
    assert kernels.boundary_band_px(64, 64) == 2
    assert kernels.boundary_band_px(8, 8) == 1


def test_boundary_iou_of_two_squares_one_column_apart_is_a_third() -> None:
    # Bands of 36 pixels each; they share 9 of the top and 9 of the bottom row: 18 / 54.
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5:15, 5:15] = b[5:15, 6:16] = True
    assert kernels.boundary_iou(a, b) == pytest.approx(1 / 3)
    assert kernels.boundary_iou(a, a) == 1.0


def test_boundary_iou_of_two_empty_masks_is_1_and_of_an_empty_and_a_full_one_0() -> None:
    empty, full = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    assert kernels.boundary_iou(empty, empty) == 1.0
    assert kernels.boundary_iou(empty, full) == 0.0


def test_a_band_without_width_and_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="band_px is 0"):
        kernels.boundary_band(np.ones((3, 3), bool), 0)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(3, 4\)"):
        kernels.boundary_iou(np.ones((3, 3), bool), np.ones((3, 4), bool))


def test_warm_compiles_what_scoring_and_tracing_need() -> None:
    kernels.warm()
    needed = (kernels.overlap, kernels.boundary_overlap, kernels.shapes, kernels.trace, kernels.importance)
    assert all(kernel.signatures for kernel in needed)
    compiled = len(kernels.overlap.signatures)
    Target.from_mask(TOP_HALF).overlap([[np.zeros((3, 2))], []])
    assert len(kernels.overlap.signatures) == compiled


def test_a_second_process_loads_the_kernels_from_the_cache(copied_packages: Path) -> None:
    source = (
        "import numpy as np; from envs.geometry.spans import spans_from_mask as f; f(np.ones((1, 1), bool));"
        "print(sum(f.stats.cache_hits.values()), f.stats.cache_path)"
    )
    cache = copied_packages / "cache"
    hits, folder = python(source, copied_packages, XDG_CACHE_HOME=str(cache)).split()
    assert hits == "0" and Path(folder).is_relative_to(cache / "polytrace")
    assert python(source, copied_packages, XDG_CACHE_HOME=str(cache)).split() == ["1", folder]


@pytest.mark.parametrize("changed", ["envs/geometry/spans.py", "rewards/kernels/overlap.py"])
def test_a_change_to_a_kernel_file_changes_the_cache_folder(copied_packages: Path, changed: str) -> None:
    source = "from envs.geometry.kernel_cache import kernel_cache_folder; print(kernel_cache_folder())"
    before = python(source, copied_packages)
    assert python(source, copied_packages) == before
    with (copied_packages / changed).open("a") as file:
        file.write("# changed\n")
    assert python(source, copied_packages) != before


def test_a_cache_folder_set_by_the_user_stays(tmp_path: Path) -> None:
    source = "from envs.geometry import raster; print(raster.trace.stats.cache_path)"
    assert Path(python(source, ROOT, NUMBA_CACHE_DIR=str(tmp_path))).is_relative_to(tmp_path)


def test_kernels_still_compile_where_the_cache_folder_cannot_be_made(copied_packages: Path) -> None:
    source = "from envs.geometry.spans import clipped_ceil; print(clipped_ceil(0.5, 3))"
    assert python(source, copied_packages, XDG_CACHE_HOME="/dev/null") == "1"
