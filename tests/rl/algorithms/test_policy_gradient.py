"""All algorithms on one group of two answers by hand, beside mutants that the same check must tell from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from envs.plugin import plugin_names
from rl.algorithms import dr_grpo, grpo, gspo, gspo_token
from rl.algorithms.base import (
    PolicyGradient,
    group_advantages,
    mean_over_tokens,
    per_token,
    sequence_log_ratio,
    token_divergence,
    token_log_ratio,
)

WIDE = {"clip_low": 0.2, "clip_high": 0.3, "std_floor": 0.5}
ALGORITHMS: dict[str, PolicyGradient] = {
    "gspo": gspo.Algorithm(**WIDE),
    "gspo_token": gspo_token.Algorithm(**WIDE),
    "grpo": grpo.Algorithm(**WIDE),
    "dr_grpo": dr_grpo.Algorithm(**WIDE, length_divisor=5),
}
NAMES = list(ALGORITHMS)
Loss = Callable[[PolicyGradient, Tensor, Tensor, Tensor, Tensor], Tensor]

# Rewards 0 and 1: advantages -0.5 and 0.5 under a floor of 0.5, and under Dr. GRPO without any divisor. What is in the
# padded place must not show.
CHANGES = [[-0.3, 0.2, 7.0], [0.4, 0.0, -0.2]]
MASK = torch.tensor([[[True, True, False], [True, True, True]]])
UP, DOWN = math.exp(0.2), math.exp(-0.2)
FIRST, SECOND = math.exp((-0.3 + 0.2) / 2), math.exp((0.4 - 0.2) / 3)
"""GSPO's ratios, both inside the clips. Of the tokens' own, exp(-0.3) is below 0.8 and exp(0.4) above 1.3."""
TOKEN_ADVANTAGES = [[1.0, -2.0, 0.0], [0.5, 0.0, 3.0]]


@dataclass(frozen=True)
class Golden:
    """Loss of the group, and its gradient by the new log-probabilities [G, T]."""

    loss: float
    gradient: list[list[float]]


GOLDEN = {
    "gspo": Golden(
        -(-0.5 * FIRST + 0.5 * SECOND) / 2,
        [[0.5 * FIRST / 2 / 2] * 2 + [0.0], [-0.5 * SECOND / 3 / 2] * 3],
    ),
    # With advantages a token, of which the ratios of GSPO know nothing.
    "gspo_token": Golden(
        -(FIRST * (1 - 2) / 2 + SECOND * (0.5 + 3) / 3) / 2,
        [[-FIRST / 2 / 2, 2 * FIRST / 2 / 2, 0.0], [-0.5 * SECOND / 3 / 2, 0.0, -3 * SECOND / 3 / 2]],
    ),
    "grpo": Golden(
        -((-0.4 - 0.5 * UP) / 2 + (0.65 + 0.5 + 0.5 * DOWN) / 3) / 2,
        [[0.0, 0.5 * UP / 2 / 2, 0.0], [0.0, -0.5 / 3 / 2, -0.5 * DOWN / 3 / 2]],
    ),
    "dr_grpo": Golden(
        -((-0.4 - 0.5 * UP) / 5 + (0.65 + 0.5 + 0.5 * DOWN) / 5) / 2,
        [[0.0, 0.5 * UP / 5 / 2, 0.0], [0.0, -0.5 / 5 / 2, -0.5 * DOWN / 5 / 2]],
    ),
}


def mean_loss(algorithm: PolicyGradient, new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    terms = algorithm.terms(new, old, mask, advantages)
    return algorithm.loss(terms, torch.full_like(terms.objective, 1 / terms.objective.numel()))


def golden_check(name: str, loss: Loss) -> None:
    """Fails unless `loss` has the loss and the gradient that were worked out by hand."""
    algorithm = ALGORITHMS[name]
    old = torch.tensor([[[-1.0, -2.0, -0.5], [-0.1, -3.0, -0.7]]], dtype=torch.float64)
    new = (old + torch.tensor([CHANGES], dtype=torch.float64)).requires_grad_()
    advantages, _ = algorithm.advantages(np.array([[0.0, 1.0]]))
    given_advantages = [TOKEN_ADVANTAGES] if name == "gspo_token" else advantages.tolist()
    value = loss(algorithm, new, old, MASK, torch.tensor(given_advantages, dtype=torch.float64))
    value.backward()
    np.testing.assert_allclose(value.item(), GOLDEN[name].loss, rtol=1e-12)
    np.testing.assert_allclose(new.grad[0].tolist(), GOLDEN[name].gradient, rtol=1e-12)


def without_length_normalisation(
    algorithm: PolicyGradient, new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor
) -> Tensor:
    change = token_log_ratio(new, old, mask)
    if type(algorithm) is gspo.Algorithm:
        return -algorithm.clip(change.sum(-1), advantages)[0].mean()
    if type(algorithm) is gspo_token.Algorithm:
        change = change - change.detach() + change.sum(-1, keepdim=True).detach()
        return -mean_over_tokens(algorithm.clip(change, advantages)[0], mask).mean()
    return -torch.where(mask, algorithm.clip(change, per_token(advantages))[0], 0.0).sum(-1).mean()


def padding_let_in(algorithm: PolicyGradient, new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    return mean_loss(algorithm, new, old, torch.ones_like(mask), advantages)


def a_sequence_ratio_at_every_token(
    algorithm: PolicyGradient, new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor
) -> Tensor:
    ratio = sequence_log_ratio(new, old, mask)[..., None].expand_as(new)
    objective, _, _ = algorithm.clip(ratio, per_token(advantages).expand_as(new))
    if type(algorithm) is gspo.Algorithm:  # a weight of its length for each answer, unless it is divided out again
        return -(objective * mask).sum(-1).mean()
    return -algorithm.pool(objective, mask).mean()


def test_there_are_four_algorithms_that_clip_ratios_and_one_that_has_none() -> None:
    assert plugin_names("rl.algorithms") == sorted([*NAMES, "best_of"])


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_of_a_group_equal_those_by_hand(name: str) -> None:
    golden_check(name, mean_loss)


@pytest.mark.parametrize("name", NAMES)
def test_dropping_the_length_normalisation_shows_in_that_group(name: str) -> None:
    with pytest.raises(AssertionError):
        golden_check(name, without_length_normalisation)


@pytest.mark.parametrize("name", NAMES)
def test_letting_padding_in_shows_in_that_group(name: str) -> None:
    with pytest.raises(AssertionError):
        golden_check(name, padding_let_in)


@pytest.mark.parametrize("name", NAMES)
def test_broadcasting_a_sequence_weight_over_tokens_shows_in_that_group(name: str) -> None:
    with pytest.raises(AssertionError):
        golden_check(name, a_sequence_ratio_at_every_token)


def random_group(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probabilities [3, 4, 5], mask, and advantages [3, 4]."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(3, 4, 5, dtype=torch.float64, generator=generator)
    new = old + 0.6 * torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (3, 4, 1), generator=generator)
    return new, old, mask, torch.randn(3, 4, dtype=torch.float64, generator=generator)


def central_differences(function: Callable[[Tensor], Tensor], at: Tensor) -> NDArray[np.float64]:
    steps = 1e-6 * torch.eye(at.numel(), dtype=at.dtype).reshape(at.numel(), *at.shape)
    slopes = [(function(at + step) - function(at - step)).item() / 2e-6 for step in steps]
    return np.array(slopes).reshape(at.shape)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> NDArray[np.float64]:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0].numpy()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    new, old, mask, advantages = random_group()
    algorithm = ALGORITHMS[name]
    clipped = algorithm.terms(new, old, mask, advantages).clipped
    assert 0 < clipped.sum() < clipped.numel() / 2  # clipped ones and free ones are both compared

    def loss(tensor: Tensor) -> Tensor:
        return mean_loss(algorithm, tensor, old, mask, advantages)

    np.testing.assert_allclose(gradient(loss, new), central_differences(loss, new), atol=1e-8)


def test_gspo_token_has_the_gradient_of_a_loss_that_holds_what_it_stops_fixed() -> None:
    new, old, mask, _ = random_group()
    advantages = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    held = sequence_log_ratio(new, old, mask)[..., None]

    def with_held_ratios(tensor: Tensor) -> Tensor:
        ratio = held.exp() * (tensor - new).exp()
        objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.3) * advantages)
        return -((objective * mask).sum(-1) / mask.sum(-1)).mean()

    def loss(tensor: Tensor) -> Tensor:
        return mean_loss(ALGORITHMS["gspo_token"], tensor, old, mask, advantages)

    assert loss(new).item() == pytest.approx(with_held_ratios(new).item(), rel=1e-12)
    np.testing.assert_allclose(gradient(loss, new), central_differences(with_held_ratios, new), atol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_gspo_token_is_gspo_where_all_tokens_have_their_answers_advantage(seed: int) -> None:
    new, old, mask, advantages = random_group(seed)
    losses = [partial(mean_loss, ALGORITHMS[name], old=old, mask=mask, advantages=advantages) for name in NAMES[:2]]
    assert losses[0](new).item() == pytest.approx(losses[1](new).item(), abs=1e-14)
    np.testing.assert_allclose(gradient(losses[0], new), gradient(losses[1], new), atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_ratios_of_ten_thousand_give_a_finite_loss_and_gradient(
    name: str, change: float, advantage: float, dtype: torch.dtype
) -> None:
    old = torch.zeros(1, 1, 2000, dtype=dtype)
    new = (old + change).requires_grad_()
    mask = torch.ones(1, 1, 2000, dtype=torch.bool)
    loss = mean_loss(ALGORITHMS[name], new, old, mask, torch.tensor([[advantage]], dtype=dtype))
    loss = loss + mean_over_tokens(token_divergence(new, old, mask), mask).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padding", [1e4, math.inf, math.nan])
def test_what_stands_in_padding_does_not_show(name: str, padding: float) -> None:
    new, old, mask, advantages = random_group()
    assert not mask.all()
    losses, gradients = [], []
    for value in (0.0, padding):
        filled = torch.where(mask, new, value)
        losses.append(mean_loss(ALGORITHMS[name], filled, old, mask, advantages).item())
        gradients.append(gradient(lambda t: mean_loss(ALGORITHMS[name], t, old, mask, advantages), filled))
    assert losses[0] == losses[1]
    assert np.array_equal(gradients[0], gradients[1])
    assert not gradients[1][~mask.numpy()].any()


def test_advantages_by_group_batch_and_none_by_hand() -> None:
    totals = np.array([[0.0, 1.0], [0.2, 0.4]])
    # Standard deviations: 0.5 and 0.1 of the groups, sqrt(0.14) of all four.
    np.testing.assert_allclose(group_advantages(totals, 0.1), [[-5 / 6, 5 / 6], [-0.5, 0.5]])
    batch = math.sqrt(0.14) + 0.1
    np.testing.assert_allclose(
        group_advantages(totals, 0.1, "batch"), [[-0.5 / batch, 0.5 / batch], [-0.1 / batch, 0.1 / batch]]
    )
    np.testing.assert_allclose(group_advantages(totals, 0.1, "none"), [[-0.5, 0.5], [-0.1, 0.1]])
    assert np.array_equal(group_advantages(totals[:1], 0.1, "batch"), group_advantages(totals[:1], 0.1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", ["group", "batch", "none"])
def test_a_group_without_signal_is_left_out_however_advantages_are_normalised(name: str, by: str) -> None:
    algorithm = type(ALGORITHMS[name])(normalise_by=by, std_floor=0.0)
    advantages, counts = algorithm.advantages(np.array([[0.1] * 3, [0.2, 0.4, 0.9]]))
    assert counts.tolist() == [False, True]
    assert advantages[0].tolist() == [0.0] * 3
    assert np.abs(advantages[1]).min() > 0.05


@given(logits=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6))
def test_the_divergence_is_never_negative_and_its_mean_under_the_policy_is_kl(logits) -> None:
    new, reference = torch.log_softmax(torch.tensor(logits, dtype=torch.float64).T, dim=-1)
    estimates = token_divergence(new[None, None], reference[None, None], torch.ones(1, 1, len(logits), dtype=bool))
    assert estimates.min() >= 0
    kl = (new.exp() * (new - reference)).sum().item()
    assert (new.exp() * estimates).sum().item() == pytest.approx(kl, abs=1e-12)


def test_the_divergence_of_a_token_half_as_likely_as_in_the_reference_by_hand() -> None:
    new = torch.tensor([[[-2.0, 5.0]]], dtype=torch.float64)
    reference, mask = new + math.log(2), torch.tensor([[[True, False]]])
    assert token_divergence(new, reference, mask)[0, 0].tolist() == pytest.approx([1 - math.log(2), 0.0])
    slope = gradient(lambda tensor: token_divergence(tensor, reference, mask).sum(), new)
    assert slope[0, 0].tolist() == pytest.approx([-1.0, 0.0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_low": 0.3, "clip_high": 0.2}, r"clip_low is 0.3, above clip_high 0.2.*clip_low to 0.2 or less"),
        ({"clip_low": math.nan}, "clip_low is nan"),
        ({"clip_high": math.inf}, "clip_high is inf; set it to more than 0, and finite"),
        ({"kl": -0.1}, "algorithm.kl is -0.1; set it to 0 or more"),
        ({"std_floor": math.nan}, "std_floor is nan"),
        ({"min_std": math.inf}, "min_std is inf"),
        ({"normalise_by": "bacth"}, r"normalise_by is 'bacth'; did you mean 'batch'\? Set it to group, batch or none"),
    ],
)
def test_senseless_settings_are_refused_with_their_value(name: str, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type(ALGORITHMS[name])(**wrong)


def test_dr_grpo_cannot_divide_by_no_length() -> None:
    with pytest.raises(ValueError, match=r"length_divisor is 0; set it to 1 or more, such as sampling.max_tokens"):
        dr_grpo.Algorithm(length_divisor=0)
