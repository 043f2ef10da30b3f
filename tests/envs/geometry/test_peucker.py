"""Douglas and Peucker's rule: no dropped vertex is farther from the outline that is left than was allowed."""

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st

from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.geometry.masks import iou
from envs.geometry.peucker import douglas_peucker


def disc(radius: float, size: int = 80) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows + 0.5 - size / 2, columns + 0.5 - size / 2) <= radius


def test_a_square_with_a_dent_of_one_pixel_loses_the_dent_and_keeps_its_corners() -> None:
    ring = np.array([(0, 0), (20, 0), (40, 1), (60, 0), (100, 0), (100, 100), (0, 100)], np.float64)
    assert douglas_peucker(ring, 0.01).tolist() == [[0, 0], [100, 0], [100, 100], [0, 100]]  # 4 px of 400
    assert len(douglas_peucker(ring, 0.001)) == 7  # 0.4 px


def test_stairs_of_a_pixel_stay_where_the_share_is_less_than_they_are_and_go_where_it_is_more() -> None:
    mask = disc(30)
    (exact,) = rings_from_mask(mask)
    assert len(exact) == len(douglas_peucker(exact, 0.001)) == 140  # 0.24 px
    left = douglas_peucker(exact, 0.005)  # 1.2 px
    assert len(left) < 30 and iou(mask_from_rings([left], 80, 80), mask) > 0.95


@given(st.integers(0, 10**6), st.sampled_from([0.001, 0.01, 0.05, 0.5]))
def test_what_is_dropped_lies_near_what_is_left(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
    ring = 50 + rng.uniform(5, 40, (len(angles), 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    left = douglas_peucker(ring, share)
    assert 3 <= len(left) <= len(ring) and {*map(tuple, left)} <= {*map(tuple, ring)}
    perimeter = np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T).sum()
    apart = shapely.distance(shapely.points(ring), shapely.linearrings(np.vstack([left, left[:1]])))
    assert apart.max() <= share * perimeter + 1e-9
