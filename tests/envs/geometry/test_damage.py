import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from envs.geometry.damage import DAMAGES, damaged, dilated, with_box_edges_moved, with_vertices_dropped


def disc(radius: float = 12, side: int = 48) -> np.ndarray:
    i, j = np.indices((side, side))
    return np.hypot(i - side / 2, j - side / 2) <= radius


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@given(seed=st.integers(0, 1000), reach=st.integers(1, 4))
def test_dilation_adds_every_pixel_within_reach_and_no_other(seed: int, reach: int) -> None:
    mask = np.random.default_rng(seed).random((20, 24)) < 0.03
    i, j = np.indices((2 * reach + 1, 2 * reach + 1)) - reach
    np.testing.assert_array_equal(dilated(mask, reach), binary_dilation(mask, np.hypot(i, j) <= reach))


def test_erosion_of_a_disc_is_a_smaller_disc_and_dilation_a_larger_one() -> None:
    mask = disc(12)
    reach = 0.5 * 0.25 * np.sqrt(mask.sum())  # 2.66 px
    rng = np.random.default_rng(0)
    assert iou(damaged(mask, "erode", 0.5, rng), disc(12 - reach)) > 0.9
    assert iou(damaged(mask, "dilate", 0.5, rng), disc(12 + reach)) > 0.9


def test_a_box_whose_edges_move_by_a_quarter_of_its_side_takes_the_mask_along() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10:20, 8:28] = True  # 20 wide, 10 high
    expected = np.zeros((40, 40), np.bool_)
    expected[10:25, 13:28] = True
    np.testing.assert_array_equal(with_box_edges_moved(mask, np.array([0.25, 0, 0, 0.5])), expected)


def test_dropping_no_vertex_leaves_the_outline_and_dropping_most_leaves_a_triangle() -> None:
    mask, rng = disc(), np.random.default_rng(3)
    assert iou(with_vertices_dropped(mask, 0, rng), mask) > 0.97
    assert iou(with_vertices_dropped(mask, 0.99, rng), mask) < 0.6


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_grows_with_its_strength_stays_in_the_image_and_is_repeated_by_its_seed(kind: str) -> None:
    mask = disc(9)

    def mean_iou(strength: float) -> float:
        return float(np.mean([iou(mask, damaged(mask, kind, strength, np.random.default_rng(k))) for k in range(12)]))

    assert mean_iou(0.0) > 0.95
    assert mean_iou(0.2) > mean_iou(0.6) > mean_iou(1.0) > 0.1
    one, two = (damaged(mask, kind, 0.7, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == mask.shape and one.dtype == np.bool_


def test_an_unknown_damage_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="damage 'blur' is unknown; choose of dilate, erode"):
        damaged(disc(), "blur", 0.5, np.random.default_rng(0))
