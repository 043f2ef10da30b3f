"""What a mask decoder computes beside its network, by numbers worked out by hand."""

import math

import pytest
import torch

from policies.decoders.boxes import box_code, joint_window, window
from policies.decoders.losses import MaskLosses, bce, dice, iou


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_window_is_the_product_of_four_logistic_edges_around_the_grown_box() -> None:
    # The box from 1/4 to 3/4 is 0.5 wide, so each side goes out by 0.075 * 0.5 = 0.0375.
    [found] = window(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), 4, 4)
    inner = logistic(20 * (0.375 - 0.2125)) * logistic(20 * (0.7875 - 0.375))
    outer = logistic(20 * (0.125 - 0.2125)) * logistic(20 * (0.7875 - 0.125))
    assert float(found[1, 1]) == pytest.approx(inner**2, rel=1e-5) and float(found[1, 1]) > 0.92
    assert float(found[0, 2]) == pytest.approx(outer * inner, rel=1e-5)
    assert float(found[0, 0]) == pytest.approx(outer**2, rel=1e-5) and float(found[0, 0]) < 0.03
    [wide] = window(torch.tensor([[0.0, 0.5, 0.5, 1.0]]), 2, 4)
    assert wide.shape == (2, 4) and wide[1, 0] > 0.8 and wide[0].max() < 0.1 and wide[1, 3] < 0.01


def test_several_windows_are_joined_by_their_maximum_and_none_hides_nothing() -> None:
    windows = torch.tensor([[[[0.2, 0.9]], [[0.7, 0.1]], [[1.0, 1.0]]], [[[0.3, 0.3]]] * 3])
    exists = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.allclose(joint_window(windows, exists), torch.tensor([[[0.7, 0.9]], [[1.0, 1.0]]]))


def test_a_box_is_coded_by_its_corner_and_the_logarithms_of_its_sides() -> None:
    # Two waves, of pi and 128 pi; x0 = 1/2, y0 = 0, width 1/2 -> 0.2 ln 0.5 + 0.5, height 1 -> 0.5.
    [found] = box_code(torch.tensor([[0.5, 0.0, 1.0, 1.0]]), 2).view(1, 4, 4)
    width = 0.2 * math.log(0.5) + 0.5
    of_width = [math.sin(math.pi * width), math.sin(128 * math.pi * width), math.cos(math.pi * width)]
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1], [*of_width, math.cos(128 * math.pi * width)], [1, 0, 0, 1]])
    assert (found - expected).abs().max() < 1e-3  # 128 pi in float32
    assert box_code(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), 2).isfinite().all()  # without area


def test_losses_of_a_mask_of_two_cells() -> None:
    sure, truth = torch.tensor([[[50.0, -50.0]]]), torch.tensor([[[1.0, 1.0]]])
    # One of two cells drawn: 1 - (2 * 1 + 1) / (1 + 2 + 1), and an IoU of one half.
    assert float(dice(sure, truth)) == pytest.approx(0.25) and float(iou(sure, truth)) == 0.5
    assert float(bce(torch.zeros(1, 1, 2), truth)) == pytest.approx(math.log(2))
    assert float(bce(sure, truth)) == pytest.approx(25.0)
    nothing = torch.zeros(1, 1, 2)
    assert float(iou(nothing, nothing)) == 1.0 and float(dice(-sure.abs(), nothing)) == pytest.approx(0.0)
    # Passes count alike, the IoU is that of the last: (25 + ln 2) / 2 + 3 * (0.25 + 0.25) / 2 + 2 * (0.9 - 0.5)^2.
    even = dice(torch.zeros(1, 1, 2), truth)  # shares of one half: 1 - (2 + 1) / (1 + 2 + 1)
    assert float(even) == pytest.approx(0.25)
    found = MaskLosses(bce=1, dice=3, iou=2).of(torch.stack([nothing, sure]), torch.tensor([0.9]), truth)
    assert float(found) == pytest.approx((25 + math.log(2)) / 2 + 0.75 + 2 * 0.16, rel=1e-5)


def test_a_weight_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy\.losses\.bce is -1"):
        MaskLosses(bce=-1)
