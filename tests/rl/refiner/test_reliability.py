import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.refiner.calibration import Calibration, Curve
from rl.refiner.scores import fit_calibration, isotonic_curve, reliability

UNIT = st.floats(0, 1)
PAIRS = st.lists(st.tuples(UNIT, UNIT), min_size=0, max_size=200)


def after(curve: Curve, raw: np.ndarray) -> np.ndarray:
    return np.interp(raw, curve.raw, curve.calibrated)


def test_error_is_the_gap_of_each_bin_weighted_by_its_masks():
    # 0.12 and 0.18 share a bin, actual 0.2 and 0.3, gap 0.1; so do 0.95, 1 and 0.9, actual 0.8, gap 0.15.
    predicted, actual = np.array([0.12, 0.95, 0.18, 1.0, 0.9]), np.array([0.2, 0.8, 0.3, 0.8, 0.8])
    found = reliability(predicted, actual)
    assert found.predicted == pytest.approx((0.15, 0.95))
    assert found.actual == pytest.approx((0.25, 0.8))
    assert found.count == (2, 3)
    assert found.error == pytest.approx((2 * 0.1 + 3 * 0.15) / 5)


def test_fewer_bins_let_gaps_cancel():
    predicted, actual = np.array([0.4, 0.6]), np.array([0.5, 0.5])
    assert reliability(predicted, actual).error == pytest.approx(0.1)
    assert reliability(predicted, actual, bins=1).error == pytest.approx(0)


def test_without_a_mask_there_is_no_bin():
    assert reliability(np.zeros(0), np.zeros(0)).count == ()


@pytest.mark.parametrize("predicted", [[0.5, 1.2], [0.5, float("nan")], [0.5]])
def test_what_is_no_prediction_is_refused(predicted):
    with pytest.raises(ValueError, match="predicted"):
        reliability(np.array(predicted), np.array([0.5, 0.5]))


def test_two_levels_are_mapped_to_their_means_and_between_them_straight():
    # Predictions 0.5 and 0.9 whose masks reach 0.4 and 0.6: half way between, 0.7, becomes 0.5.
    raw, actual = np.repeat([0.5, 0.9], 10), np.concatenate([np.tile([0.3, 0.5], 5), np.tile([0.5, 0.7], 5)])
    curve = isotonic_curve(raw, actual)
    assert curve.raw == pytest.approx((0, 0.5, 0.9, 1))
    assert curve.calibrated == pytest.approx((0.4 - 0.0005, 0.4, 0.6, 0.6 + 0.0001))
    assert after(curve, np.array([0.7])) == pytest.approx(0.5)


def test_what_falls_is_pooled():
    # 0.2 -> 0.6, 0.4 -> 0.4 are out of order and become one block of 0.5 at 0.3; 0.8 -> 0.9 stays.
    raw, actual = np.repeat([0.2, 0.4, 0.8], 10), np.repeat([0.6, 0.4, 0.9], 10)
    curve = isotonic_curve(raw, actual)
    assert curve.raw == pytest.approx((0, 0.3, 0.8, 1))
    assert curve.calibrated[1:3] == pytest.approx((0.5, 0.9))


def test_a_boastful_head_is_mended_on_masks_it_was_not_fitted_to():
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.2, 1, 4000)
    actual = (raw**2 + rng.normal(0, 0.1, 4000)).clip(0, 1)
    curve = isotonic_curve(raw[:2000], actual[:2000])
    assert 4 <= len(curve.raw) <= 32
    assert reliability(raw[2000:], actual[2000:]).error > 0.15
    assert reliability(after(curve, raw[2000:]), actual[2000:]).error < 0.02


@given(PAIRS)
def test_on_its_own_masks_a_curve_never_errs_more_than_the_raw_prediction(pairs):
    raw, actual = np.array(pairs).reshape(-1, 2).T
    curve = isotonic_curve(raw, actual)
    assert reliability(after(curve, raw), actual).error <= reliability(raw, actual).error
    assert len(curve.raw) <= 32
    assert (np.diff(np.array(curve.raw, np.float32)) > 0).all()
    assert (np.diff(curve.calibrated) >= 0).all()


@given(PAIRS)
def test_the_order_of_masks_does_not_matter(pairs):
    raw, actual = np.array(pairs).reshape(-1, 2).T
    one, other = isotonic_curve(raw, actual), isotonic_curve(raw[::-1], actual[::-1])
    assert after(one, raw) == pytest.approx(after(other, raw), abs=1e-9)


def test_a_handful_of_masks_leaves_the_identity():
    assert isotonic_curve(np.full(19, 0.9), np.full(19, 0.1)) == Curve()


def test_every_output_has_its_own_curve():
    raw = np.stack([np.full(40, 0.5), np.full(40, 0.9)])
    actual = np.stack([np.full(40, 0.5), np.full(40, 0.7)])
    calibration = fit_calibration(raw, actual)
    assert isinstance(calibration, Calibration)
    assert calibration.curves[0] == Curve()  # right as it was
    assert after(calibration.curves[1], np.array([0.9])) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="shape"):
        fit_calibration(raw, actual[:1])
