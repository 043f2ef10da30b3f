import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.refiner.calibration import Calibration, Curve

BENT = Curve((0.2, 0.6, 0.8), (0.1, 0.5, 0.5))


def test_between_knots_it_is_straight_and_beyond_them_constant():
    raw = torch.tensor([0.0, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    # A quarter of the way from 0.2 to 0.6 is a quarter of the way from 0.1 to 0.5.
    expected = torch.tensor([0.1, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(BENT(raw), expected)


def test_each_output_has_its_own_curve():
    calibration = Calibration((Curve(), BENT))
    raw = torch.tensor([[0.3, 0.9], [0.3, 0.9]])
    torch.testing.assert_close(calibration(raw), torch.tensor([[0.3, 0.9], [0.2, 0.5]]))
    torch.testing.assert_close(calibration.of_output(1, raw[1]), torch.tensor([0.2, 0.5]))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_by_default_every_prediction_stays_as_it_is_to_the_bit(values):
    raw = torch.tensor([values, values, values])
    assert torch.equal(Calibration.identity(2)(raw), raw)


@given(
    st.dictionaries(st.floats(0, 1, width=16), st.floats(0, 1, width=16), min_size=1, max_size=6),
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20),
)
def test_a_curve_never_falls_and_stays_between_its_ends(knots, values):
    heights = sorted(knots.values())
    curve = Curve(tuple(sorted(knots)), tuple(heights))
    found = curve(torch.tensor(sorted(values)))
    assert (found.diff() >= -1e-6).all()
    assert found.min() >= heights[0] - 1e-6 and found.max() <= heights[-1] + 1e-6


def test_it_comes_back_from_json():
    calibration = Calibration((Curve(), BENT, Curve((0.5,), (0.25,))))
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert calibration.of_output(2, torch.tensor([0.0, 0.9])).tolist() == [0.25, 0.25]


def test_a_pass_without_a_curve_is_refused_by_its_number():
    with pytest.raises(ValueError, match="curves for 1 passes, and pass 2 was run; calibrate"):
        Calibration.identity(1).of_output(2, torch.zeros(1))


@pytest.mark.parametrize(
    ("raw", "calibrated", "advice"),
    [
        ((), (), "0 raw and 0 calibrated"),
        ((0.0, 1.0), (0.5,), "2 raw and 1 calibrated"),
        ((0.0, 0.0), (0.0, 1.0), "the first must increase"),
        ((0.0, 1.0), (1.0, 0.0), "the second not fall"),
        ((0.0, 1.5), (0.0, 1.0), "values in 0..1"),
        ((0.0, float("nan")), (0.0, 1.0), "values in 0..1"),
    ],
)
def test_knots_that_are_no_curve_are_refused(raw, calibrated, advice):
    with pytest.raises(ValueError, match=advice):
        Curve(raw, calibrated)
