"""Truncated importance weights by hand, in the loss of every algorithm, and out of the way where they are off."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.example import ImageRef
from policies.families.base import PromptRows
from rl.algorithms import dr_grpo, grpo, gspo, gspo_token
from rl.algorithms.base import PolicyGradient, importance_weights
from rl.learner.batches.batch import Batch
from rl.learner.batches.micro_batches import MicroBatch, MiniBatch, micro_batch_loss
from rl.learner.batches.stats import Mean, MicroBatchStats

ALGORITHMS = {"gspo": gspo.Algorithm, "gspo_token": gspo_token.Algorithm, "grpo": grpo.Algorithm}
ALGORITHMS["dr_grpo"] = dr_grpo.Algorithm
MASK = torch.tensor([[[True, True, False], [True, True, True]]])
SAMPLER = torch.tensor([[[-1.0, -2.0, 0.0], [-0.5, -1.5, -2.5]]])
LEARNER = SAMPLER + torch.log(torch.tensor([[[2.0, 1.5, 100.0], [0.5, 3.0, 1.0]]]))
"""The learner finds the tokens 2, 1.5, 0.5, 3 and 1 times as likely; what is in the padded place must not show."""


def loss_of(algorithm: PolicyGradient, new: Tensor, old: Tensor = LEARNER) -> tuple[Tensor, MicroBatchStats]:
    """micro_batch_loss of one group of two answers, of 2 and 3 tokens, with advantages of 1 and -0.5."""
    sampled = tuple(SAMPLER[0, g][MASK[0, g]].numpy() for g in range(2))
    tokens = tuple(np.zeros(len(values), np.int64) for values in sampled)
    image = ImageRef("image", "0" * 64, 4, 4)
    part = Batch((image,), ("it",), (tokens,), (sampled,), np.array([[1.0, -0.5]], np.float32), np.array([True]))
    empty = torch.zeros(0)
    rows = PromptRows(empty, empty, empty, empty, torch.zeros_like(MASK, dtype=torch.int64), MASK, MASK)
    return micro_batch_loss(algorithm, MicroBatch(part, rows, True, MiniBatch(2, 1)), new, old)


def loss_and_gradient(algorithm: PolicyGradient, moved: Tensor, old: Tensor = LEARNER) -> tuple[float, Tensor]:
    new = (old + moved).requires_grad_()
    loss, _ = loss_of(algorithm, new, old)
    loss.backward()
    assert new.grad is not None
    return loss.item(), new.grad


def test_a_weight_of_an_answer_is_the_product_over_its_tokens_and_of_a_token_its_own() -> None:
    whole = importance_weights(LEARNER, SAMPLER, MASK, "sequence")
    torch.testing.assert_close(whole, torch.tensor([[[3.0], [1.5]]]))
    own = importance_weights(LEARNER, SAMPLER, MASK, "token")
    torch.testing.assert_close(own, torch.tensor([[[2.0, 1.5, 1.0], [0.5, 3.0, 1.0]]]))
    assert not importance_weights(LEARNER.clone().requires_grad_(), SAMPLER, MASK, "token").requires_grad


def test_a_log_weight_of_ten_thousand_or_of_minus_infinity_stays_finite() -> None:
    for level in ("sequence", "token"):
        for change, weight in ((1e4, math.exp(10)), (-1e4, math.exp(-10)), (-math.inf, math.exp(-10))):
            found = importance_weights(SAMPLER + change, SAMPLER, MASK, level)
            torch.testing.assert_close(found[MASK if level == "token" else ...].unique(), torch.tensor([weight]))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_with_weights_of_answers_each_ones_part_of_loss_and_gradient_is_multiplied_by_its_weight(name: str) -> None:
    moved = torch.tensor([[[1e-3, -2e-3, 0.0], [2e-3, 0.0, 1e-3]]])
    plain, slope = loss_and_gradient(ALGORITHMS[name](), moved)
    weighed, weighed_slope = loss_and_gradient(ALGORITHMS[name](importance_cap=2.0), moved)
    # 3 is cut to 2, 1.5 stays.
    torch.testing.assert_close(weighed_slope, slope * torch.tensor([[[2.0], [1.5]]]))
    objectives = ALGORITHMS[name]().terms(LEARNER + moved, LEARNER, MASK, torch.tensor([[1.0, -0.5]])).objective
    assert plain == pytest.approx(-objectives.mean().item(), rel=1e-6)
    assert weighed == pytest.approx(-(objectives * torch.tensor([[2.0, 1.5]])).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Where the policy has not moved, x is 1: a loss is minus the mean over answers of A times the pooled weights.
        ("gspo", [[1.75 / 4] * 2 + [0.0], [-0.5 * 3.5 / 3 / 6] * 3]),
        ("grpo", [[2.0 / 4, 1.5 / 4, 0.0], [-0.5 * 0.5 / 6, -0.5 * 2 / 6, -0.5 / 6]]),
        ("gspo_token", [[2.0 / 4, 1.5 / 4, 0.0], [-0.5 * 0.5 / 6, -0.5 * 2 / 6, -0.5 / 6]]),
        ("dr_grpo", [[2.0 / 256, 1.5 / 256, 0.0], [-0.5 * 0.5 / 256, -0.5 * 2 / 256, -0.5 / 256]]),
    ],
)
def test_with_weights_of_tokens_the_gradient_is_that_by_hand(name: str, expected: list[list[float]]) -> None:
    algorithm = ALGORITHMS[name](importance_cap=2.0, importance_level="token")
    _, slope = loss_and_gradient(algorithm, torch.zeros(1, 2, 3))
    torch.testing.assert_close(-slope, torch.tensor([expected]))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_sampler_that_agrees_to_the_bit_leaves_loss_and_gradient_to_the_bit(name: str, level: str) -> None:
    moved = torch.tensor([[[1e-3, -2e-3, 0.0], [0.5, 0.0, 1e-3]]])
    off = loss_and_gradient(ALGORITHMS[name](), moved, old=SAMPLER)
    on = loss_and_gradient(ALGORITHMS[name](importance_cap=2.0, importance_level=level), moved, old=SAMPLER)
    assert on[0] == off[0]
    if (name, level) == ("gspo", "token"):  # a mean of equal advantages is rounded
        torch.testing.assert_close(on[1], off[1])
    else:
        assert torch.equal(on[1], off[1])


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_weights_and_ratios_of_ten_thousand_give_a_finite_loss_and_gradient(name: str, level: str) -> None:
    algorithm = ALGORITHMS[name](importance_cap=1e30, importance_level=level)
    for change in (1e4, -1e4):
        for moved in (1e4, -1e4):
            loss, slope = loss_and_gradient(algorithm, torch.full((1, 2, 3), moved), old=SAMPLER + change)
            assert math.isfinite(loss) and bool(torch.isfinite(slope).all())


def test_weights_are_logged_as_used_and_not_at_all_where_they_are_off() -> None:
    _, stats = loss_of(gspo.Algorithm(importance_cap=2.0), LEARNER)
    mean, largest, capped = (stats[f"importance_{name}"] for name in ("mean", "max", "capped"))
    assert (mean, largest, capped) == (Mean(pytest.approx(1.75), 2), Mean(2.0, 2), Mean(0.5, 2))
    _, stats = loss_of(gspo.Algorithm(importance_cap=2.0, importance_level="token"), LEARNER)
    assert stats["importance_mean"] == Mean(pytest.approx((2 + 1.5 + 0.5 + 2 + 1) / 5), 5)
    assert stats["importance_capped"] == Mean(pytest.approx(0.2), 5)
    assert not [name for name in loss_of(gspo.Algorithm(), LEARNER)[1] if name.startswith("importance")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"importance_cap": 0.0}, "importance_cap is 0.0; set it to more than 0"),
        ({"importance_cap": -1.0}, "importance_cap is -1.0"),
        ({"importance_cap": math.nan}, "importance_cap is nan"),
        ({"importance_cap": math.inf}, "importance_cap is inf"),
        ({"importance_level": "sequences"}, "'sequences'; did you mean 'sequence'"),
        ({"importance_level": "word"}, "set it to sequence or token"),
    ],
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_senseless_settings_are_refused_with_their_value(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALGORITHMS[name](**wrong)
