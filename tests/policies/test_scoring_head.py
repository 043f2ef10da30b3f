"""Scores of chosen tokens by one call of the head: against plain log_softmax, and against finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all
from test_vision_language import PHRASES, images, shared_rows, tokens_of
from torch import Tensor, nn

from envs.codecs.path_tokens import Codec
from policies.families.base import PromptRows
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.sharing.packing import PackedRows
from policies.sharing.scoring_head import Neighbours, Scoring, ScoringHead, scores

TOKENS, WIDTH, VOCABULARY = 7, 5, 11
UNSAMPLED = torch.tensor([0, 9])
CHUNKS = (1, 3, 7)


def head_and_states(dtype: torch.dtype = torch.float64) -> tuple[ScoringHead, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    head.weight.data.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
    return ScoringHead.in_place_of(head), torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()


def scoring(chunks: int, neighbours: Neighbours | None = None) -> Scoring:
    per_chunk = -(-TOKENS // chunks)
    made = Scoring(torch.tensor([3, 1, 1, 8, 10, 2, 5]), UNSAMPLED, 0.7, 4 * VOCABULARY * per_chunk, None, neighbours)
    assert len(made.chunks(VOCABULARY)) == chunks
    return made


def around() -> Neighbours:
    """Numbers 1, 2 and 3; of the targets 3, 1, 1 and 2 are such."""
    weights = torch.zeros(TOKENS, 3, dtype=torch.float64)
    of_numbers = [[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.25, 0.5, 0.25]]
    weights[[0, 1, 2, 5]] = torch.tensor(of_numbers, dtype=torch.float64)
    return Neighbours(torch.tensor([1, 2, 3]), weights)


def by_log_softmax(head: ScoringHead, states: Tensor, asked: Scoring) -> Tensor:
    logits = nn.functional.linear(states, head.weight).index_fill(1, UNSAMPLED, -torch.inf)
    logprobs = torch.log_softmax(logits / asked.temperature, 1)
    found = []
    for token, target in enumerate(asked.targets.tolist()):
        if asked.neighbours is not None and target in (1, 2, 3):
            found.append(asked.neighbours.weights[token] @ logprobs[token, 1:4])
        else:
            found.append(logprobs[token, target])
    return torch.stack(found)


def test_two_equal_logits_and_one_that_cannot_be_chosen_give_log_a_half_and_slopes_of_a_half() -> None:
    head = ScoringHead.in_place_of(nn.Linear(1, 3, bias=False))
    head.weight.data.copy_(torch.tensor([[2.0], [2.0], [50.0]]))
    states = torch.ones(1, 1, requires_grad=True)
    score = head(states, scoring=Scoring(torch.tensor([0]), torch.tensor([2]), temperature=0.5))
    assert score.item() == pytest.approx(-0.693147, abs=1e-6)
    score.backward()
    assert head.weight.grad is not None and states.grad is not None
    # ds/dz = (w - p) / t = (1 - 1/2) / 0.5 = 1 and -1; the state's own are 2 - 2.
    assert head.weight.grad.flatten().tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert states.grad.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("neighbours", [None, around()])
def test_scores_and_gradients_are_those_of_log_softmax_to_a_rounding(
    chunks: int, neighbours: Neighbours | None
) -> None:
    head, states = head_and_states()
    asked = scoring(chunks, neighbours)
    weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    found, expected = head(states, scoring=asked), by_log_softmax(head, states, asked)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    slopes, right = (torch.autograd.grad((x * weights).sum(), [states, head.weight]) for x in (found, expected))
    for one, other in zip(slopes, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=0)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_a_bias_adds_to_the_logits_and_has_its_gradient(chunks: int) -> None:
    plain, states = head_and_states()
    head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
    head.weight, bias = plain.weight, head.bias
    asked, scored = scoring(chunks, around()), ScoringHead.in_place_of(head)
    assert scored.bias is bias and torch.equal(scored(states), head(states))
    # A bias is what a state of one more dimension, always 1, would add.
    wider = nn.Linear(WIDTH + 1, VOCABULARY, bias=False, dtype=torch.float64)
    wider.weight.data.copy_(torch.cat([head.weight, bias[:, None]], dim=1))
    found = scored(states, scoring=asked)
    expected = by_log_softmax(wider, torch.cat([states, torch.ones(TOKENS, 1)], dim=1), asked)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    weights = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    slopes = torch.autograd.grad((found * weights).sum(), [states, head.weight, bias])
    right = torch.autograd.grad((expected * weights).sum(), [states, wider.weight])
    for one, other in zip(slopes, [right[0], right[1][:, :-1], right[1][:, -1]], strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=0)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("neighbours", [None, around()])
def test_gradients_are_what_finite_differences_say(chunks: int, neighbours: Neighbours | None) -> None:
    head, states = head_and_states()

    def scored(states: Tensor, weight: Tensor) -> Tensor:
        head.weight = nn.Parameter(weight, requires_grad=False)
        del head._parameters["weight"]
        head.weight = weight  # type: ignore[assignment]  # gradcheck's own leaf
        found: Tensor = head(states, scoring=scoring(chunks, neighbours))
        del head.weight
        return found

    weight = head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(scored, (states, weight), atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_less_precision_scores_are_float32_and_gradients_have_the_dtype_of_states(dtype: torch.dtype) -> None:
    head, states = head_and_states(dtype)
    precise, same_states = head_and_states(torch.float64)
    with torch.no_grad():
        precise.weight.copy_(head.weight.double())
        same_states.copy_(states.double())
    found, expected = head(states, scoring=scoring(3)), precise(same_states, scoring=scoring(3))
    assert found.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)
    slopes = torch.autograd.grad(found.sum(), [states, head.weight])
    assert [slope.dtype for slope in slopes] == [dtype, dtype]
    right = torch.autograd.grad(expected.sum(), [same_states, precise.weight])
    for one, other in zip(slopes, right, strict=True):
        torch.testing.assert_close(one.double(), other, atol=10 * tolerance, rtol=0)


def test_a_frozen_head_or_states_without_gradient_get_none_and_no_tokens_are_no_trouble() -> None:
    head, states = head_and_states()
    head.weight.requires_grad_(False)
    head(states, scoring=scoring(3)).sum().backward()
    assert head.weight.grad is None and states.grad is not None and states.grad.abs().sum() > 0
    head.weight.requires_grad_(True)
    head(states.detach(), scoring=scoring(3)).sum().backward()
    assert head.weight.grad is not None
    empty = states[:0]
    nothing = head(empty, scoring=Scoring(torch.tensor([], dtype=torch.int64), UNSAMPLED))
    assert nothing.shape == (0,)
    nothing.sum().backward()


def scored_states(policy: Policy, rows: PromptRows) -> tuple[torch.Tensor, PackedRows]:
    """[S, width] the states that predict the scored places, and the rows as they were packed."""
    packed, positions = policy._packed(rows)
    return policy._last_states(rows, packed, positions).flatten(0, 1)[packed.predictors], packed


@pytest.mark.parametrize("grammar_tokens", [None, 48])
def test_what_the_learner_scores_is_what_the_sampler_would_have_said_of_each_token(
    tiny_untrained: Path, grammar_tokens: int | None
) -> None:
    policy = Policy(tiny_untrained, Codec(), logit_bytes=4096)
    rows = policy.rows(
        ask_all(images(2), PHRASES), tokens_of(policy, [["none", "1 2 30 40 0 0 5 5 0 5"], ["none", "none"]])
    )
    found = policy(rows, 0.7, grammar_tokens)
    states, packed = scored_states(policy, rows)
    targets, places = packed.targets, packed.places
    allowed = None
    if grammar_tokens is not None:
        masks = policy.processor.token_grammar().masks_of_rows(
            rows.response_tokens.flatten(0, 1).numpy(), rows.response_mask.flatten(0, 1).numpy(), grammar_tokens
        )
        allowed = policy.processor.token_grammar().allowed(np.ravel(masks)[places.numpy()])
    expected = policy._token_logprobs(states, 0.7, allowed).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.flatten()[places], expected, atol=2e-6, rtol=0)


def test_a_head_has_the_place_name_and_parameter_of_the_models_own(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec())
    assert isinstance(policy.model.lm_head, ScoringHead)
    assert policy.model.lm_head.weight is policy.model.get_input_embeddings().weight  # tied, as in the checkpoint
    assert "model.lm_head.weight" not in dict(policy.named_parameters())
    assert not any("scor" in name for name in policy.state_dict())


def test_a_head_with_an_adapter_is_called_once_and_gives_its_own_log_probabilities(tiny_untrained: Path) -> None:
    adapted = Policy(tiny_untrained, Codec(), logit_bytes=1, lora=LoraSettings(rank=2, targets=["lm_head"]))
    plain, calls = Policy(tiny_untrained, Codec()), []
    assert not isinstance(adapted.model.lm_head, ScoringHead)
    with torch.no_grad():
        up = adapted.model.lm_head.lora_B["default"].weight
        up.copy_(torch.linspace(-1, 1, up.numel()).view_as(up))
    handle = adapted.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    found = adapted(shared_rows(adapted), 0.7)
    handle.remove()
    assert calls == [1]
    states, packed = scored_states(adapted, shared_rows(adapted))
    targets, places = packed.targets, packed.places
    expected = adapted._token_logprobs(states, 0.7).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.flatten()[places], expected, atol=2e-6, rtol=0)
    assert (found - plain(shared_rows(plain), 0.7)).abs().max() > 0.01
    found.sum().backward()
    assert adapted.model.lm_head.lora_A["default"].weight.grad.abs().sum() > 0
    assert scores(plain.model.lm_head, states, Scoring(targets, plain._unsampled, 0.7)).shape == targets.shape
