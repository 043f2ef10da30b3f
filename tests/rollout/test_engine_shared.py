from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, ask_all
from numpy.typing import NDArray
from scipy.stats import chisquare

from envs.codecs.path_tokens import Codec
from policies.families.base import PromptRows, Response
from policies.families.vision_language import Policy
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache
from rollout.engines.base import uniforms
from rollout.engines.shared import Engine, sample
from rollout.settings import Sampling

PHRASES = ["dog", "the upper left banana", "cat"]


@pytest.fixture(scope="module")
def policy(tiny_untrained: Path) -> Policy:
    return Policy(tiny_untrained, Codec())


class Counting(Policy):
    """A policy that notes how many prompts and answers it is asked for at a time."""

    def __init__(self, checkpoint: Path, codec: Codec) -> None:
        super().__init__(checkpoint, codec)
        self.encoded: list[int] = []
        self.decoded: list[int] = []

    def encode(self, rows: PromptRows) -> EncodedPrompts:
        self.encoded.append(len(rows.prompt_tokens))
        return super().encode(rows)

    def decode(
        self,
        cache: PromptCache,
        tokens: torch.Tensor,
        temperature: float,
        allowed: torch.Tensor | None = None,
        bins: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.decoded.append(tokens.numel())
        return super().decode(cache, tokens, temperature, allowed, bins)


def images(num: int) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8))


def questions(policy: Policy, num: int) -> PromptRows:
    return policy.rows(ask_all(images(num), PHRASES[:num]), [[np.array([policy.processor.end_token])]] * num)


