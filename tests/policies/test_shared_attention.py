from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from policies.families.base import PromptRows
from policies.sharing.attention import attend, inputs, prompt_inputs, shared_layout
from policies.sharing.packing import PackedRows, causal, pack_rows, pad_left, pad_responses

HEAD_WIDTH = 4


def packed_rows(prompts: list[int], answers: list[list[int]]) -> PackedRows:
    """Rows of prompts and answers of these lengths."""
    prompt_tokens, prompt_mask = pad_left([np.arange(1, n + 1) for n in prompts], 0)
    tokens, mask = pad_responses([[np.arange(n) for n in row] for row in answers], 0)
    no_image = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)
    return pack_rows(PromptRows(prompt_tokens, prompt_mask, *no_image, tokens, mask, mask))


def states(packed: PackedRows, key_heads: int, queries_a_head: int) -> list[Tensor]:
    """Query, key and value as a layer gives them, heads before tokens."""
    generator = torch.Generator().manual_seed(0)
    b, length = packed.tokens.shape
    heads = (key_heads * queries_a_head, key_heads, key_heads)
    made = [torch.randn(b, length, h, HEAD_WIDTH, generator=generator, dtype=torch.float64) for h in heads]
    return [one.requires_grad_().transpose(1, 2) for one in made]


ragged = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=1, max_size=3)), min_size=1, max_size=3
)


@given(ragged, st.integers(1, 2), st.integers(1, 3))
def test_real_tokens_get_what_attention_over_the_whole_row_gives_them_and_so_do_gradients(
    lengths: list[tuple[int, list[int]]], key_heads: int, queries_a_head: int
) -> None:
    packed = packed_rows([prompt for prompt, _ in lengths], [row for _, row in lengths])
    real = torch.cat([packed.prompt_mask, packed.real], dim=1)
    query, key, value = states(packed, key_heads, queries_a_head)
    one, none = attend(
        SimpleNamespace(), query, key, value, None, layout=shared_layout(packed, queries_a_head), scaling=0.3
    )
    repeated = [x.repeat_interleave(queries_a_head, 1) for x in (key, value)]
    other = scaled_dot_product_attention(query, *repeated, attn_mask=packed.attends, scale=0.3).transpose(1, 2)
    assert none is None
    torch.testing.assert_close(one[real], other[real], atol=1e-12, rtol=0)
    weights = torch.randn(one[real].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x[real] * weights).sum(), [query, key, value]) for x in (one, other))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


def test_another_answer_or_an_empty_slot_never_touches_an_answer() -> None:
    packed = packed_rows([3, 2], [[4, 2], [1, 3]])
    query, key, value = states(packed, 1, 1)
    before, _ = attend(SimpleNamespace(), query, key, value, None, layout=shared_layout(packed))
    changed = value.clone()
    changed[0, :, 3:7] += 1.0  # all of row 0's first answer
    after, _ = attend(SimpleNamespace(), query, key, changed, None, layout=shared_layout(packed))
    moved = (before != after).any(-1).any(-1)
    assert moved.tolist() == [[False] * 3 + [True] * 4 + [False] * 2, [False] * 9]


def test_even_answers_go_apart_and_very_uneven_ones_stay_in_one_row() -> None:
    # 4^2 + 2 * 3 * (4 + 3) = 58 pairs of tokens an answer at a time, (4 + 6)^2 = 100 of the whole row
    even = inputs(packed_rows([4], [[3, 3]]), 1)
    assert even["layout"].answer_attends.shape == (1, 1, 3, 7) and even["layout"].prompt_attends is None
    # 1 + 8 * 9 * (1 + 9) = 721 against (1 + 16)^2 = 289
    uneven = inputs(packed_rows([1], [[9, 1, 1, 1, 1, 1, 1, 1]]), 1)
    assert (
        "layout" not in uneven
        and "layout" not in inputs(packed_rows([4], [[3]]), 1)
        and uneven["attention_mask"].shape == (1, 1, 17, 17)
    )


@pytest.mark.parametrize("queries_a_head", [1, 2])
def test_without_a_layout_it_is_attention_by_a_mask(queries_a_head: int) -> None:
    packed = packed_rows([4], [[3, 2]])
    query, key, value = states(packed, 2, queries_a_head)
    module = SimpleNamespace(num_key_value_groups=queries_a_head, is_causal=True)
    one, _ = attend(module, query, key, value, packed.attends, scaling=0.5)
    repeated = [x.repeat_interleave(queries_a_head, 1) for x in (key, value)]
    other = scaled_dot_product_attention(query, *repeated, attn_mask=packed.attends, scale=0.5)
    torch.testing.assert_close(one, other.transpose(1, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("lengths", "padded"), [([5, 5], False), ([5, 3], True)])
def test_prompts_of_one_length_are_attended_in_order_without_any_mask(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], padded: bool
) -> None:
    packed = packed_rows(lengths, [[1], [1]])
    handed = prompt_inputs(packed.prompt_mask)
    query, key, value = (part[:, :, :5] for part in states(packed, 2, 3))
    masks: list[object] = []

    def spy(*inputs: Tensor, **settings: object) -> Tensor:
        masks.append(settings.get("attn_mask"))
        return scaled_dot_product_attention(*inputs, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    mask = handed.pop("attention_mask")
    found, _ = attend(SimpleNamespace(num_key_value_groups=3), query, key, value, mask, scaling=0.3, **handed)
    assert (masks == [None]) is not padded and handed == ({} if padded else {"in_order": True})
    repeated = [x.repeat_interleave(3, 1) for x in (key, value)]
    dense = causal(packed.prompt_mask)[:, None]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=dense, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found[packed.prompt_mask], expected[packed.prompt_mask], atol=1e-12, rtol=0)


@pytest.mark.parametrize("wrong", [{"softcap": 30.0}, {"sliding_window": 4}])
def test_a_layer_that_caps_its_logits_or_sees_a_window_is_refused_by_its_values(wrong: dict[str, float]) -> None:
    (name, value), nothing = wrong.copy().popitem(), torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=rf"^a layer attends with .*{name} {value}"):
        attend(None, nothing, nothing, nothing, None, **wrong)
