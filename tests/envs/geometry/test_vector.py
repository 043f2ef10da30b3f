"""A path keeps its floor, and a browser fills it to our mask."""

import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.masks import iou, tight_box_px
from envs.geometry.vector import bevelled, path_svg, rounded_rings, simplified_rings
from envs.images import View
from envs.polygons import signed_area_px

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=16))


def disc(height, width, x, y, radius):
    ys, xs = np.mgrid[:height, :width] + 0.5
    return (xs - x) ** 2 + (ys - y) ** 2 < radius**2


def rings_of_svg(svg):
    """The rings that the path of an SVG document says, read as a browser reads them."""
    path = ElementTree.fromstring(svg).find("{http://www.w3.org/2000/svg}path")
    if path is None:
        return []
    parts = path.get("d").removesuffix("Z").split("Z")
    return [np.array([point.split() for point in part[1:].split("L")], float) for part in parts]


@given(masks, st.floats(0.5, 1.0))
@settings(max_examples=40)
def test_the_fill_of_a_simplified_path_keeps_the_floor(mask, floor):
    rings = simplified_rings(mask, floor)
    assert iou(mask_from_rings(rings, *mask.shape), mask) >= floor
    assert len(rings) == len(rings_from_mask(mask))


@given(masks)
@settings(max_examples=40)
def test_a_floor_of_one_gives_the_mask_back_to_the_pixel(mask):
    np.testing.assert_array_equal(mask_from_rings(simplified_rings(mask, 1.0), *mask.shape), mask)


@given(masks)
@settings(max_examples=60)
def test_a_bevelled_ring_fills_to_the_same_pixels(mask):
    rings = [bevelled(ring) for ring in rings_from_mask(mask)]
    np.testing.assert_array_equal(mask_from_rings(rings, *mask.shape), mask)


def test_bevelled_stairs_are_a_slope_and_a_pixel_a_diamond():
    stairs = np.tri(3, dtype=bool)  # one pixel, two, three
    assert bevelled(rings_from_mask(stairs)[0]).tolist() == [
        [0.5, 0], [1, 0.5], [1.5, 1], [2, 1.5], [2.5, 2], [3, 2.5], [2.5, 3], [0.5, 3], [0, 2.5], [0, 0.5],
    ]  # fmt: skip
    assert bevelled(rings_from_mask(np.ones((1, 1), bool))[0]).tolist() == [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]]


def test_a_disc_of_80_px_needs_20_vertices_for_its_188_corners_at_an_iou_of_0_99():
    mask = disc(100, 100, 50, 50, 40)
    traced, simplified = rings_from_mask(mask)[0], simplified_rings(mask, 0.99)[0]
    assert (len(traced), len(simplified)) == (188, 20)


def test_overlap_of_four_and_two_pixels_of_which_two_are_shared_is_a_half():
    assert iou(np.array([[1, 1, 1, 1]], bool), np.array([[0, 0, 1, 1]], bool)) == 0.5
    assert iou(np.zeros((1, 4), bool), np.zeros((1, 4), bool)) == 1.0


def test_holes_stay_and_run_the_other_way():
    mask = disc(64, 64, 32, 32, 28) & ~disc(64, 64, 32, 32, 12) | disc(64, 64, 4, 60, 4)
    areas = [signed_area_px(ring) for ring in simplified_rings(mask, 0.99)]
    assert [area > 0 for area in areas] == [True, False, True]


@pytest.mark.parametrize("floor", [0.0, 1.01, float("nan")])
def test_an_impossible_floor_is_refused(floor):
    with pytest.raises(ValueError, match="set it above 0 and to 1 at most"):
        simplified_rings(np.ones((4, 4), bool), floor)


def test_numbers_are_written_to_a_thousandth_of_a_pixel_and_read_back_equal():
    rings = rounded_rings([np.array([[-0.00001, 0.1234567], [7 / 3, 0], [10, 4]])])
    svg = path_svg(rings, 4, 10, 'the "red" <one>')
    assert 'd="M0 0.123L2.333 0L10 4Z"' in svg
    np.testing.assert_array_equal(rings_of_svg(svg)[0], rings[0])
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == "0 0 10 4" and root[0].text == 'the "red" <one>'


def test_an_empty_path_is_a_document_without_a_path():
    assert rings_of_svg(path_svg([], 4, 10, "nothing")) == []


def test_the_box_is_that_of_the_pixels():
    mask = np.zeros((6, 9), bool)
    assert tight_box_px(mask) is None
    mask[2:4, 3:8] = True
    assert tight_box_px(mask) == (3, 2, 8, 4)


def drawn_paths():
    """Rings, height and width of shapes with holes, several parts and odd sizes, as a prediction would make them."""
    ring = disc(96, 96, 48, 48, 40) & ~disc(96, 96, 52, 44, 17)
    parts = disc(64, 37, 18, 14, 12) | disc(64, 37, 20, 48, 14) & ~disc(64, 37, 20, 48, 5)
    rough = np.kron(np.random.default_rng(0).random((15, 12)) < 0.6, np.ones((8, 8))) > 0
    yield simplified_rings(ring, 0.995), 96, 96
    yield View(64).rings_px(simplified_rings(parts, 0.995), 301, 174), 301, 174  # portrait, of a view of 64 x 37
    yield View(64, square=True).rings_px(simplified_rings(ring[:43, :64], 0.995), 151, 227), 151, 227
    yield simplified_rings(rough, 0.995), 120, 96
    yield [np.array([[150.25, 10], [290.5, 150], [10, 199.75], [-30, 60]])], 200, 201  # reaches out of the image


def browser():
    return next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium on this machine to draw the SVG with")
def test_a_browser_draws_the_path_as_the_mask_that_we_fill(tmp_path):
    paths = [(rounded_rings(rings), height, width) for rings, height, width in drawn_paths()]
    cells = [
        f'<div style="position:absolute;left:{320 * k}px;top:0">{path_svg(rings, height, width, "shape")}</div>'
        for k, (rings, height, width) in enumerate(paths)
    ]
    (tmp_path / "page.html").write_text(f'<!doctype html><body style="background:#fff">{"".join(cells)}')
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=1600,400"]
    command = [str(browser()), *options, str(tmp_path / "page.html")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(shot).convert("L")) < 128
    for k, (rings, height, width) in enumerate(paths):
        drawn = picture[:height, 320 * k : 320 * k + width]
        assert iou(drawn, mask_from_rings(rings, height, width)) > 0.99, k
    assert picture.sum() == sum(picture[:h, 320 * k : 320 * k + w].sum() for k, (_, h, w) in enumerate(paths))
