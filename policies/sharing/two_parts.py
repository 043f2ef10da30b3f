"""Attention of answers in two parts, to their prompt's keys and to their own, merged by log-sum-exp.

With the sums S1 and S2 of exponentiated scores over either part of the keys, and the parts' own results o1 and o2,

    o = (S1 o1 + S2 o2) / (S1 + S2)

so that all answers of a prompt go to its keys together and no key is repeated. Backwards each part is a softmax whose
weights are exp(score - log(S1 + S2)), and gets its gradients from a flash kernel that is handed the merged sums
(as in arXiv 2310.01889, where the parts lie on different devices).

Two sets of kernels: torch's for CPUs, which wants answers of one length, and that of varlen.py for GPUs.

Letters: B rows, G answers a row, T slots of an answer, P prompt tokens, H key heads, n queries a key head, d head
width, L tokens of a packed row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.sharing import varlen
from policies.sharing.packing import PackedRows
from policies.sharing.varlen import Attended, Pairs


def merged(first: Tensor, first_sums: Tensor, second: Tensor, second_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts as one: [..., d] and its log-sum-exps [...], from [..., d] and log-sum-exps [...] of each."""
    sums = torch.logaddexp(first_sums, second_sums)
    found = first * (first_sums - sums).exp()[..., None] + second * (second_sums - sums).exp()[..., None]
    return found.to(first.dtype), sums


@dataclass(frozen=True)
class Biases:
    """What is added to scores; None where everything may be seen that order allows."""

    prompt: Tensor | None
    """[B, 1, 1, P]: minus infinity at padding of prompts."""
    own: Tensor | None
    """[1, 1, n * T, T]: minus infinity at what comes later; None where n is 1."""


def of_even_answers(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], biases: Biases, scale: float | None
) -> Tensor:
    """[B, H, G, n, T, d] of query [B, H, G, n, T, d] on a CPU.

    prompt: keys and values [B, H, P, d]; own: those of each answer, [B, H, G, T, d]. Real tokens come first in T.
    """
    found: Tensor = _EvenAnswers.apply(biases, scale, query, *prompt, *own)
    return found


class _EvenAnswers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, biases: Biases, scale: float | None, query: Tensor, *keys_and_values: Tensor) -> Tensor:
        prompt_keys, prompt_values, own_keys, own_values = keys_and_values
        query = query.contiguous()
        own_keys, own_values = own_keys.flatten(1, 2), own_values.flatten(1, 2)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        by_prompt, by_answer = query.flatten(2, 4), query.flatten(3, 4).flatten(1, 2)
        of_prompt = kernel(by_prompt, prompt_keys, prompt_values, attn_mask=biases.prompt, scale=scale)
        of_own = kernel(
            by_answer, own_keys, own_values, is_causal=biases.own is None, attn_mask=biases.own, scale=scale
        )
        shape = query.shape
        found, sums = merged(
            of_prompt[0].view(shape), of_prompt[1].view(shape[:-1]), of_own[0].view(shape), of_own[1].view(shape[:-1])
        )
        ctx.save_for_backward(query, prompt_keys, prompt_values, own_keys, own_values, found, sums)
        ctx.biases, ctx.scale = biases, scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, prompt_keys, prompt_values, own_keys, own_values, found, sums = ctx.saved_tensors
        biases, scale, shape = ctx.biases, ctx.scale, query.shape
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        whole = [slopes.contiguous(), query, found.contiguous(), sums.contiguous()]
        slope, asked, given, log_sums = (x.flatten(2, 4) for x in whole)
        by_prompt, of_keys, of_values = kernel(
            slope, asked, prompt_keys, prompt_values, given, log_sums, 0.0, False, attn_mask=biases.prompt, scale=scale
        )
        slope, asked, given, log_sums = (x.flatten(3, 4).flatten(1, 2) for x in whole)
        causal = biases.own is None
        by_own, of_own_keys, of_own_values = kernel(
            slope, asked, own_keys, own_values, given, log_sums, 0.0, causal, attn_mask=biases.own, scale=scale
        )
        apart = (*shape[:3], -1, shape[5])
        of_own = of_own_keys.reshape(apart), of_own_values.reshape(apart)
        return None, None, by_prompt.reshape(shape) + by_own.reshape(shape), of_keys, of_values, *of_own


