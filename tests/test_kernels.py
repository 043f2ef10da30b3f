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

from envs.polygons import Ring, flatten_rings
from envs.raster import fill
from rewards import kernels

H, W = 6, 8
ROOT = Path(__file__).resolve().parents[1]
masks = hnp.arrays(np.bool_, (H, W))
any_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
quarters = st.integers(-8, 40).map(lambda quarter: quarter / 4)
rings = st.lists(st.tuples(quarters, quarters), max_size=7).map(lambda points: np.array(points, float).reshape(-1, 2))
groups = st.lists(st.lists(rings, max_size=3), max_size=4)
TOP_HALF = np.repeat([True, False], [3, 3])[:, None] & np.ones((H, W), bool)


def overlap(answers: list[list[Ring]], true: NDArray[np.bool_], counted: NDArray[np.bool_]) -> tuple[np.ndarray, ...]:
    vertices, ring_offsets = flatten_rings([ring for answer in answers for ring in answer])
    answer_offsets = np.cumsum([0, *(len(answer) for answer in answers)], dtype=np.int64)
    sums = kernels.row_sums(true & counted), kernels.row_sums(counted), kernels.centre_sums(counted)
    return kernels.overlap(vertices, ring_offsets, answer_offsets, *sums)


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
    for package in ("envs", "rewards"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@settings(deadline=None)
@given(any_masks)
def test_row_sums_equal_numpys_cumulative_sums(mask: NDArray[np.bool_]) -> None:
    assert (kernels.row_sums(mask)[:, 1:] == np.cumsum(mask, axis=1)).all()
    twice_x = mask * (2 * np.arange(mask.shape[1]) + 1)
    assert (kernels.centre_sums(mask)[:, 1:] == np.cumsum(twice_x, axis=1)).all()
    assert not kernels.row_sums(mask)[:, 0].any() and not kernels.centre_sums(mask)[:, 0].any()


@settings(deadline=None)
@given(groups, masks, masks)
def test_overlap_of_a_group_equals_counting_on_filled_bitmaps(
    answers: list[list[Ring]], true: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> None:
    intersection, area, moments = overlap(answers, true, counted)
    assert len(intersection) == len(area) == len(moments) == len(answers)
    for a, answer in enumerate(answers):
        pixels = fill(*flatten_rings(answer), H, W) & counted
        rows, columns = np.nonzero(pixels)
        assert intersection[a] == (pixels & true).sum()
        assert area[a] == len(rows)
        assert moments[a].tolist() == [(columns + 0.5).sum(), (rows + 0.5).sum()]


def test_one_row_of_pixel_sums_stands_for_every_row() -> None:
    vertices, ring_offsets = flatten_rings([np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 4.0]])])
    row = np.ones((1, W), bool)
    sums = kernels.row_sums(TOP_HALF), kernels.row_sums(row), kernels.centre_sums(row)
    intersection, area, moments = kernels.overlap(vertices, ring_offsets, np.array([0, 1]), *sums)
    assert (intersection.tolist(), area.tolist(), moments.tolist()) == ([8], [12], [[36.0, 30.0]])


def test_overlap_of_hostile_coordinates_stays_within_the_image() -> None:
    huge = [[1e308, -1e308], [1e308, 1e308], [-1e308, 1e308], [np.nan, np.inf]]
    everything = [[-1e300, -1e300], [1e300, -1e300], [1e300, 1e300], [-1e300, 1e300]]
    intersection, area, _ = overlap([[np.array(huge)], [np.array(everything)]], TOP_HALF, np.ones((H, W), bool))
    assert 0 <= intersection[0] <= area[0] <= H * W
    assert (intersection[1], area[1]) == (24, 48)


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
    needed = (kernels.overlap, kernels.row_sums, kernels.centre_sums, kernels.trace, kernels.importance)
    assert all(kernel.signatures for kernel in needed)
    compiled = len(kernels.overlap.signatures)
    overlap([[np.zeros((3, 2))], []], TOP_HALF, TOP_HALF)
    assert len(kernels.overlap.signatures) == compiled


def test_a_second_process_loads_the_kernels_from_the_cache(copied_packages: Path) -> None:
    source = (
        "import numpy as np; from rewards import kernels; kernels.row_sums(np.ones((1, 1), bool));"
        "print(sum(kernels.row_sums.stats.cache_hits.values()), kernels.row_sums.stats.cache_path)"
    )
    cache = copied_packages / "cache"
    hits, folder = python(source, copied_packages, XDG_CACHE_HOME=str(cache)).split()
    assert hits == "0" and Path(folder).is_relative_to(cache / "polytrace")
    assert python(source, copied_packages, XDG_CACHE_HOME=str(cache)).split() == ["1", folder]


@pytest.mark.parametrize("changed", ["envs/raster.py", "rewards/kernels.py"])
def test_a_change_to_either_kernel_file_changes_the_cache_folder(copied_packages: Path, changed: str) -> None:
    source = "from envs.kernel_cache import kernel_cache_folder; print(kernel_cache_folder())"
    before = python(source, copied_packages)
    assert python(source, copied_packages) == before
    with (copied_packages / changed).open("a") as file:
        file.write("# changed\n")
    assert python(source, copied_packages) != before


def test_a_cache_folder_set_by_the_user_stays(tmp_path: Path) -> None:
    source = "from envs import raster; print(raster.crossings.stats.cache_path)"
    assert Path(python(source, ROOT, NUMBA_CACHE_DIR=str(tmp_path))).is_relative_to(tmp_path)


def test_kernels_still_compile_where_the_cache_folder_cannot_be_made(copied_packages: Path) -> None:
    source = "from envs.raster import clipped_ceil; print(clipped_ceil(0.5, 3))"
    assert python(source, copied_packages, XDG_CACHE_HOME="/dev/null") == "1"
