import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.algorithms.base import (
    MAX_LOG_RATIO,
    clipped_objective,
    group_advantages,
    groups_with_signal,
    sequence_log_ratio,
)
from rl.algorithms.gspo import Algorithm

WIDE = Algorithm(clip_low=0.2, clip_high=0.3, std_floor=0.5)
LossAndGradient = tuple[float, list[list[float]]]

# One group of two answers, of 2 and 3 tokens, rewards 0 and 1, floor 0.5: advantages -0.5 and 0.5.
# Mean log ratios (0.2 - 0.1) / 2 = 0.05 and (-0.3 + 0 + 0.15) / 3 = -0.05; ratios exp(0.05) and exp(-0.05), both
# inside the clips.
CHANGES = [[0.2, -0.1, 0.0], [-0.3, 0.0, 0.15]]
MASK = torch.tensor([[[True, True, False], [True, True, True]]])
BY_HAND: LossAndGradient = (
    -(-0.5 * math.exp(0.05) + 0.5 * math.exp(-0.05)) / 2,
    [[0.5 * math.exp(0.05) / 2 / 2] * 2 + [0.0], [-0.5 * math.exp(-0.05) / 2 / 3] * 3],
)


def one_group(loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> LossAndGradient:
    """Loss of the group above, and its gradient with respect to the new log-probabilities."""
    old = torch.tensor([[[-1.0, -2.0, -0.5], [-0.1, -3.0, -0.7]]], dtype=torch.float64)
    new = (old + torch.tensor([CHANGES], dtype=torch.float64)).requires_grad_()
    advantages, _ = WIDE.advantages(np.array([[0.0, 1.0]]))
    value = loss(new, old, MASK, torch.from_numpy(advantages))
    value.backward()
    return value.item(), new.grad[0].tolist()


def mean_loss(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    return WIDE.loss(WIDE.terms(new, old, mask, advantages), torch.full_like(advantages, 1 / advantages.numel()))


def without_length_normalisation(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    log_ratio = torch.where(mask, new - old, 0.0).sum(-1)
    return -WIDE.clip(log_ratio, advantages)[0].mean()


def a_ratio_a_token(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    objective, _, _ = WIDE.clip(new - old, advantages[..., None])
    return -((objective * mask).sum(-1) / mask.sum(-1)).mean()


def a_mean_over_all_tokens(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    terms = WIDE.terms(new, old, mask, advantages)
    return -(terms.objective[..., None] * mask).sum() / mask.sum()


def a_mean_over_padding_too(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    log_ratio = torch.where(mask, new - old, 0.0).mean(-1)
    return -WIDE.clip(log_ratio, advantages)[0].mean()


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_every_token_0_1_likelier_gives_a_ratio_of_exp_0_1_at_any_length(length: int) -> None:
    old = -torch.rand(1, 1, 50, dtype=torch.float64)
    mask = torch.arange(50)[None, None] < length
    new = torch.where(mask, old + 0.1, old + 7.0)
    ratio = WIDE.terms(new, old, mask, torch.ones(1, 1)).ratio
    assert ratio.item() == pytest.approx(1.1051709180756477, rel=1e-12)


def test_the_ratio_of_a_policy_that_has_not_moved_and_of_an_answer_without_tokens_is_exactly_one() -> None:
    logprobs, mask = -torch.rand(2, 3, 4), torch.arange(4).expand(2, 3, 4) < torch.arange(3)[:, None]
    assert torch.equal(sequence_log_ratio(logprobs, logprobs, mask).exp(), torch.ones(2, 3))
    assert sequence_log_ratio(logprobs + 1, logprobs, mask)[:, 0].tolist() == [0.0, 0.0]


def test_loss_and_gradient_of_a_group_equal_those_by_hand() -> None:
    loss, gradient = one_group(mean_loss)
    assert loss == pytest.approx(BY_HAND[0], rel=1e-12)
    assert loss == pytest.approx(0.0250104, abs=1e-7)
    np.testing.assert_allclose(gradient, BY_HAND[1], rtol=1e-12)
    np.testing.assert_allclose(gradient[1], [-0.0792691] * 3, atol=1e-7)


@pytest.mark.parametrize(
    "other", [without_length_normalisation, a_ratio_a_token, a_mean_over_all_tokens, a_mean_over_padding_too]
)
def test_other_losses_give_other_numbers_in_that_group(other: Callable[..., Tensor]) -> None:
    loss, gradient = one_group(other)
    assert abs(loss - BY_HAND[0]) > 1e-3
    assert np.abs(np.subtract(gradient, BY_HAND[1])).max() > 1e-3


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [
        (1.1, 2.0, 2.2, False),
        (1.5, 2.0, 2.6, True),
        (1.5, -2.0, -3.0, False),
        (0.9, -2.0, -1.8, False),
        (0.5, -2.0, -1.6, True),
        (0.5, 2.0, 1.0, False),
    ],
)
def test_objective_and_gradient_inside_and_outside_the_clips(
    length: int, ratio: float, advantage: float, objective: float, clipped: bool
) -> None:
    old = torch.linspace(-3, -1, length, dtype=torch.float64)[None, None]
    new = (old + math.log(ratio)).requires_grad_()
    terms = WIDE.terms(new, old, torch.ones(1, 1, length, dtype=torch.bool), torch.tensor([[advantage]]))
    WIDE.loss(terms, torch.ones(1, 1)).backward()
    assert terms.objective.item() == pytest.approx(objective, rel=1e-12)
    assert terms.clipped.item() is clipped
    slope = 0.0 if clipped else -advantage * ratio / length
    assert new.grad.flatten().tolist() == pytest.approx([slope] * length, rel=1e-12)


def test_the_upper_and_the_lower_clip_are_told_apart() -> None:
    log_ratio = torch.tensor([[1.25, 0.75]], dtype=torch.float64).log()
    objective, _, clipped = clipped_objective(log_ratio, torch.tensor([[1.0, -1.0]]), 0.2, 0.3)
    assert clipped.tolist() == [[False, True]]
    assert objective[0].tolist() == pytest.approx([1.25, -0.8])


@pytest.mark.parametrize("padding", [0.0, -1e30, math.inf, -math.inf, math.nan])
def test_masked_tokens_leave_loss_and_gradient_untouched(padding: float) -> None:
    old = torch.tensor([[[-1.0, -2.0, padding], [-0.5, padding, padding]]], dtype=torch.float64)
    new = torch.tensor([[[-1.1, -1.8, padding], [-0.6, -padding, padding]]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    loss = mean_loss(new, old, mask, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(-(math.exp(0.05) - math.exp(-0.1)) / 2, rel=1e-12)
    slope = -math.exp(0.05) / 2 / 2
    expected = [[slope, slope, 0.0], [math.exp(-0.1) / 2, 0.0, 0.0]]
    np.testing.assert_allclose(new.grad[0], expected, rtol=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_a_constant_group_has_zero_advantages_and_zero_gradient_and_is_reported(reward: float, floor: float) -> None:
    algorithm = Algorithm(std_floor=floor)
    advantages, counts = algorithm.advantages(np.array([[reward] * 3, [0.2, 0.4, 0.9]]))
    assert counts.tolist() == [False, True]
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    new = torch.full((2, 3, 4), -1.0, dtype=torch.float64, requires_grad=True)
    terms = algorithm.terms(new, new.detach() + 1e-3, torch.ones(2, 3, 4, dtype=torch.bool), torch.tensor(advantages))
    weights = torch.tensor(counts)[:, None].expand(2, 3).double() / 3
    algorithm.loss(terms, weights).backward()
    assert new.grad[0].abs().max() == 0
    assert new.grad[1].abs().min() > 1e-3


def test_advantages_of_rewards_0_and_1_by_hand() -> None:
    rewards = np.array([[0.0, 1.0]])
    assert group_advantages(rewards, 0.0).tolist() == [[-1.0, 1.0]]
    assert group_advantages(rewards, 0.5).tolist() == [[-0.5, 0.5]]
    # Standard deviation of the whole group, not of a sample: sqrt(2) / 3 for 0, 0, 1.
    np.testing.assert_allclose(
        group_advantages(np.array([[0.0, 0.0, 1.0]]), 0.0), [[-(0.5**0.5), -(0.5**0.5), 2**0.5]], rtol=1e-12
    )


def test_a_group_counts_from_a_spread_above_the_least_one() -> None:
    totals = np.array([[0.5, 0.5], [0.5, 0.52], [0.0, 1.0]])
    assert groups_with_signal(totals, 0.0101).tolist() == [False, False, True]
    assert groups_with_signal(totals, 0.0099).tolist() == [False, True, True]


def test_gradient_agrees_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    new = (old + torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)).requires_grad_()
    mask = torch.arange(5) < torch.randint(1, 6, (3, 4, 1), generator=generator)
    advantages = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    terms = WIDE.terms(new, old, mask, advantages)
    assert 0 < terms.clipped.sum() < 12
    assert torch.autograd.gradcheck(lambda tensor: mean_loss(tensor, old, mask, advantages), (new,))


@pytest.mark.parametrize("change", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_log_ratio_of_1000_a_token_stays_finite(change: float, advantage: float, dtype: torch.dtype) -> None:
    old = torch.zeros(1, 1, 3, dtype=dtype)
    new = (old + change).requires_grad_()
    terms = WIDE.terms(new, old, torch.ones(1, 1, 3, dtype=torch.bool), torch.tensor([[advantage]], dtype=dtype))
    loss = WIDE.loss(terms, torch.ones(1, 1, dtype=dtype))
    loss.backward()
    assert terms.ratio.item() == pytest.approx(math.exp(math.copysign(MAX_LOG_RATIO, change)), rel=0.01)
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()


@given(
    rewards=st.lists(st.floats(0, 1), min_size=2, max_size=8),
    floor=st.floats(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_advantages_follow_their_answers_when_a_group_is_reordered(rewards, floor, order) -> None:
    places = list(range(len(rewards)))
    order.shuffle(places)
    totals = np.array([rewards])
    advantages, counts = Algorithm(std_floor=floor).advantages(totals)
    reordered, same_counts = Algorithm(std_floor=floor).advantages(totals[:, places])
    np.testing.assert_allclose(reordered, advantages[:, places], rtol=1e-6, atol=1e-9)
    assert counts.tolist() == same_counts.tolist()


@given(rewards=st.lists(st.floats(0, 1), min_size=2, max_size=8), shift=st.floats(-5, 5))
def test_advantages_add_up_to_zero_and_ignore_a_common_shift(rewards, shift) -> None:
    advantages = group_advantages(np.array([rewards, rewards]) + np.array([[0.0], [shift]]), 0.01)
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(advantages[0], advantages[1], atol=1e-9)


def test_weights_of_one_over_the_answers_that_count_leave_the_other_groups_out_of_the_mean() -> None:
    new = torch.tensor([[[0.1], [0.1]], [[0.2], [0.2]]], dtype=torch.float64)
    terms = WIDE.terms(new, torch.zeros_like(new), torch.ones(2, 2, 1, dtype=torch.bool), torch.ones(2, 2))
    weights = torch.tensor([[0.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    assert WIDE.loss(terms, weights).item() == pytest.approx(-math.exp(0.2))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("clip_low", 0.0), ("clip_low", 1.0), ("clip_high", 0.0), ("std_floor", -0.1), ("min_std", -1.0)],
)
def test_impossible_settings_are_refused_with_their_value(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{setting}.* {value}"):
        Algorithm(**{setting: value})