def draws_of(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random(shape)


def tokens_of(responses: list[Response]) -> list[list[int]]:
    return [response.tokens.tolist() for response in responses]


def possible(policy: Policy) -> list[int]:
    """The tokens that can be sampled."""
    return [
        policy.processor.end_token,
        *sorted(set(range(len(policy.processor.tokenizer))) - set(policy.processor.tokenizer.all_special_ids)),
    ]


def greedy_by_forward(
    policy: Policy, image: NDArray[np.uint8], phrase: str, length: int
) -> tuple[list[int], list[float]]:
    """The likeliest token again and again, each found by a forward pass over all that are possible."""
    answer: list[int] = []
    logprobs: list[float] = []
    for _ in range(length):
        candidates = [np.array([*answer, token]) for token in possible(policy)]
        scores = policy(policy.rows([ask(image, phrase)], [candidates]))[0, :, len(answer)]
        answer.append(possible(policy)[int(scores.argmax())])
        logprobs.append(scores.max().item())
        if answer[-1] == policy.processor.end_token:
            break
    return answer, logprobs


@torch.no_grad()
def sample_without_leaving(
    policy: Policy, rows: PromptRows, temperature: float, draws: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All answers [N, T] drawn to the last token, whatever they said, one token and one answer at a time."""
    b, g, most = draws.shape
    tokens, chosen_logprobs = np.zeros((b * g, most), np.int64), np.zeros((b * g, most), np.float32)
    cache = PromptCache(policy.encode(rows), g, most)
    last = cache.prompts.last_tokens[:, None].expand(b, g)
    for t in range(most):
        logprobs = policy.decode(cache, last, temperature)
        for k in range(b * g):
            probabilities = logprobs[k].double().exp().numpy()
            passed = probabilities.cumsum() > draws.reshape(b * g, most)[k, t] * probabilities.cumsum()[-1]
            tokens[k, t] = passed.argmax()
            chosen_logprobs[k, t] = logprobs[k, tokens[k, t]]
        last = torch.from_numpy(tokens[:, t]).view(b, g)
    return tokens, chosen_logprobs


def test_greedy_takes_the_likeliest_token_of_forward_and_reports_it_at_temperature_one(policy: Policy) -> None:
    responses = sample(policy, questions(policy, 2), Sampling(0.0, 6), np.zeros((2, 1, 6)))
    for k, response in enumerate(responses):
        tokens, logprobs = greedy_by_forward(policy, images(2)[k], PHRASES[k], 6)
        assert response.tokens.tolist() == tokens
        np.testing.assert_allclose(response.logprobs, logprobs, atol=1e-5)


def test_greedy_answers_ignore_the_draws(policy: Policy) -> None:
    rows = questions(policy, 2)
    first = sample(policy, rows, Sampling(0.0, 8), draws_of(2, 3, 8))
    second = sample(policy, rows, Sampling(0.0, 8), draws_of(2, 3, 8, seed=1))
    assert tokens_of(first) == tokens_of(second)
    assert len({tuple(tokens) for tokens in tokens_of(first)[:3]}) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_evenly_spaced_draws_give_every_token_its_share_to_within_one(policy: Policy, temperature: float) -> None:
    rows, num = questions(policy, 1), 2000
    draws = ((np.arange(num) + 0.5) / num).reshape(1, num, 1)
    responses = sample(policy, rows, Sampling(temperature, 1), draws)
    counts = np.bincount([response.tokens[0] for response in responses], minlength=len(policy.processor.tokenizer))
    prompts = policy.encode(rows)
    logprobs = policy.decode(PromptCache(prompts, 1, 1), prompts.last_tokens[:, None], temperature)
    probabilities = logprobs[0].detach().double().exp().numpy()
    assert np.abs(counts - num * probabilities).max() < 1.01
    assert counts.max() > 3 * num / len(policy.processor.tokenizer)  # far enough from uniform to mean something


def test_frequencies_of_second_tokens_match_their_probabilities(policy: Policy) -> None:
    rows, num = questions(policy, 1), 3000
    draws = draws_of(1, num, 2, seed=5)
    draws[..., 0] = 0.5  # the same first token for all
    responses = sample(policy, rows, Sampling(1.0, 2), draws)
    first = responses[0].tokens[0]
    assert {response.tokens[0] for response in responses} == {first}
    candidates = [np.array([first, token]) for token in possible(policy)]
    probabilities = (
        policy(policy.rows(ask_all(images(1), PHRASES[:1]), [candidates]))[0, :, 1].detach().double().exp().numpy()
    )
    counts = np.bincount([response.tokens[1] for response in responses], minlength=len(policy.processor.tokenizer))
    counts = counts[possible(policy)]
    assert counts.sum() == num
    often = num * probabilities >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(probabilities[often], 1 - probabilities[often].sum()) * num
    assert often.sum() > 30
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01


def test_the_lowest_and_the_highest_draw_still_give_a_possible_token(policy: Policy) -> None:
    draws = np.array([0.0, np.nextafter(1.0, 0.0)]).reshape(1, 2, 1)
    lowest, highest = sample(policy, questions(policy, 1), Sampling(1.0, 1), draws)
    assert lowest.tokens.tolist() == [policy.processor.end_token]  # the first id that can be sampled
    assert highest.tokens.tolist() == [len(policy.processor.tokenizer) - 1]


def test_equal_batches_and_draws_give_equal_answers_to_the_bit(policy: Policy) -> None:
    first, again = (sample(policy, questions(policy, 3), Sampling(1.0, 30), draws_of(3, 4, 30)) for _ in range(2))
    assert tokens_of(first) == tokens_of(again)
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(first, again, strict=True))


def test_an_answer_depends_on_its_own_draws_whatever_stands_beside_it(policy: Policy) -> None:
    draws = draws_of(3, 4, 20)
    together = sample(policy, questions(policy, 3), Sampling(1.0, 20), draws)
    shuffled = sample(policy, questions(policy, 3), Sampling(1.0, 20), draws[:, [2, 0, 3, 1]])
    for b in range(3):
        group = together[4 * b : 4 * b + 4]
        assert tokens_of(shuffled)[4 * b : 4 * b + 4] == [tokens_of(group)[k] for k in (2, 0, 3, 1)]
    alone = policy.rows(ask_all(images(3)[1:2], PHRASES[1:2]), [[np.array([policy.processor.end_token])]])
    assert tokens_of(sample(policy, alone, Sampling(1.0, 20), draws[1:2])) == tokens_of(together)[4:8]


def test_answers_that_leave_when_finished_change_none_of_the_others(policy: Policy) -> None:
    draws = draws_of(2, 24, 16)
    responses = sample(policy, questions(policy, 2), Sampling(1.0, 16), draws)
    tokens, logprobs = sample_without_leaving(policy, questions(policy, 2), 1.0, draws)
    finished = [len(response.tokens) for response in responses if response.finish == "stop"]
    assert 12 < len(finished) < 48  # more than a quarter of them left, and some stayed to the end
    for k, response in enumerate(responses):
        ends = np.flatnonzero(tokens[k] == policy.processor.end_token)
        length = ends[0] + 1 if len(ends) else 16
        assert response.tokens.tolist() == tokens[k, :length].tolist()
        np.testing.assert_allclose(response.logprobs, logprobs[k, :length], atol=1e-4)


@pytest.mark.parametrize("grammar", [False, True])
def test_groups_that_enter_as_others_leave_get_the_answers_they_would_get_together(
    policy: Policy, grammar: bool
) -> None:
    num, draws = 7, draws_of(7, 4, 24)
    draws[np.random.default_rng(1).random(draws.shape) < 0.08] = 0.0  # the end, so that groups leave at many times
    phrases = [PHRASES[k % 3] for k in range(num)]
    rows = policy.rows(ask_all(images(num), phrases), [[np.array([policy.processor.end_token])]] * num)
    together = sample(policy, rows, Sampling(1.0, 24, grammar), draws)
    assert len({len(response.tokens) for response in together}) > 5
    for max_answers in (1, 8, 13):
        entering = sample(policy, rows, Sampling(1.0, 24, grammar), draws, max_answers)
        assert tokens_of(entering) == tokens_of(together)
        for found, expected in zip(entering, together, strict=True):
            np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_no_more_answers_are_under_way_than_allowed_and_each_prompt_is_encoded_once(tiny_untrained: Path) -> None:
    policy = Counting(tiny_untrained, Codec())
    rows = policy.rows(
        ask_all(images(7), [PHRASES[k % 3] for k in range(7)]), [[np.array([policy.processor.end_token])]] * 7
    )
    sample(policy, rows, Sampling(1.0, 16), draws_of(7, 4, 16), max_answers=11)
    assert max(policy.decoded) == 8  # two whole groups of four
    assert policy.decoded[-1] < 8  # the last ones have left
    assert sum(policy.encoded) == 7 and policy.encoded[0] == 2


def test_a_cache_holds_a_prompt_once_however_many_answers_it_has(policy: Policy) -> None:
    prompts = policy.encode(questions(policy, 2))
    for group_size in (1, 64):
        assert PromptCache(prompts, group_size, 8).prompts.keys.shape[1] == 2


@pytest.mark.parametrize("max_answers", [0, -3])
def test_an_engine_without_room_for_an_answer_is_refused(max_answers: int) -> None:
    with pytest.raises(ValueError, match=rf"pool.engine.max_answers is {max_answers}; set it to 1 or more"):
        Engine(max_answers)


def test_an_answer_is_cut_at_the_limit_and_says_so_unless_its_last_token_is_the_end(policy: Policy) -> None:
    draws = np.full((1, 3, 4), 0.9)
    draws[0, 0, 1] = draws[0, 1, 3] = 0.0  # the end token has the first id that can be sampled
    responses = sample(policy, questions(policy, 1), Sampling(1.0, 4), draws)
    assert [len(response.tokens) for response in responses] == [2, 4, 4]
    assert [response.finish for response in responses] == ["stop", "stop", "length"]
    assert [(response.tokens == policy.processor.end_token).sum() for response in responses] == [1, 1, 0]


def test_random_numbers_of_an_answer_follow_from_its_key_alone_and_not_from_the_limit() -> None:
    assert np.array_equal(uniforms((5, 2), 8), uniforms((5, 2), 8))
    assert np.array_equal(uniforms((5, 2), 8), uniforms((5, 2), 20)[:8])
    assert not np.array_equal(uniforms((5, 2), 8), uniforms((2, 5), 8))
    many = uniforms((2**64 - 1,), 10_000)
    assert many.min() >= 0 and many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("temperature", "max_tokens", "told"),
    [(-0.1, 4, "sampling.temperature is -0.1"), (1.0, 0, "sampling.max_tokens is 0")],
)
def test_impossible_sampling_is_refused_with_its_values(temperature: float, max_tokens: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampling(temperature, max_tokens)
