"""Attention of one row per group, without the parts in which nobody looks at anybody.

A row of P prompt and K packed answer tokens has (P + K)^2 pairs of tokens, but an answer looks only at the prompt and
at itself. So the prompt is attended by itself, and the answers by the prompt's keys and their own, in two parts that
are merged (two_parts.py): P^2 + G T (P + T) pairs, no mask of the whole, no key repeated. Where no kernel gives the
parts' sums (a GPU in float32), each answer goes behind a copy of the prompt's keys. All else of a layer runs on the
packed row.

Letters: B rows, G answers a row, T slots of an answer, P prompt tokens, K packed answer tokens, H key heads, n queries
a key head, d head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from policies.sharing import varlen, windowed
from policies.sharing.capped import attend_capped
from policies.sharing.forked import LINEAR, Forks, forks
from policies.sharing.packing import PackedRows, causal
from policies.sharing.two_parts import Biases, PackedStretches, of_even_answers, of_stretches, packed_stretches

NAME = "shared_prompt"
"""What transformers calls this attention (attn_implementation)."""


class Heads(NamedTuple):
    """What the layers of a language model attend with."""

    queries_per_key: int = 1
    """n."""
    width: int = 64
    """d."""
    dtype: torch.dtype = torch.float32
    value_width: int | None = None
    """Width of a head's values where other than d."""
    window: int | None = None
    """Tokens that a token of some layers sees, itself included; None where all layers see all."""
    together_near: bool = True
    """Whether tokens that see each other do so in those layers only as far as the window reaches back."""
    forked: bool = False
    """Whether some layers hold a state in place of keys, which is forked behind a prompt (forked.py)."""


@dataclass(frozen=True)
class SharedLayout:
    """Where the answers of packed rows lie, and what is added to scores; made once a forward pass, for all layers."""

    prompt_bias: Tensor | None
    """[B, 1, P, P], query before key; None where no prompt is padded: then by order alone."""
    parts: Biases | None
    """What answers in two parts are attended with; None where they go in one call."""
    answer_bias: Tensor | None
    """[B * G or 1, 1, n * T, P + T]: a token of an answer before the prompt's keys and those of its own answer, in one
    call; None where they go in two parts."""
    slots: Tensor
    """[B * G * T] int64 into the flat [B * K]: the packed token in each slot of the answers, any in empty ones."""
    order: Tensor
    """[B * K] int64 into the flat [B * G * T]: the slot of each packed token."""
    prompt_length: int
    """P."""
    shape: tuple[int, int, int]
    """(B, G, T)."""


def prompt_inputs(mask: Tensor, heads: Heads, together: Tensor | None = None) -> dict[str, Any]:
    """What the language model is called with for prompts alone, mask [B, P]: a mask only where one is padded.

    together: [B, P] bool, the tokens of each prompt that all see each other; None where each sees those before it.
    """
    if heads.forked:
        return _by_kind(_of_prompts(mask, heads, together), None if mask.all() else mask, None)
    return _of_prompts(mask, heads, together)


def _of_prompts(mask: Tensor, heads: Heads, together: Tensor | None) -> dict[str, Any]:
    b, p = mask.shape
    if heads.window is not None:
        return _windowed(windowed.masks_of_prompts(mask, together, heads.window, heads.together_near), heads.dtype)
    if together is None and mask.all():
        # transformers leaves a mask of four axes as it is, and makes none of its own.
        return {"attention_mask": mask.view(b, 1, 1, p), "in_order": True}
    return {"attention_mask": bias(causal(mask, together)[:, None], heads.dtype)}


def inputs(packed: PackedRows, heads: Heads) -> dict[str, Any]:
    """What the language model is called with so that packed rows are attended as they should be.

    On a GPU in half precision by stretches. Elsewhere a mask of the whole row where nothing is shared, or where answers
    are so uneven that their empty slots would cost more than it.
    """
    if heads.forked:
        return _by_kind(_of_rows(packed, heads), None, forks(packed))
    return _of_rows(packed, heads)


