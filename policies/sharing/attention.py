"""Attention of one row per group, without the parts in which nobody looks at anybody.

A row of P prompt and K packed answer tokens has (P + K)^2 pairs of tokens, but an answer looks only at the prompt and
at itself. So the prompt is attended by itself, and then each answer, in a row of its own, by the prompt's keys and its
own: P^2 + G T (P + T) pairs, and no mask of the whole. All else of a layer runs on the packed row.

Letters: B rows, G answers a row, T slots of an answer, P prompt tokens, K packed answer tokens, H key heads, n queries
a key head, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from policies.sharing.packing import PackedRows, causal

NAME = "shared_prompt"
"""What transformers calls this attention (attn_implementation)."""


@dataclass(frozen=True)
class SharedLayout:
    """Where the answers of packed rows lie; made once a forward pass, for all layers."""

    prompt_attends: Tensor | None
    """[B, 1, P, P] bool, query before key; None where no prompt is padded: then by order alone."""
    answer_attends: Tensor
    """[B * G or 1, 1, n * T, P + T] bool: a token of an answer before the prompt's keys and those of its own answer."""
    slots: Tensor
    """[B * G * T] int64 into the flat [B * K]: the packed token in each slot of the answers, any in empty ones."""
    order: Tensor
    """[B * K] int64 into the flat [B * G * T]: the slot of each packed token."""
    prompt_length: int
    """P."""
    shape: tuple[int, int, int]
    """(B, G, T)."""


def prompt_inputs(mask: Tensor) -> dict[str, Any]:
    """What the language model is called with for prompts alone, mask [B, P]: a mask only where one is padded."""
    b, p = mask.shape
    if mask.all():
        # transformers leaves a mask of four axes as it is, and makes none of its own.
        return {"attention_mask": mask.view(b, 1, 1, p), "in_order": True}
    return {"attention_mask": causal(mask)[:, None]}


def inputs(packed: PackedRows, queries_per_key: int) -> dict[str, Any]:
    """What the language model is called with so that packed rows are attended as they should be.

    queries_per_key: n of the model's layers.

    A mask of the whole row where nothing is shared, or where answers are so uneven that their empty slots would cost
    more than it.
    """
    b, g, t = packed.shape
    p, k = packed.prompt_mask.shape[1], packed.order.shape[1]
    if g == 1 or p * p + g * t * (p + t) >= (p + k) ** 2:
        return {"attention_mask": packed.attends}
    return {"attention_mask": packed.prompt_mask.view(b, 1, 1, p), "layout": shared_layout(packed, queries_per_key)}


def shared_layout(packed: PackedRows, queries_per_key: int = 1) -> SharedLayout:
    """The layout of packed rows, for layers of so many queries a key head."""
    (b, g, t), k = packed.shape, packed.order.shape[1]
    p, device = packed.prompt_mask.shape[1], packed.order.device
    whole = bool(packed.prompt_mask.all())
    seen = packed.prompt_mask[:1] if whole else packed.prompt_mask.repeat_interleave(g, 0)
    own = torch.ones(t, t, dtype=torch.bool, device=device).tril()
    # An answer's real tokens come first in its slots, so that order alone keeps them from looking at empty ones.
    answers = torch.cat([seen[:, None, :].expand(-1, t, -1), own.expand(len(seen), -1, -1)], dim=2)
    row = torch.arange(b, device=device)[:, None]
    held = torch.arange(k, device=device).expand(b, -1)
    slots = torch.zeros(b, g * t, dtype=torch.int64, device=device).scatter(1, packed.order, held)
    return SharedLayout(
        prompt_attends=None if whole else causal(packed.prompt_mask)[:, None],
        answer_attends=answers[:, None].repeat(1, 1, queries_per_key, 1),
        slots=(row * k + slots).flatten(),
        order=(row * g * t + packed.order).flatten(),
        prompt_length=p,
        shape=packed.shape,
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: SharedLayout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query [B, H * n, L, d], key and value [B, H, L, d] to [B, L, H * n, d].

    layout: of packed rows, L = P + K, which then takes the mask's place; without one this is transformers' own `sdpa`.
    `in_order` among the others: whether each token attends to those before it and itself, whatever the mask.
    """
    _refuse_otherwise(others)
    if others.pop("in_order", False):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **others)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    settings = {"scale": others.get("scaling"), "dropout_p": others.get("dropout", 0.0)}
    p, n = layout.prompt_length, query.shape[1] // key.shape[1]
    of_prompts = scaled_dot_product_attention(
        query[:, :, :p],
        repeat_kv(key[:, :, :p], n),
        repeat_kv(value[:, :, :p], n),
        attn_mask=layout.prompt_attends,
        is_causal=layout.prompt_attends is None,
        **settings,
    )
    # The n queries of a key head stand one after the other, so that no key has to be repeated for them.
    of_answers = scaled_dot_product_attention(
        _apart(query[:, :, p:], layout).unflatten(1, (-1, n)).flatten(2, 3),
        _behind_prompts(key, layout),
        _behind_prompts(value, layout),
        attn_mask=layout.answer_attends,
        **settings,
    )
    of_answers = of_answers.unflatten(2, (n, -1)).flatten(1, 2)
    return torch.cat([of_prompts.transpose(1, 2), _packed(of_answers, layout)], dim=1), None


def _refuse_otherwise(others: dict[str, Any]) -> None:
    """Raise ValueError for a layer that would be computed otherwise than it was trained; of known families none is."""
    if others.get("softcap") is not None or others.get("sliding_window") is not None:
        raise ValueError(
            f"a layer attends with softcap {others.get('softcap')} and sliding_window {others.get('sliding_window')}, "
            "which shared prompts are not computed with."
        )


def _apart(packed: Tensor, layout: SharedLayout) -> Tensor:
    """[B, H, K, d] of packed tokens as [B * G, H, T, d] of answers."""
    b, g, t = layout.shape
    flat = packed.transpose(1, 2).flatten(0, 1)
    return flat.index_select(0, layout.slots).view(b * g, t, *flat.shape[1:]).transpose(1, 2)


def _packed(apart: Tensor, layout: SharedLayout) -> Tensor:
    """[B * G, H, T, d] of answers as [B, K, H, d] of packed tokens."""
    flat = apart.transpose(1, 2).flatten(0, 1)
    return flat.index_select(0, layout.order).view(layout.shape[0], -1, *flat.shape[1:])


def _behind_prompts(rows: Tensor, layout: SharedLayout) -> Tensor:
    """[B, H, P + K, d] as [B * G, H, P + T, d]: each answer's own behind those of its prompt."""
    prompts = rows[:, :, : layout.prompt_length].repeat_interleave(layout.shape[1], 0)
    return torch.cat([prompts, _apart(rows[:, :, layout.prompt_length :], layout)], dim=2)


AttentionInterface.register(NAME, attend)
# Masks of passes without a layout are those of transformers' own `sdpa`.
AttentionMaskInterface.register(NAME, sdpa_mask)
