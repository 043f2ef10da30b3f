"""Rows of a few tokens that learn beside adapters; a plain policy with these rows in its matrices is the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all
from test_vision_language import write_llava

from envs.codecs.path_tokens import Codec
from policies.families.base import PromptRows
from policies.families.vision_language import Policy
from policies.lora import learns_beside, pushed
from policies.settings import LoraSettings
from policies.sharing.token_rows import learn_rows
from policies.weights import bucket_checksum, held_checksum, is_adapter, load_bucket, make_bucket
from rollout.engines.base import uniforms
from rollout.engines.shared import sample
from rollout.settings import Sampling

LORA = LoraSettings(rank=2)
WORDS = ("30", "0", "none")
"""Tokens whose rows learn; the first two stand in the answers below."""


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tied":
        return tiny_untrained
    path = tmp_path_factory.mktemp("untied")
    write_llava(path)
    return path


def adapted(folder: Path) -> Policy:
    policy = Policy(folder, Codec(), lora=LORA)
    learn_rows(policy.model, [policy.processor.tokenizer.get_vocab()[word] for word in WORDS])
    return policy


def moved(policy: Policy) -> Policy:
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in {policy.model.token_rows.embedding, policy.model.token_rows.head}:
            layer.weight.normal_(std=0.3, generator=draws)
    return policy


def by_hand(folder: Path, policy: Policy) -> Policy:
    """A plain policy with the rows added to its own matrices."""
    plain, rows = Policy(folder, Codec()), policy.model.token_rows
    with torch.no_grad():
        plain.model.get_input_embeddings().weight[rows.tokens] += rows.embedding.weight
        if plain.model.lm_head.weight is not plain.model.get_input_embeddings().weight:
            plain.model.lm_head.weight[rows.tokens] += rows.head.weight
    return plain


def rows_for(policy: Policy) -> PromptRows:
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    texts = [["1 2 30 40 0 0 5 5 0 5", "none"], ["7 8 9", "30 0"]]
    return policy.rows(
        ask_all(images, ["dog", "banana"]), [[policy.processor.answer_tokens(text) for text in row] for row in texts]
    )


def test_a_policy_begins_as_what_it_was_and_adapters_and_rows_alone_learn(folder: Path) -> None:
    policy, plain = adapted(folder), Policy(folder, Codec())
    assert torch.equal(policy(rows_for(policy)), plain(rows_for(plain)))
    named = dict(policy.model.named_parameters())
    learning = {name for name, parameter in named.items() if parameter.requires_grad}
    assert learning == {name for name in named if is_adapter(name)}
    tied = plain.model.lm_head.weight is plain.model.get_input_embeddings().weight
    assert sum("token_rows" in name for name in learning) == (1 if tied else 2)
    assert learns_beside(policy.model) and not learns_beside(Policy(folder, Codec(), lora=LORA).model)


def test_rows_count_in_learning_and_in_sampling_as_if_they_stood_in_the_matrices(folder: Path) -> None:
    policy = moved(adapted(folder)).eval()
    plain = by_hand(folder, policy).eval()
    rows = rows_for(policy)
    torch.testing.assert_close(policy(rows), plain(rows), rtol=0, atol=1e-5)
    assert (policy(rows) - Policy(folder, Codec()).eval()(rows)).abs().max() > 0.05
    draws = np.array([[uniforms((b, g), 6) for g in range(4)] for b in range(2)])
    found = [sample(each, rows, Sampling(0.7, 6), draws) for each in (policy, plain)]
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one.tokens, other.tokens) and np.abs(one.logprobs - other.logprobs).max() < 1e-5
    drawn = np.concatenate([one.tokens for one in found[0]])
    assert np.isin(drawn, policy.model.token_rows.tokens).any()


def test_their_gradient_is_that_of_the_matrices_rows(folder: Path) -> None:
    policy = moved(adapted(folder)).train()
    plain = by_hand(folder, policy).train()
    for each in (policy, plain):
        each(rows_for(each)).sum().backward()
    own, matrices = policy.model.token_rows, (plain.model.get_input_embeddings(), plain.model.lm_head)
    for layer, matrix in zip((own.embedding, own.head), matrices, strict=True):
        expected = matrix.weight.grad[own.tokens]
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_they_are_merged_into_whole_weights_and_travel_with_adapters(folder: Path, tmp_path: Path) -> None:
    policy = moved(adapted(folder)).eval()
    rows = rows_for(policy)
    merged = {each.name: each.value() for part in pushed(policy.model, merged=True) for each in part}
    plain = by_hand(folder, policy)
    assert merged.keys() == dict(plain.model.named_parameters()).keys()
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(merged[name], parameter), name
    policy.save(tmp_path, merged)
    torch.testing.assert_close(Policy(tmp_path, Codec()).eval()(rows), policy(rows), rtol=0, atol=1e-5)
    worker = adapted(folder).eval()
    buckets = [make_bucket([(w.name, w.value()) for w in part]) for part in pushed(policy.model, merged=False)]
    assert any("token_rows" in name for bucket in buckets for name in bucket.shape.names)
    for bucket in buckets:
        load_bucket(worker.model, bucket)
    assert held_checksum(worker.model) == bucket_checksum(buckets)
    assert torch.equal(worker(rows), policy(rows))


def test_an_adapter_around_the_head_is_refused(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec(), lora=LoraSettings(targets=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match=r"^learner\.lora\.targets names lm_head, and the rows .* leave lm_head out"):
        learn_rows(policy.model, [5])