@dataclass(frozen=True)
class PackedStretches:
    """Packed rows for the kernel of GPUs; made once a pass, for all layers."""

    alone: Pairs
    """Every prompt, every answer and all padding of the rows, each in order and by itself."""
    to_prompts: Pairs
    """All answers of a row before the real tokens of its prompt."""
    answers: Tensor
    """[A] int64 into the flat [B * L]: the tokens of all answers."""
    prompts: Tensor
    """[N] int64 into the flat [B * L]: real tokens of prompts."""


def packed_stretches(packed: PackedRows) -> PackedStretches:
    """The stretches of packed rows; looks at their values, which waits for a device once."""
    (b, g, t), device = packed.shape, packed.order.device
    (p, k), real = (packed.prompt_mask.shape[1], packed.order.shape[1]), packed.real.long()
    of_answers = torch.zeros(b, g, dtype=torch.int64, device=device).scatter_add_(1, packed.order // t, real)
    prompts, answers = packed.prompt_mask.sum(1).tolist(), of_answers.tolist()
    alone = [
        length
        for prompt, row in zip(prompts, answers, strict=True)
        for length in (p - prompt, prompt, *row, k - sum(row))
    ]
    of_rows = [sum(row) for row in answers]
    held = torch.cat([torch.zeros_like(packed.prompt_mask), packed.real], dim=1)
    asked = torch.cat([packed.prompt_mask, torch.zeros_like(packed.real)], dim=1)
    bounds = varlen.bounds_of(of_rows, device), varlen.bounds_of(prompts, device)
    return PackedStretches(
        alone=Pairs.of_itself(alone, device, causal=True),
        to_prompts=Pairs(*bounds, max(of_rows), max(prompts)),
        answers=held.flatten().nonzero()[:, 0],
        prompts=asked.flatten().nonzero()[:, 0],
    )


def of_stretches(query: Tensor, key: Tensor, value: Tensor, layout: PackedStretches, scale: float | None) -> Tensor:
    """[B * L, H * n, d] of query [B * L, H * n, d], key and value [B * L, H, d] of packed rows."""
    found: Tensor = _OfStretches.apply(query, key, value, layout, scale)
    return found


class _OfStretches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackedStretches, scale: float | None
    ) -> Tensor:
        found, sums = varlen.with_log_sums(query, key, value, layout.alone, scale)
        there, answers = layout.prompts, layout.answers
        of_prompts, prompt_sums = varlen.with_log_sums(
            query[answers], key[there], value[there], layout.to_prompts, scale
        )
        joined, joined_sums = merged(found[answers], sums[:, answers].t(), of_prompts, prompt_sums.t())
        found, sums = found.index_copy(0, answers, joined), sums.index_copy(1, answers, joined_sums.t())
        ctx.save_for_backward(query, key, value, found, sums)
        ctx.layout, ctx.scale = layout, scale
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, found, sums = ctx.saved_tensors
        layout, scale, slopes = ctx.layout, ctx.scale, slopes.contiguous()
        there, answers = layout.prompts, layout.answers
        whole = Attended(found, sums, slopes)
        of_query, of_key, of_value = varlen.slopes_of_part(query, key, value, layout.alone, scale, whole)
        part = Attended(found[answers], sums[:, answers].contiguous(), slopes[answers])
        by_prompt, of_prompt_keys, of_prompt_values = varlen.slopes_of_part(
            query[answers], key[there], value[there], layout.to_prompts, scale, part
        )
        # No token stands twice in either, so that adding by index has one order.
        of_query = of_query.index_add(0, answers, by_prompt)
        of_key = of_key.index_add(0, there, of_prompt_keys)
        return of_query, of_key, of_value.index_add(0, there, of_prompt_values), None, None
