from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from policies.families.base import PromptRows
from policies.sharing import attention, varlen
from policies.sharing.attention import Heads, SharedLayout, attend, bias, inputs, prompt_inputs, shared_layout
from policies.sharing.packing import PackedRows, causal, pack_rows, pad_left, pad_responses
from policies.sharing.two_parts import Biases, PackedStretches, merged, packed_stretches
from policies.sharing.varlen import Attended, Pairs

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


def heads(queries_a_head: int = 1) -> Heads:
    return Heads(queries_a_head, HEAD_WIDTH, torch.float64)


def in_one_call(packed: PackedRows, queries_a_head: int) -> SharedLayout:
    """As for a device without kernels that give log-sum-exps."""
    whole = bool(packed.prompt_mask.all())
    one = attention._answer_bias(packed, heads(queries_a_head), whole)
    return replace(shared_layout(packed, heads(queries_a_head)), parts=None, answer_bias=one)


def in_parts(packed: PackedRows, queries_a_head: int) -> SharedLayout:
    return shared_layout(packed, heads(queries_a_head))


def stretches(packed: PackedRows, _: int) -> PackedStretches:
    return packed_stretches(packed)


@pytest.fixture
def slow_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over stretches in place of the kernel that only GPUs have."""
    monkeypatch.setattr(varlen, "with_log_sums", looped)
    monkeypatch.setattr(varlen, "slopes_of_part", looped_slopes)


def scores_of(query: Tensor, key: Tensor, pairs: Pairs, scale: float | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each stretch: its queries, its keys, and scaled scores [H, queries, keys]."""
    bounds = pairwise(pairs.query_bounds.tolist()), pairwise(pairs.key_bounds.tolist())
    for (first, end), (from_key, to_key) in zip(*bounds, strict=True):
        assert end - first <= pairs.most_queries and to_key - from_key <= pairs.most_keys
        keys = key[from_key:to_key].repeat_interleave(query.shape[1] // key.shape[1], 1)
        found = torch.einsum("qhd,khd->hqk", query[first:end], keys) * (scale or 1.0)
        if pairs.causal:
            found = found.masked_fill(~torch.ones(found.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        yield slice(first, end), slice(from_key, to_key), found


def looped(query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None) -> tuple[Tensor, Tensor]:
    found, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for own, theirs, scored in scores_of(query, key, pairs, scale):
        values = value[theirs].repeat_interleave(query.shape[1] // key.shape[1], 1)
        found[own] = torch.einsum("hqk,khd->qhd", scored.softmax(-1), values)
        sums[:, own] = scored.logsumexp(-1)
    return found, sums


def looped_slopes(
    query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None, whole: Attended
) -> tuple[Tensor, Tensor, Tensor]:
    """With weights p over all keys: dv = p^T do, ds = p (do v^T - do . o), dq = ds k, dk = ds^T q."""
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
    n = query.shape[1] // key.shape[1]
    for own, theirs, scored in scores_of(query, key, pairs, scale):
        weights = (scored - whole.log_sums[:, own, None]).exp()
        slope, keys, values = (
            whole.slopes[own],
            key[theirs].repeat_interleave(n, 1),
            value[theirs].repeat_interleave(n, 1),
        )
        towards = torch.einsum("qhd,khd->hqk", slope, values) - (slope * whole.found[own]).sum(-1).t()[:, :, None]
        of_scores = weights * towards * (scale or 1.0)
        of_query[own] = torch.einsum("hqk,khd->qhd", of_scores, keys)
        of_key[theirs] += torch.einsum("hqk,qhd->khd", of_scores, query[own]).unflatten(1, (-1, n)).sum(2)
        of_value[theirs] += torch.einsum("hqk,qhd->khd", weights, slope).unflatten(1, (-1, n)).sum(2)
    return of_query, of_key, of_value


LAYOUTS = [in_parts, in_one_call, stretches]


@pytest.mark.usefixtures("slow_kernel")
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ragged, st.integers(1, 2), st.integers(1, 3))
def test_real_tokens_get_what_attention_over_the_whole_row_gives_them_and_so_do_gradients(
    layout: Callable[[PackedRows, int], Any], lengths: list[tuple[int, list[int]]], key_heads: int, queries_a_head: int
) -> None:
    packed = packed_rows([prompt for prompt, _ in lengths], [row for _, row in lengths])
    real = torch.cat([packed.prompt_mask, packed.real], dim=1)
    query, key, value = states(packed, key_heads, queries_a_head)
    one, none = attend(SimpleNamespace(), query, key, value, None, layout=layout(packed, queries_a_head), scaling=0.3)
    repeated = [x.repeat_interleave(queries_a_head, 1) for x in (key, value)]
    other = scaled_dot_product_attention(query, *repeated, attn_mask=packed.attends, scale=0.3).transpose(1, 2)
    assert none is None
    torch.testing.assert_close(one[real], other[real], atol=1e-12, rtol=0)
    weights = torch.randn(one[real].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x[real] * weights).sum(), [query, key, value]) for x in (one, other))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("slow_kernel")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_answer_or_an_empty_slot_never_touches_an_answer(layout: Callable[[PackedRows, int], Any]) -> None:
    packed = packed_rows([3, 2], [[4, 2], [1, 3]])
    query, key, value = states(packed, 1, 1)
    before, _ = attend(SimpleNamespace(), query, key, value, None, layout=layout(packed, 1))
    changed = value.clone()
    changed[0, :, 3:7] += 1.0  # all of row 0's first answer
    after, _ = attend(SimpleNamespace(), query, key, changed, None, layout=layout(packed, 1))
    moved = (before != after).any(-1).any(-1)
    assert moved.tolist() == [[False] * 3 + [True] * 4 + [False] * 2, [False] * 9]


def test_even_answers_go_apart_and_very_uneven_ones_stay_in_one_row() -> None:
    # 4^2 + 2 * 3 * (4 + 3) = 58 pairs of tokens an answer at a time, (4 + 6)^2 = 100 of the whole row
    even = inputs(packed_rows([4], [[3, 3]]), heads())
    assert even["layout"].parts == Biases(None, None) and even["layout"].prompt_bias is None
    # 1 + 8 * 9 * (1 + 9) = 721 against (1 + 16)^2 = 289
    uneven = inputs(packed_rows([1], [[9, 1, 1, 1, 1, 1, 1, 1]]), heads())
    assert "layout" not in uneven and uneven["attention_mask"].shape == (1, 1, 17, 17)
    assert inputs(packed_rows([4], [[3]]), heads()).keys() == {"attention_mask", "in_order"}


@pytest.mark.parametrize(("queries_a_head", "prompts"), [(1, [6, 6]), (3, [6, 6]), (3, [6, 4])])
def test_what_is_kept_for_the_backward_pass_holds_no_key_of_a_prompt_twice_and_no_mask(
    queries_a_head: int, prompts: list[int]
) -> None:
    packed = packed_rows(prompts, [[5] * 8, [5] * 8])
    query, key, value = states(packed, 2, queries_a_head)

    def kept(layout: SharedLayout) -> int:
        """Numbers, by distinct storage; those that all layers share left out."""
        held: dict[int, Tensor] = {}
        shared = [
            x
            for x in (layout.prompt_bias, layout.answer_bias, *vars(layout.parts or Biases(None, None)).values())
            if x is not None
        ]

        def keep(x: Tensor) -> Tensor:
            if not any(
                x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for y in (*shared, query, key, value)
            ):
                held[x.untyped_storage().data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            attend(SimpleNamespace(), query, key, value, None, layout=layout, scaling=0.3)
        return sum(x.untyped_storage().nbytes() for x in held.values() if x.dtype == torch.float64) // 8

    b, g, t, p, h, n, d = 2, 8, 5, 6, 2, queries_a_head, HEAD_WIDTH
    # Queries, results and log-sums of answers, their keys and values; the same of prompts, whose keys are repeated n
    # times where n is above 1.
    answers = b * g * t * h * (n * (2 * d + 1) + 2 * d)
    prompt = b * p * h * n * (d + 1) + (2 * b * p * h * n * d if n > 1 else 0)
    assert kept(in_parts(packed, n)) <= answers + prompt
    repeated = 2 * b * (g - 1) * p * h * d
    assert kept(in_one_call(packed, n)) >= answers + repeated


def test_two_keys_in_two_parts_by_hand() -> None:
    """Scores log 3 and 0: weights 3/4 and 1/4, whatever lies in which part."""
    first, second = torch.tensor([[4.0]]), torch.tensor([[8.0]])
    found, sums = merged(first, torch.tensor([3.0]).log(), second, torch.tensor([0.0]))
    assert found.item() == pytest.approx(0.75 * 4 + 0.25 * 8) and sums.item() == pytest.approx(np.log(4))


def test_stretches_by_hand() -> None:
    found = packed_stretches(packed_rows([3, 2], [[2, 1], [1, 1]]))
    # Rows of 3 + 3 tokens; the second has one token of padding on either side.
    assert found.alone.query_bounds.tolist() == [0, 0, 3, 5, 6, 6, 7, 9, 10, 11, 12]
    assert (found.alone.most_queries, found.alone.causal) == (3, True)
    assert found.answers.tolist() == [3, 4, 5, 9, 10] and found.prompts.tolist() == [0, 1, 2, 7, 8]
    assert found.to_prompts.query_bounds.tolist() == [0, 3, 5] and found.to_prompts.key_bounds.tolist() == [0, 3, 5]
    assert (found.to_prompts.most_queries, found.to_prompts.most_keys) == (3, 3)


def test_a_bias_is_what_attention_would_make_of_a_mask_in_rows_that_kernels_take_as_they_are() -> None:
    allowed = torch.tensor([[True, False, True]])
    found = bias(allowed[None, None], torch.bfloat16)
    assert found.tolist() == [[[[0.0, -np.inf, 0.0]]]] and found.dtype == torch.bfloat16
    assert found.stride(2) % 16 == 0 and found.stride(3) == 1


def test_attention_that_is_dropped_is_refused() -> None:
    packed = packed_rows([4], [[3, 3]])
    with pytest.raises(ValueError, match=r"drops 0\.1 of its attention"):
        attend(None, *states(packed, 1, 1), None, layout=in_parts(packed, 1), dropout=0.1)


def test_the_operators_that_torch_keeps_to_itself_are_called_as_they_are_declared() -> None:
    import torch.nn.attention.varlen

    declared = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            "query key value dropout_p is_causal attn_mask scale"
        ),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale"
        ),
        torch.ops.torch_attn._varlen_attn_backward: (
            "grad_out query key value out lse cu_seq_q cu_seq_k max_q max_k is_causal rng_state scale window_size"
        ),
    }
    for operator, names in declared.items():
        assert [each.name for each in operator.default._schema.arguments] == names.split()


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
    handed = prompt_inputs(packed.prompt_mask, Heads())
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
