"""The attention of a token over shared prompts against a plain softmax, for values of another width than keys too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.sharing import prompt_cache
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache, of_like_length


@pytest.mark.parametrize("width", [4, 6])
def test_a_token_attends_to_its_prompt_and_its_own_answer_whatever_the_width_of_values(width: int) -> None:
    torch.manual_seed(0)
    r, c, heads, n, p, d = 2, 3, 2, 2, 5, 4
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    held = EncodedPrompts(
        torch.randn(1, r, heads, d, p), torch.randn(1, r, heads, p, width), mask, torch.zeros(r).long(), mask.sum(1) - 1
    )
    cache = PromptCache(held, c, max_tokens=3)
    keys, values = torch.randn(3, r * c, heads, d), torch.randn(3, r * c, heads, width)
    queries = torch.randn(3, r * c, heads * n, d)
    for t in range(3):
        cache.begin_token()
        found = cache.attend(0, queries[t], keys[t], values[t]).view(r, c, heads, n, width)
        cache.end_token()
        for row, answer, head, query in torch.cartesian_prod(*(torch.arange(k) for k in (r, c, heads, n))).tolist():
            place = row * c + answer
            seen = torch.cat([held.keys[0, row, head].T[mask[row]], keys[: t + 1, place, head]])
            worth = torch.cat([held.values[0, row, head][mask[row]], values[: t + 1, place, head]])
            expected = torch.softmax(seen @ queries[t, place, head * n + query], 0) @ worth
            torch.testing.assert_close(found[row, answer, head, query], expected, atol=1e-5, rtol=1e-5)


def test_prompts_are_parted_where_a_longer_one_would_pad_them_by_256_tokens_or_more() -> None:
    assert of_like_length([80, 90, 85]) == [[0, 1, 2]]
    assert of_like_length([100, 700, 444, 445, 99]) == [[1, 3], [2], [0, 4]]
    assert of_like_length([7]) == [[0]]


def test_prompts_encoded_apart_are_held_as_if_together(tiny_untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny_untrained, Codec())
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    phrases = ["dog", "the upper left banana", "the dog", "banana the the left the"]
    rows = policy.rows([ask(image, phrase) for phrase in phrases], [[policy.processor.answer_tokens("1 2")]] * 4)
    together = policy.encode(rows)
    monkeypatch.setattr(prompt_cache, "_WORTH_APART", 2)
    lengths = rows.prompt_mask.sum(1).tolist()
    assert len(of_like_length(lengths)) == 2
    apart = policy.encode(rows)
    seen = together.mask[None, :, None, :, None]
    for found, expected in ((apart.keys.mT, together.keys.mT), (apart.values, together.values)):
        torch.testing.assert_close(found * seen, expected * seen, atol=1e-5, rtol=1e-5)
    for name in ("mask", "last_tokens", "last_positions"):
        assert torch.equal(vars(apart)[name], vars(together)[name]), name
