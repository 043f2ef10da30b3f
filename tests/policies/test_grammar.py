"""The grammar over tokens: a tokenizer of words, and home-made byte-level ones whose tokens cross every boundary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask_all
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from envs.codecs import path_tokens, point_text
from envs.codecs.base import AnswerCodec
from envs.polygons import AnswerStatus
from policies.families.base import PromptRows, Response
from policies.families.vision_language import Policy
from policies.grammar import TokenGrammar
from policies.sharing.prompt_cache import PromptCache
from policies.tiny_model import TinySizes, word_tokenizer, write_untrained
from rl.algorithms.gspo import sequence_log_ratio
from rollout.engines.shared import sample
from rollout.settings import Sampling

PHRASES = ["dog", "the upper left banana", "cat"]
PATH = path_tokens.Codec(max_rings=4, max_vertices=16)
POINT = point_text.Codec(max_rings=4, max_vertices=16, coordinates="unit")
SIZES = TinySizes(
    image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2, vision_heads=2
)


def random_texts(codec: AnswerCodec, num: int) -> list[str]:
    rng = np.random.default_rng(0)
    rings = [[rng.uniform(0, 32, (rng.integers(3, 8), 2)) for _ in range(rng.integers(1, 3))] for _ in range(num)]
    return [codec.encode([ring[:1], ring[1:]], 32, 32) for ring in rings] + [codec.encode([], 32, 32)]


def byte_level_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """All 256 bytes, and 200 merges that heed no boundary: "], [0." and " M 1" become tokens."""
    words = word_tokenizer([])
    special = sorted(words.all_special_ids)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + 200,
        special_tokens=words.convert_ids_to_tokens(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=words.pad_token,
        eos_token=words.eos_token,
        unk_token=words.unk_token,
        additional_special_tokens=words.convert_ids_to_tokens(special[3:]),
        chat_template=words.chat_template,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Case:
    policy: Policy
    max_tokens: int


def byte_level(folder: Path, codec: AnswerCodec) -> Policy:
    write_untrained(folder, [f"word{k}" for k in range(456)], SIZES, seed=0)
    byte_level_tokenizer(random_texts(codec, 200)).save_pretrained(folder)
    return Policy(folder, codec)


@pytest.fixture(scope="module", params=["words", "bytes of path tokens", "bytes of point text", "four vertices"])
def case(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("bytes")
    if request.param == "words":
        return Case(Policy(tiny_untrained, PATH), 32)
    if request.param == "bytes of path tokens":
        return Case(byte_level(folder, PATH), 40)
    if request.param == "bytes of point text":
        return Case(byte_level(folder, POINT), 70)
    return Case(Policy(tiny_untrained, path_tokens.Codec(path_bins=2, max_vertices=4)), 12)


def images(num: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8))


def rows_of(policy: Policy, responses: Sequence[Sequence[np.ndarray]]) -> PromptRows:
    return policy.rows(ask_all(images(len(responses)), PHRASES[: len(responses)]), responses)


def sampled(case: Case, group: int, temperature: float = 1.0, grammar: bool = True, seed: int = 0) -> list[Response]:
    rows = rows_of(case.policy, [[np.array([case.policy.processor.end_token])]] * 3)
    draws = np.random.default_rng(seed).random((3, group, case.max_tokens))
    return sample(case.policy, rows, Sampling(temperature, case.max_tokens, grammar), draws)


def in_groups(responses: Sequence[Response], group: int) -> list[list[np.ndarray]]:
    tokens = [response.tokens for response in responses]
    return [tokens[first : first + group] for first in range(0, len(tokens), group)]


def refuses(grammar: TokenGrammar, progress: Any, token: int) -> bool:
    try:
        grammar.advance(progress, token)
    except ValueError:
        return True
    return False


@pytest.mark.slow
def test_all_of_300_answers_of_an_untrained_model_are_valid_and_hardly_any_without_the_grammar(case: Case) -> None:
    responses = sampled(case, 100)
    statuses = [case.policy.processor.read(response, 32, 32).status for response in responses]
    assert all(status.valid for status in statuses)
    assert {response.finish for response in responses} == {"stop"}
    assert statuses.count(AnswerStatus.OK) > 20
    # Some went on until the limit made them end soon.
    assert max(len(response.tokens) for response in responses) >= case.max_tokens - 8
    free = [case.policy.processor.read(response, 32, 32) for response in sampled(case, 20, grammar=False)]
    assert sum(answer.status.valid for answer in free) < 5


def test_greedy_answers_are_valid_too(case: Case) -> None:
    responses = sampled(case, 1, temperature=0.0)
    assert all(case.policy.processor.read(response, 32, 32).status.valid for response in responses)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_on_policy_the_ratio_is_exactly_one_and_the_sampler_agrees_to_1e_4(case: Case, temperature: float) -> None:
    responses = sampled(case, 8, temperature)
    rows = rows_of(case.policy, in_groups(responses, 8))
    old = case.policy(rows, temperature, case.max_tokens).detach()
    new = case.policy(rows, temperature, case.max_tokens)
    assert torch.equal(new, old)
    ratio = sequence_log_ratio(new, old, rows.scored_mask).exp()
    assert (ratio == 1.0).all()
    theirs = np.concatenate([response.logprobs for response in responses])
    np.testing.assert_allclose(old[rows.scored_mask].numpy(), theirs, atol=1e-4)
    # Without the masks the learner would speak of another distribution.
    assert np.abs(case.policy(rows, temperature)[rows.scored_mask].detach().numpy() - theirs).max() > 0.5


def test_gradients_under_the_masks_are_finite(case: Case) -> None:
    rows = rows_of(case.policy, in_groups(sampled(case, 4), 4))
    case.policy.zero_grad()
    case.policy(rows, 1.0, case.max_tokens).sum().backward()
    gradients = [p.grad for p in case.policy.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@torch.no_grad()
def test_probabilities_of_the_allowed_tokens_add_up_to_one_at_steps_of_every_kind(case: Case) -> None:
    grammar, tokens = (
        case.policy.processor.token_grammar(),
        max(sampled(case, 4), key=lambda each: len(each.tokens)).tokens,
    )
    progress = grammar.start(case.max_tokens)
    period = 6 if case.max_tokens < 40 else 30
    for t, token in enumerate(tokens):
        if t % period not in (0, 5):  # an even and an odd step, and so x and y
            progress = grammar.advance(progress, int(token))
            continue
        allowed = np.flatnonzero(grammar.allowed([grammar.mask(progress)])[0].numpy())
        assert token in allowed
        candidates = [np.append(tokens[:t], other) for other in allowed]
        last = case.policy(rows_of(case.policy, [candidates]), 0.7, case.max_tokens)[0, :, t]
        assert last.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        progress = grammar.advance(progress, int(token))


@torch.no_grad()
def test_what_the_mask_leaves_out_has_no_probability_in_sampling(case: Case) -> None:
    grammar, rows = (
        case.policy.processor.token_grammar(),
        rows_of(case.policy, [[np.array([case.policy.processor.end_token])]]),
    )
    allowed = grammar.allowed([grammar.mask(grammar.start(case.max_tokens))])
    prompts = case.policy.encode(rows)
    free, masked = (
        case.policy.decode(PromptCache(prompts, 1, 1), prompts.last_tokens[:, None], 0.7, mask)[0]
        for mask in (None, allowed)
    )
    assert (masked[~allowed[0]] == -math.inf).all()
    expected = free[allowed[0]] - free[allowed[0]].logsumexp(0)
    torch.testing.assert_close(masked[allowed[0]], expected, atol=1e-5, rtol=0)


def test_masks_are_those_found_by_trying_every_token_from_the_whole_state(case: Case) -> None:
    grammar, size = case.policy.processor.token_grammar(), len(case.policy.processor.tokenizer)
    progress = grammar.start(case.max_tokens)
    for token in max(sampled(case, 2, seed=3), key=lambda each: len(each.tokens)).tokens:
        allowed = grammar.allowed([grammar.mask(progress)])[0].numpy()
        tried = [not refuses(grammar, progress, other) for other in range(size)]
        assert np.flatnonzero(allowed).tolist() == np.flatnonzero(tried).tolist()
        progress = grammar.advance(progress, int(token))


def test_every_text_of_encode_is_allowed_token_by_token(case: Case) -> None:
    codec = case.policy.processor.codec
    texts = random_texts(codec, 25) if codec in (PATH, POINT) else ["0 0 9 9 0 0 2 0 2 2 0 2", "none"]
    tokens = [case.policy.processor.answer_tokens(text) for text in texts]
    assert all(len(case.policy.processor.token_grammar().masks_of(each.tolist(), 400)) == len(each) for each in tokens)


def test_two_tokens_leave_room_for_the_empty_answer_alone_and_one_is_refused(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, PATH)
    grammar = policy.processor.token_grammar()
    allowed = np.flatnonzero(grammar.allowed([grammar.mask(grammar.start(2))])[0].numpy())
    assert allowed.tolist() == [policy.processor.tokenizer.get_vocab()["none"]]
    with pytest.raises(ValueError, match=r"max_tokens is 1, but the shortest valid answer takes 2 tokens; raise it"):
        grammar.start(1)


def test_eleven_tokens_are_the_fewest_with_a_triangle(tiny_untrained: Path) -> None:
    grammar = Policy(tiny_untrained, PATH).processor.token_grammar()
    assert [grammar.allowed([grammar.mask(grammar.start(n))])[0].sum().item() for n in (10, 11)] == [1, 65]


def test_tokens_that_were_sampled_without_the_grammar_are_refused(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, PATH)
    rows = rows_of(policy, [[policy.processor.answer_tokens("7 8 9")]])
    with pytest.raises(ValueError, match=r"cannot follow under the grammar .* sampled without"):
        policy(rows, 1.0, 32)
    assert torch.isfinite(policy(rows, 1.0)).all()


def test_a_vocabulary_without_the_grammars_words_is_refused_by_name(tiny_untrained: Path) -> None:
    with pytest.raises(ValueError, match=r"no way to write '65', '66', .* sampling.grammar to false"):
        Policy(tiny_untrained, path_tokens.Codec(box_bins=99)).processor.token_grammar()
    with pytest.raises(ValueError, match=r"no way to write '\[', '\]'"):
        Policy(tiny_untrained, POINT).processor.token_grammar()


def test_point_text_in_words_with_spaces_between_them_is_sampled_as_well(tmp_path: Path) -> None:
    codec = point_text.Codec(decimals=1, max_vertices=5, coordinates="unit")
    write_untrained(tmp_path, [*"[],;", *[f"{k / 10:.1f}" for k in range(11)], *"catdog"], SIZES, seed=0)
    case = Case(Policy(tmp_path, codec, question="c a t {phrase}"), 60)
    responses = sampled(case, 30)
    assert all(case.policy.processor.read(response, 32, 32).status.valid for response in responses)
    assert case.policy.processor.text(responses[0])[:2] in ("[ ", "[")