def _of_rows(packed: PackedRows, heads: Heads) -> dict[str, Any]:
    if heads.window is not None:
        return _windowed(windowed.masks_of_rows(packed, heads.window, heads.together_near), heads.dtype)
    b, g, t = packed.shape
    p, k = packed.prompt_mask.shape[1], packed.order.shape[1]
    # Kernels for stretches know of no other order than that of the tokens, and of one width.
    plain = packed.together is None and heads.value_width in (None, heads.width)
    if plain and varlen.fits(packed.order.device, heads.dtype, heads.width):
        return {"attention_mask": packed.prompt_mask.view(b, 1, 1, p), "layout": packed_stretches(packed)}
    if g == 1:
        return _of_prompts(torch.cat([packed.prompt_mask, packed.real], dim=1), heads, packed.together)
    if p * p + g * t * (p + t) >= (p + k) ** 2:
        return {"attention_mask": bias(packed.attends, heads.dtype)}
    return {"attention_mask": packed.prompt_mask.view(b, 1, 1, p), "layout": shared_layout(packed, heads)}


def _by_kind(inputs: dict[str, Any], mask: Tensor | None, layout: Forks | None) -> dict[str, Any]:
    """Inputs of a language model of which some layers attend by `inputs`, and others read in order."""
    return {**inputs, "attention_mask": {"full_attention": inputs["attention_mask"], LINEAR: mask}, "forks": layout}


