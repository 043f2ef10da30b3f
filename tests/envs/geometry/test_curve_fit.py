"""Outlines as few lines and curves: the cheapest of all ways round, never more points than allowed, nearer than
polygons of as many."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.datasets.cutout_scenes import Env
from envs.geometry.contours import largest_rings, mask_from_rings, rings_from_mask, simplify
from envs.geometry.curve_fit import _areas_beside, _cheapest, fitted_within, smoothed
from envs.geometry.curves import Path, flattened, num_points, signed_area
from envs.geometry.masks import iou
from envs.polygons import signed_area_px


def disc(radius: float, size: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows + 0.5 - size / 2, columns + 0.5 - size / 2) <= radius


def filled(paths: list[Path], shape: tuple[int, int]) -> np.ndarray:
    return mask_from_rings([flattened(path, 0.05) for path in paths], *shape)


def test_a_disc_in_nine_points_is_four_quadratics_within_two_percent_and_a_polygon_of_nine_is_not() -> None:
    mask = disc(20)
    rings = rings_from_mask(mask)
    paths = fitted_within(rings, 0.0, 9)
    assert num_points(paths[0]) <= 9 and {len(segment) for segment in paths[0]} == {3}
    assert iou(filled(paths, mask.shape), mask) > 0.98
    assert iou(mask_from_rings(simplify(rings, 9), 64, 64), mask) < 0.94


def test_a_square_with_a_square_hole_keeps_its_corners() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[8:40, 8:40] = True
    mask[16:24, 16:24] = False
    outer, hole = (flattened(path, 0.1) for path in fitted_within(rings_from_mask(mask), 0.001, 64))
    np.testing.assert_allclose(outer, [[8, 8], [40, 8], [40, 40], [8, 40]], atol=1e-9)
    np.testing.assert_allclose(hole, [[16, 16], [16, 24], [24, 24], [24, 16]], atol=1e-9)


def test_stairs_become_slopes_and_fill_the_same_pixels() -> None:
    mask = disc(17.3)
    (ring,) = rings_from_mask(mask)
    np.testing.assert_array_equal(mask_from_rings([smoothed(ring)], 64, 64), mask)
    drawn = np.array([(0.0, 0.0), (9.0, 1.0), (5.0, 8.0)])
    assert smoothed(drawn) is drawn


def test_the_ends_of_a_bar_of_one_pixel_are_no_stairs() -> None:
    bar = np.array([(3, 3), (60, 3), (60, 4), (3, 4)])
    (path,) = fitted_within([bar], 0.002, 64)
    np.testing.assert_allclose(flattened(path, 0.1), bar, atol=1e-9)


def test_points_that_equal_outlines_cannot_all_have_go_to_the_first() -> None:
    mask = np.zeros((20, 40), np.bool_)
    mask[4:10, 2:8] = mask[4:10, 12:18] = mask[4:10, 22:28] = True
    paths = fitted_within(rings_from_mask(mask), 0.002, 11)
    assert sorted(map(num_points, paths)) == [3, 4, 4]


def test_a_point_that_wins_less_than_its_share_is_not_written() -> None:
    # A dent of 40 square pixels in 10,000: its vertex is worth 0.4 % of the area.
    ring = np.array([(0, 0), (48, 0), (50, 2), (52, 0), (100, 0), (100, 100), (0, 100)], np.float64)
    assert num_points(fitted_within([ring], 0.0001, 20)[0]) == 7
    assert num_points(fitted_within([ring], 0.01, 20)[0]) == 4


MASKS = arrays(np.bool_, (12, 12), elements=st.booleans()).filter(lambda mask: mask.any())


@given(MASKS, st.integers(0, 40), st.booleans())
@settings(max_examples=60)
def test_any_mask_is_written_within_the_points_and_keeps_directions(mask: np.ndarray, spare: int, curved: bool) -> None:
    rings = rings_from_mask(mask)
    paths = fitted_within(rings, 0.001, 3 * len(rings) + spare, 3 if curved else 1)
    assert sum(map(num_points, paths)) <= 3 * len(rings) + spare
    for ring, path in zip(rings, paths, strict=True):
        # A ring that touches itself may lose its area as a triangle, which the codec then leaves out.
        assert np.sign(signed_area(path)) in (np.sign(signed_area_px(ring)), 0) and (
            signed_area(path) or len(path) == 2
        )
        points = np.concatenate(path)
        assert (points >= ring.min(axis=0) - 1e-9).all() and (points <= ring.max(axis=0) + 1e-9).all()
        assert all(np.array_equal(a[-1], b[0]) for a, b in pairwise(path))
        assert curved or max(map(len, path)) == 2


def test_the_way_round_is_the_cheapest_of_all_that_there_are() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        corners = 30 + rng.uniform(8, 25, (7, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = np.concatenate(
            [corners[k] + (corners[(k + 1) % 7] - corners[k]) * np.arange(8)[:, None] / 8 for k in range(7)]
            + [corners[:1]]
        )
        joints = np.arange(8) * 8
        box = np.stack([points.min(axis=0), points.max(axis=0)])
        beside = _areas_beside(points, joints, box, 3, np.inf)
        price = float(rng.uniform(1, 40))
        before, degrees = _cheapest(beside, price)
        found, end = 0.0, 7
        while end:
            found += degrees[end] * price + beside[before[end], end, degrees[end] - 1]
            end = int(before[end])
        assert found == pytest.approx(min(cost_of(beside, price)))


def cost_of(beside: np.ndarray, price: float) -> list[float]:
    """The costs of all ways round 8 joints, by every choice of joints and degrees."""
    costs = []
    for num in range(7):
        for inner in combinations(range(1, 7), num):
            way = list(pairwise([0, *inner, 7]))
            for degrees in product((1, 2, 3), repeat=len(way)) if len(way) <= 4 else [(1,) * len(way)]:
                costs.append(sum(d * price + beside[a, b, d - 1] for (a, b), d in zip(way, degrees, strict=True)))
    return costs


def test_on_composed_scenes_chosen_points_are_nearer_than_simplified_ones_and_curves_nearer_still() -> None:
    env, means = Env("train"), []
    masks = [env[index].truth.masks[0] for index in range(0, 6000, 100)]
    for write in ("curves", "lines", "simplified"):
        ious = []
        for mask in masks:
            rings = largest_rings(rings_from_mask(mask), 2, 0.02)
            if write == "simplified":
                drawn = mask_from_rings(simplify(rings, 12), *mask.shape)
            else:
                drawn = filled(fitted_within(rings, 0.002, 12, 3 if write == "curves" else 1), mask.shape)
            ious.append(iou(drawn, mask))
        means.append(np.mean(ious))
    curves, chosen, simplified = means
    assert curves > chosen and chosen > simplified + 0.015


def test_too_few_points_for_the_rings_are_refused_by_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^max_points is 5, but 2 rings need 3 each; keep fewer rings or raise it"):
        fitted_within([np.eye(3, 2), np.eye(3, 2)], 0.1, 5)
