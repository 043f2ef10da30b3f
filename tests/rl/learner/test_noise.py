"""Signal and noise of gradients, against what they were made of."""

import pytest
import torch

from rl.evaluation.early_signs import noise_scale
from rl.learner.noise import SKETCH, GradientSketches, mean_cosine, sketch


def test_sketches_keep_inner_products_of_tensors_larger_and_smaller_than_themselves() -> None:
    torch.manual_seed(0)
    one = [torch.randn(300, 700), torch.randn(7), torch.randn(SKETCH)]
    other = [0.5 * a + torch.randn_like(a) for a in one]
    exact = sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))
    norms = [sum(float(a.square().sum()) for a in each) ** 0.5 for each in (one, other)]
    found = float(sketch(one, 3) @ sketch(other, 3))
    assert found == pytest.approx(exact, abs=0.02 * norms[0] * norms[1])
    assert exact == pytest.approx(norms[0] ** 2 / 2, rel=0.02)
    assert abs(float(sketch(one, 3) @ sketch(other, 4))) < 0.02 * norms[0] * norms[1]


def test_equal_gradients_have_the_cosine_1_and_opposite_ones_minus_1_and_one_alone_none() -> None:
    row = torch.arange(3.0)
    assert mean_cosine([row, row, row]) == pytest.approx(1.0)
    assert mean_cosine([row, -row]) == pytest.approx(-1.0)
    assert mean_cosine([row]) is None and mean_cosine([torch.zeros(3)] * 2) is None


def test_of_a_step_the_halves_of_mini_batches_and_mini_batches_are_compared() -> None:
    torch.manual_seed(2)
    one, two = torch.randn(5000), torch.randn(5000)
    sketches = GradientSketches(step=7, ranks=1)
    assert sketches.stats() == {}
    for first, second in ((one, one), (one, two), (-one, -one)):
        sketches.half([first])
        sketches.minibatch([first + second])
    halves = (1 + float(2 * one @ two / (one @ one + two @ two)) + 1) / 3
    assert sketches.stats()["gradient_cosine"] == pytest.approx(halves, abs=0.02)
    # Of 2 a, a + b and -2 a: 2 - 4 - 2 over three pairs, over the mean square (4 + 2 + 4) / 3; a is about square to b.
    assert sketches.stats()["update_cosine"] == pytest.approx(-4 / 10, abs=0.05)


def test_the_noise_scale_is_that_of_the_gradients_it_was_drawn_from() -> None:
    # |G|^2 = 4 and tr(S) = 1000 of one group: 250 groups are half noise; a mini-batch of 50 has the cosine 4 / 24.
    torch.manual_seed(1)
    true = torch.zeros(1000)
    true[0] = 2.0
    cosines = [mean_cosine([true + torch.randn(1000) / 50**0.5 for _ in range(2)]) for _ in range(200)]
    assert None not in cosines
    mean = sum(cosine for cosine in cosines if cosine is not None) / 200
    assert mean == pytest.approx(4 / 24, abs=0.01)
    assert noise_scale(4 / 24, 50) == pytest.approx(250.0)
    assert noise_scale(-0.1, 50) == float("inf")
