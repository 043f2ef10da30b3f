"""The entropy term of an algorithm, by hand and against the gradient of an entropy that is summed over all answers."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus
from policies.families.base import Response
from rl.algorithms import best_of, gspo, gspo_token
from rl.algorithms.base import entropy_advantages
from rollout.records import Group, Rollout
from tests.made_run import group_of

IMAGE = ImageRef("image", "0" * 64, 8, 8)
EXAMPLE = Example("e", IMAGE, Prompt.of_text("a"), Truth(np.ones((1, 8, 8), np.bool_)), "train", "made", "CC0-1.0")


def group(logprobs: list[list[float]], totals: tuple[float, ...]) -> Group:
    """Answers of these tokens' log-probabilities, with these totals."""
    rollouts = []
    for k, values in enumerate(logprobs):
        response = Response(np.zeros(len(values), np.int64), np.array(values, np.float32), "stop")
        rollouts.append(Rollout(k, response, "", Answer(AnswerStatus.EMPTY), 0, 0, 0.0, {}, 0, k))
    return replace(group_of("run", 0, 0, EXAMPLE, tuple(rollouts)), totals=totals)


def test_the_rarer_answer_gains_what_the_likelier_one_loses() -> None:
    # Log-probabilities -3 and -1, mean -2: 1 and -1, times 0.1. Of rewards 0 and 1 with a floor of 0.5: -0.5 and 0.5.
    asked = [group([[-1.0, -2.0], [-1.0]], (0.0, 1.0))]
    plain = gspo.Algorithm(std_floor=0.5).of_groups(asked)
    spread = gspo.Algorithm(std_floor=0.5, entropy=0.1).of_groups(asked)
    drawn = gspo.Algorithm(std_floor=0.5, entropy=-0.1).of_groups(asked)
    assert plain.values.tolist() == [[-0.5, 0.5]]
    assert spread.values[0].tolist() == pytest.approx([-0.4, 0.4])
    assert drawn.values[0].tolist() == pytest.approx([-0.6, 0.6])


def test_a_group_without_signal_stays_without_an_advantage() -> None:
    found = gspo.Algorithm(entropy=0.1).of_groups([group([[-3.0], [-1.0]], (0.5, 0.5))])
    assert found.values.tolist() == [[0.0, 0.0]] and found.counts.tolist() == [False]


def test_tokens_with_credit_of_their_own_keep_the_mean_that_entropy_gave_their_answer() -> None:
    asked = [group([[-1.0, -2.0], [-1.0]], (0.0, 1.0))]
    found = gspo_token.Algorithm(std_floor=0.5, entropy=0.1, vertex_credit=0.5).of_groups(asked)
    assert found.of_tokens is not None
    assert [float(values.mean()) for values in found.of_tokens[0]] == pytest.approx([-0.4, 0.4])


def test_imitation_of_the_best_has_no_entropy() -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.entropy is 0\.1, but best_of imitates the best answers"):
        best_of.Algorithm(entropy=0.1)


def all_answers(logits: torch.Tensor) -> torch.Tensor:
    """[A] log-probability of every answer of two tokens, the second of which depends on the first."""
    answers = np.array(list(product(range(3), range(3))))
    first, second = logits[0].log_softmax(-1), logits[1:].log_softmax(-1)
    return first[answers[:, 0]] + second[answers[:, 0], answers[:, 1]]


def test_over_all_answers_it_is_the_gradient_of_their_entropy() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.5], [0.1, 0.9, 0.0], [2.0, 0.0, -1.0], [0.0, 0.0, 1.5]], dtype=torch.float64)
    logits.requires_grad_()
    logprobs = all_answers(logits)
    (-(logprobs.exp() * logprobs).sum()).backward()
    assert logits.grad is not None
    true = logits.grad.clone()

    # A group of 40,000 in which each answer comes as often as it is likely: counts in place of samples.
    logits.grad = None
    logprobs = all_answers(logits)
    times = (logprobs.detach().exp() * 40_000).round().long()
    sampled = logprobs.detach().repeat_interleave(times)
    advantages = torch.from_numpy(entropy_advantages(sampled.numpy()[None])[0])
    (advantages * logprobs.repeat_interleave(times)).mean().backward()
    assert torch.allclose(logits.grad, true, atol=1e-4)
    assert true.abs().max() > 0.05