def _windowed(masks: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of masks by kind of layer."""
    return {"attention_mask": {kind: bias(mask, dtype) for kind, mask in masks.items()}}


def shared_layout(packed: PackedRows, heads: Heads) -> SharedLayout:
    """The layout of packed rows for such heads: on a CPU in two parts, elsewhere in one call."""
    (b, g, t), k = packed.shape, packed.order.shape[1]
    device, whole = packed.order.device, bool(packed.prompt_mask.all())
    by_order, among = whole and packed.together is None, packed.together
    # The kernel that gives parts' sums knows of one width.
    in_parts = device.type == "cpu" and heads.value_width in (None, heads.width)
    row = torch.arange(b, device=device)[:, None]
    held = torch.arange(k, device=device).expand(b, -1)
    slots = torch.zeros(b, g * t, dtype=torch.int64, device=device).scatter(1, packed.order, held)
    return SharedLayout(
        prompt_bias=None if by_order else bias(causal(packed.prompt_mask, among)[:, None], heads.dtype),
        parts=_biases(packed, heads, whole) if in_parts else None,
        answer_bias=None if in_parts else _answer_bias(packed, heads, whole),
        slots=(row * k + slots).flatten(),
        order=(row * g * t + packed.order).flatten(),
        prompt_length=packed.prompt_mask.shape[1],
        shape=packed.shape,
    )


# An answer's real tokens come first in its slots, so that order alone keeps them from looking at empty ones.


def _biases(packed: PackedRows, heads: Heads, whole: bool) -> Biases:
    n, own = heads.queries_per_key, _in_order(packed)
    return Biases(
        prompt=None if whole else bias(packed.prompt_mask[:, None, None], heads.dtype),
        own=None if n == 1 else bias(own.repeat(n, 1)[None, None], heads.dtype),
    )


def _answer_bias(packed: PackedRows, heads: Heads, whole: bool) -> Tensor:
    own = _in_order(packed)
    seen = packed.prompt_mask[:1] if whole else packed.prompt_mask.repeat_interleave(packed.shape[1], 0)
    answers = torch.cat([seen[:, None, :].expand(-1, len(own), -1), own.expand(len(seen), -1, -1)], dim=2)
    return bias(answers[:, None].repeat(1, 1, heads.queries_per_key, 1), heads.dtype)


def _in_order(packed: PackedRows) -> Tensor:
    t = packed.shape[2]
    return torch.ones(t, t, dtype=torch.bool, device=packed.order.device).tril()


def bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed` [..., keys] is True, minus infinity elsewhere.

    Attention turns a mask of bool into this in every layer, and keeps each for the backward pass; one made beforehand
    is kept once. Its rows begin at multiples of 16 numbers, else the kernels of GPUs would copy it in every layer.
    """
    keys = allowed.shape[-1]
    room = torch.zeros(*allowed.shape[:-1], -(-keys // 16) * 16, dtype=dtype, device=allowed.device)
    return room[..., :keys].masked_fill_(~allowed, -torch.inf)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: SharedLayout | PackedStretches | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query [B, H * n, L, d], key and value [B, H, L, d] to [B, L, H * n, d].

    layout: of packed rows, L = P + K, which then takes the mask's place; without one this is transformers' own `sdpa`.
    `in_order` among the others: whether each token attends to those before it and itself, whatever the mask.
    """
    own_mask = attention_mask is not None and layout is None and not others.get("in_order")
    _refuse_otherwise(others, own_mask)
    if others.get("softcap") is not None:
        assert attention_mask is not None
        return attend_capped(query, key, value, attention_mask, others["scaling"], others["softcap"]), None
    if others.pop("in_order", False):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **others)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    scale = others.get("scaling")
    if isinstance(layout, PackedStretches):
        by_token = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        found = of_stretches(by_token[0], by_token[1], by_token[2], layout, scale)
        return found.view(query.shape[0], -1, *found.shape[1:]), None
    p, n = layout.prompt_length, query.shape[1] // key.shape[1]
    of_prompts = scaled_dot_product_attention(
        query[:, :, :p],
        repeat_kv(key[:, :, :p], n),
        repeat_kv(value[:, :, :p], n),
        attn_mask=layout.prompt_bias,
        is_causal=layout.prompt_bias is None,
        scale=scale,
    )
    of_answers = (_in_one_call if layout.parts is None else _in_two_parts)(query, key, value, layout, scale)
    return torch.cat([of_prompts.transpose(1, 2), of_answers], dim=1), None


def _in_two_parts(query: Tensor, key: Tensor, value: Tensor, layout: SharedLayout, scale: float | None) -> Tensor:
    """[B, K, H * n, d] of answers, those of a prompt at once before its keys."""
    assert layout.parts is not None
    (b, g, t), p = layout.shape, layout.prompt_length
    asked, *own = (
        _slots(part[:, :, p:], layout).view(b, g, t, key.shape[1], -1, part.shape[3]) for part in (query, key, value)
    )
    found = of_even_answers(
        asked.permute(0, 3, 1, 4, 2, 5),
        (key[:, :, :p], value[:, :, :p]),
        (own[0][:, :, :, :, 0].permute(0, 3, 1, 2, 4), own[1][:, :, :, :, 0].permute(0, 3, 1, 2, 4)),
        layout.parts,
        scale,
    )
    flat = found.permute(0, 2, 4, 1, 3, 5).reshape(b * g * t, -1, found.shape[-1])
    return flat.index_select(0, layout.order).view(b, -1, *flat.shape[1:])


def _in_one_call(query: Tensor, key: Tensor, value: Tensor, layout: SharedLayout, scale: float | None) -> Tensor:
    """[B, K, H * n, d] of answers, each behind a copy of its prompt's keys."""
    (b, g, t), p, n = layout.shape, layout.prompt_length, query.shape[1] // key.shape[1]
    asked = _slots(query[:, :, p:], layout).view(b * g, t, -1, query.shape[3]).transpose(1, 2)
    # The n queries of a key head stand one after the other, so that no key has to be repeated for them.
    found = scaled_dot_product_attention(
        asked.unflatten(1, (-1, n)).flatten(2, 3),
        _behind_prompts(key, layout),
        _behind_prompts(value, layout),
        attn_mask=layout.answer_bias,
        scale=scale,
    )
    flat = found.unflatten(2, (n, -1)).flatten(1, 2).transpose(1, 2).flatten(0, 1)
    return flat.index_select(0, layout.order).view(b, -1, *flat.shape[1:])


def _refuse_otherwise(others: dict[str, Any], own_mask: bool) -> None:
    """Raise ValueError for a layer that would be computed otherwise than it was trained; of known families none is.

    own_mask: whether the layer is given the mask of its kind, in which its window is, and which a cap asks for.
    """
    if others.get("dropout"):
        raise ValueError(
            f"a layer drops {others['dropout']} of its attention in training, and the sampler none; set "
            "attention_dropout to 0 in config.json."
        )
    if not own_mask and (others.get("softcap") is not None or others.get("sliding_window") is not None):
        raise ValueError(
            f"a layer attends with softcap {others.get('softcap')} and sliding_window {others.get('sliding_window')}, "
            "which shared prompts are not computed with."
        )


def _slots(packed: Tensor, layout: SharedLayout) -> Tensor:
    """[B * G * T, H, d] of slots, from [B, H, K, d] of packed tokens."""
    return packed.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)


def _behind_prompts(rows: Tensor, layout: SharedLayout) -> Tensor:
    """[B, H, P + K, d] as [B * G, H, P + T, d]: each answer's own behind those of its prompt."""
    (b, g, t), p = layout.shape, layout.prompt_length
    own = _slots(rows[:, :, p:], layout).view(b * g, t, rows.shape[1], -1).transpose(1, 2)
    return torch.cat([rows[:, :, :p].repeat_interleave(g, 0), own], dim=2)


AttentionInterface.register(NAME, attend)
# Masks of passes without a layout are those of transformers' own `sdpa`.
AttentionMaskInterface.register(NAME, sdpa_mask)
