import numpy as np
import pytest

from envs.example import Truth
from rl.refiner.judge import RADIUS_SHARES, fit_radius_share, smoothed, smoothed_by_size


def square(size: int = 20, low: int = 5, high: int = 15) -> np.ndarray:
    mask = np.zeros((size, size), np.bool_)
    mask[low:high, low:high] = True
    return mask


def test_a_plus_of_radius_1_takes_the_four_corners_of_a_square_off():
    # Opening by the plus (0, 0), (0, 1), (1, 0), (0, -1), (-1, 0) leaves all but corners; closing brings none back.
    opened = smoothed(square(), 1)
    assert (square() & ~opened).sum() == 4
    assert not opened[[5, 5, 14, 14], [5, 14, 5, 14]].any()
    assert not (opened & ~square()).any()


def test_a_hair_goes_and_a_crack_closes():
    jagged = square()
    jagged[9, 15:19] = True  # a hair one pixel wide
    jagged[5:11, 10] = False  # a crack one pixel wide
    smooth = smoothed(jagged, 1)
    assert smooth[9, 15:19].tolist() == [True, False, False, False]  # a plus around (9, 14) fits in and holds the first
    assert not smooth[5:7, 10].any()  # a bay at the rim stays
    assert smooth[7:11, 10].all()


def test_below_radius_1_and_for_an_empty_mask_nothing_changes():
    assert np.array_equal(smoothed(square(), 0.9), square())
    assert not smoothed(np.zeros((5, 7), np.bool_), 3).any()


def test_the_border_of_the_image_is_no_edge():
    full = np.ones((12, 9), np.bool_)
    assert smoothed(full, 4).all()
    half = full.copy()
    half[:, 5:] = False
    assert np.array_equal(smoothed(half, 2), half)


def test_what_would_vanish_is_kept():
    line = np.zeros((9, 9), np.bool_)
    line[4] = True
    assert np.array_equal(smoothed(line, 2), line)


def test_the_radius_grows_with_the_object():
    # 0.12 of a square's side: 10 px give radius 1.2, a plus, which takes one pixel a corner; 20 px give 2.4.
    assert np.array_equal(smoothed_by_size(square(), 0.12), smoothed(square(), 1.2))
    large = square(40, 10, 30)
    assert np.array_equal(smoothed_by_size(large, 0.12), smoothed(large, 2.4))


def test_the_share_with_the_best_mean_iou_is_chosen():
    hairy = square()
    hairy[9, 15:19] = True
    true = smoothed(square(), 1)
    # 104 px drawn: 0.04 and 0.08 are radii below 1; 0.12 is 1.22, one pixel from the truth; 0.16 is 1.63, 0.2 is 2.04.
    assert fit_radius_share([hairy], [Truth(true[None])]) == 0.12
    assert fit_radius_share([square()], [Truth(square()[None])]) == RADIUS_SHARES[0]


def test_hair_that_is_ignored_is_no_reason_to_smooth():
    hairy = square()
    hairy[6:15:3, 15:19] = True  # 12 px more than the true 100
    hair = hairy & ~square()
    assert fit_radius_share([hairy], [Truth(square()[None])]) == 0.16
    assert fit_radius_share([hairy], [Truth(square()[None], hair)]) == RADIUS_SHARES[0]


def test_pairs_are_asked_for():
    with pytest.raises(ValueError, match="one or more pairs"):
        fit_radius_share([], [])
    with pytest.raises(ValueError, match="1 coarse masks and 2 truths"):
        fit_radius_share([square()], [Truth(square()[None])] * 2)
