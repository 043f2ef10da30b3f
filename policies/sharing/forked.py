"""Layers with a state in place of keys (Gated DeltaNet, arXiv 2412.06464), forked behind a prompt for its answers.

Such a layer reads tokens in order: a convolution over the last few, and a matrix a head that every token decays, reads
and corrects,

    S_t = a_t S_(t-1) + b_t k_t (v_t - a_t S_(t-1)^T k_t)^T,    o_t = S_t^T q_t,

so that no mask keeps one answer from another. What an answer needs of its prompt is the state behind it: it is computed
once a prompt, and each answer goes on from it, in learning with gradients back through it.

Letters as in policies/sharing/packing.py, and N = R * C tokens, M such layers, D channels, k places of the convolution,
H heads, d and e widths of keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5GatedDeltaNet,
    apply_rotary_pos_emb,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from policies.sharing.packing import PackedRows
from policies.sharing.prompt_cache import PromptCache

LINEAR = "linear_attention"
"""What transformers calls the kind of such a layer."""


@dataclass(frozen=True)
class Forks:
    """Where the answers of packed rows lie, for layers that read in order."""

    mask: Tensor
    """[B, P] bool, True on real tokens of prompts."""
    parts: tuple["ForkedPart", ...]
    """The answers by their length."""
    order: Tensor
    """[B * K] int64 into the slots of all parts, one behind the other: the slot of each packed token."""


@dataclass(frozen=True)
class ForkedPart:
    """Answers that are read together, none less than half as long as another, or of _SHORT tokens at most."""

    rows: Tensor
    """[A] int64: the row of each answer."""
    slots: Tensor
    """[A, t] int64 into the flat [B * K]: the packed token in each slot of the answers, any in empty ones, which stand
    behind the real ones."""


_SHORT = 64
"""Tokens up to which answers are read together whatever their length: the rule takes as many at once."""


def forks(packed: PackedRows) -> Forks:
    """Where the answers of packed rows lie; looks at their lengths, which waits for a device once."""
    (b, g, t), k, device = packed.shape, packed.order.shape[1], packed.order.device
    row = torch.arange(b, device=device)[:, None]
    # Slots [B * G, T] of answers, and how many each has.
    flat = (row * g * t + packed.order)[packed.real]
    held = torch.zeros(b * g * t, dtype=torch.int64, device=device)
    held[flat] = (row * k + torch.arange(k, device=device))[packed.real]
    lengths = torch.bincount(flat // t, minlength=b * g)
    place, parts, first = torch.zeros(b * g * t, dtype=torch.int64, device=device), list[ForkedPart](), 0
    for answers, longest in _of_like_length(lengths.tolist()):
        chosen = torch.tensor(answers, device=device)
        slots = held.view(b * g, t)[chosen, :longest]
        parts.append(ForkedPart(chosen // g, slots))
        numbers = first + torch.arange(slots.numel(), device=device).view_as(slots)
        place.view(b * g, t)[chosen, :longest] = numbers
        first += slots.numel()
    return Forks(packed.prompt_mask, tuple(parts), place[(row * g * t + packed.order).flatten()])


def _of_like_length(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Answers by classes of length, up to _SHORT, twice that, and so on, each with its longest; none without tokens."""
    classes: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length:
            classes.setdefault(max(0, ceil(log2(length / _SHORT))), []).append(number)
    return [(answers, max(lengths[k] for k in answers)) for _, answers in sorted(classes.items())]


class ForkedDeltaNet(nn.Module):
    """transformers' Gated DeltaNet of Qwen3.5, under the same names and with the very parameters it had."""

    def __init__(self, held: Qwen3_5GatedDeltaNet) -> None:
        super().__init__()
        self.layer_idx, self._places = held.layer_idx, int(held.conv_kernel_size)
        self._widths = [held.key_dim, held.key_dim, held.value_dim]
        self._key_width, self._value_width = held.head_k_dim, held.head_v_dim
        self.conv1d, self.norm, self.out_proj = held.conv1d, held.norm, held.out_proj
        self.dt_bias, self.A_log = held.dt_bias, held.A_log
        self.in_proj_qkv, self.in_proj_z = held.in_proj_qkv, held.in_proj_z
        self.in_proj_b, self.in_proj_a = held.in_proj_b, held.in_proj_a

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        forks: Forks | None = None,
        **others: Any,
    ) -> Tensor:
        """[B, L, width] of hidden states [B, L, width]: of packed rows by their forks, else of rows of text alone.

        attention_mask: [B, L] bool, True on real tokens; None for all, and where there are forks. cache_params:
        transformers' cache, which has the states behind the tokens before, and gets those behind these.
        """
        if forks is not None:
            answers = forks.order.numel() // len(hidden_states)
            attention_mask = functional.pad(forks.mask, (0, answers), value=True)
        if attention_mask is not None:
            hidden_states = hidden_states * attention_mask[..., None].to(hidden_states.dtype)
        mixed, rates = self.in_proj_qkv(hidden_states), self._rates(hidden_states)
        if forks is None:
            found, tail, state = self._read(mixed, rates, self._held(cache_params))
            if cache_params is not None:
                cache_params.update_conv_state(tail, self.layer_idx, conv_kernel_size=self._places - 1)
                cache_params.update_recurrent_state(state, self.layer_idx)
        else:
            found = self._read_forked(mixed, rates, forks)
        return self._written(found, hidden_states)

    def _held(self, cache: Any) -> Sequence[Tensor] | None:
        """What the tokens that a cache of transformers has seen left; None for none."""
        tail = None if cache is None else cache.get_conv_state(self.layer_idx, state_idx=0)
        return None if tail is None else (tail, cache.get_recurrent_state(self.layer_idx, state_idx=0))

    def _read_forked(self, mixed: Tensor, rates: Tensor, forks: Forks) -> Tensor:
        """[B, L, H, e] of packed rows."""
        p = forks.mask.shape[1]
        whole = [self._behind(mixed[:, :p], None)]
        tail, own, own_rates = self._tail(whole[0]), mixed[:, p:].flatten(0, 1), rates[:, p:].flatten(0, 1)
        for part in forks.parts:
            asked = own.index_select(0, part.slots.flatten()).view(*part.slots.shape, -1)
            whole.append(self._behind(asked, _of_rows(tail, part.rows)))
        convolved = self._convolved(whole)
        of_prompts, state = self._ruled(convolved[0], rates[:, :p])
        found = []
        for part, made in zip(forks.parts, convolved[1:], strict=True):
            strengths = own_rates.index_select(0, part.slots.flatten()).view(*part.slots.shape, -1)
            found.append(self._ruled(made, strengths, _of_rows(state, part.rows))[0].flatten(0, 1))
        packed = torch.cat(found).index_select(0, forks.order).unflatten(0, (len(mixed), -1))
        return torch.cat([of_prompts, packed], dim=1)

    def _rates(self, states: Tensor) -> Tensor:
        """[..., 2 H]: what decides how strongly each token corrects, and how much it forgets."""
        return torch.cat([self.in_proj_b(states), self.in_proj_a(states)], dim=-1)

    def _read(
        self, mixed: Tensor, rates: Tensor, before: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, L, H, e] of queries, keys and values [N, L, D] in order, and what a next token needs: the last inputs of
        the convolution [N, D, k - 1], and the state [N, H, d, e] in float32.

        rates: [N, L, 2 H]; before: what the tokens before left; None for none.
        """
        whole = self._behind(mixed, None if before is None else before[0])
        found, state = self._ruled(self._convolved([whole])[0], rates, None if before is None else before[1])
        return found, self._tail(whole), state

    def _behind(self, mixed: Tensor, tail: Tensor | None) -> Tensor:
        """[N, D, k - 1 + L] the convolution's inputs: of tokens [N, L, D] behind a tail [N, D, k - 1], zeros for
        none."""
        by_channel = mixed.transpose(1, 2)
        empty = by_channel.new_zeros(*by_channel.shape[:2], self._places - 1)
        return torch.cat([empty if tail is None else tail.to(by_channel.dtype), by_channel], dim=2)

    def _tail(self, whole: Tensor) -> Tensor:
        """[N, D, k - 1] the last inputs of a convolution."""
        return whole[:, :, whole.shape[2] - self._places + 1 :]

    def _convolved(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """[N, D, L] of inputs [N, D, k - 1 + L] each, by one call of the convolution whatever there is: by its calls
        ZeRO-3 fetches its weights, and ranks go through them in step."""
        flat = torch.cat([each.transpose(0, 1).flatten(1) for each in whole], dim=1)
        made, first, found = functional.silu(self.conv1d(flat[None]))[0], 0, list[Tensor]()
        for each in whole:
            own = made[:, first : first + each.shape[0] * each.shape[2]].view(len(made), each.shape[0], -1)
            # What reaches into another row's inputs stands at the places of the tail.
            found.append(own[:, :, self._places - 1 :].transpose(0, 1))
            first += each.shape[0] * each.shape[2]
        return found

    def _ruled(self, convolved: Tensor, rates: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[N, L, H, e] and the state behind, of what the convolution made [N, D, L]; state: before; None for zeros."""
        rule = torch_recurrent_gated_delta_rule if convolved.shape[2] == 1 else torch_chunk_gated_delta_rule
        widths = (self._key_width, self._key_width, self._value_width)
        parts = zip(convolved.transpose(1, 2).split(self._widths, dim=-1), widths, strict=True)
        found, behind = rule(
            *(part.unflatten(-1, (-1, width)) for part, width in parts),
            **self._strengths(rates),
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return found, behind

    def _strengths(self, rates: Tensor) -> dict[str, Tensor]:
        """The rule's rates of correction, and logarithms of what is kept, [N, L, H] each."""
        correcting, forgetting = rates.chunk(2, dim=-1)
        kept = -self.A_log.float().exp() * functional.softplus(forgetting.float() + self.dt_bias)
        return {"beta": correcting.sigmoid(), "g": kept}

    def _written(self, found: Tensor, states: Tensor) -> Tensor:
        """[..., width] of what was read [..., H, e] behind the gates of states [..., width]."""
        gates = self.in_proj_z(states).unflatten(-1, (-1, self._value_width))
        normed = self.norm(found.flatten(0, -2), gates.flatten(0, -2))
        added: Tensor = self.out_proj(normed.view(*states.shape[:-1], -1))
        return added

    def next_token(self, hidden: Tensor, tails: Tensor, states: Tensor) -> Tensor:
        """[N, width] of one more token of each answer, hidden [N, width]; tails [R, C, D, k - 1] and states
        [R, C, H, d, e] are brought up to it in place."""
        one = hidden[:, None]
        before = tails.flatten(0, 1), states.flatten(0, 1)
        found, tail, state = self._read(self.in_proj_qkv(one), self._rates(one), before)
        tails.copy_(tail.view_as(tails))
        states.copy_(state.view_as(states))
        return self._written(found, one)[:, 0]


def _of_rows(held: Tensor, rows: Tensor) -> Tensor:
    """[A, ...] of [B, ...] by rows [A]. An embedding adds up gradients in order, so that a run repeats itself to the
    bit."""
    return functional.embedding(rows, held.flatten(1)).unflatten(1, held.shape[1:])


def replace_delta_nets(text: Any) -> None:
    """Put a ForkedDeltaNet in the place of every such layer of a language model."""
    for layer in text.layers:
        if layer.block_type == LINEAR:
            layer.linear_attn = ForkedDeltaNet(layer.linear_attn).train(layer.training)


def states_behind(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """([M, R, D, k - 1], [M, R, H, d, e]) of the layers of transformers' cache that hold states."""
    return (
        torch.stack([layer.conv_states[0] for layer in layers]),
        torch.stack([layer.recurrent_states[0] for layer in layers]),
    )


class ForkedDecoder:
    """The layers of transformers' Qwen3.5, for one cache."""

    def __init__(self, text: Any) -> None:
        self._text = text
        kinds: list[str] = list(text.config.layer_types)
        # Each layer's number among those of its kind, by which the cache knows it.
        numbers = [kinds[:k].count(kind) for k, kind in enumerate(kinds)]
        self._layers = list(zip(text.layers, kinds, numbers, strict=True))

    def refresh(self) -> None:
        """Nothing of the parameters is held."""

    def next_states(self, cache: PromptCache, tokens: Tensor) -> Tensor:
        """Hidden states [N, width] after one more token of each answer, tokens [R, C] int64; the cache grows by it."""
        cache.begin_token()
        hidden = self._text.embed_tokens(tokens.flatten())
        positions = cache.positions[:, None].expand_as(tokens).reshape(1, 1, -1).expand(3, -1, -1)
        cosines, sines = (part[0] for part in self._text.rotary_emb(hidden, positions))
        for layer, kind, number in self._layers:
            before = layer.input_layernorm(hidden)
            if kind == LINEAR:
                tails, states = cache.states
                hidden = hidden + layer.linear_attn.next_token(before, tails[number], states[number])
            else:
                hidden = hidden + _attended(layer.self_attn, cache, number, before, cosines, sines)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        cache.end_token()
        last: Tensor = self._text.norm(hidden)
        return last


def _attended(
    attention: Any, cache: PromptCache, number: int, before: Tensor, cosines: Tensor, sines: Tensor
) -> Tensor:
    """What attention adds to tokens [N, width], a gate on its result; cosines, sines: [N, turned]."""
    queries, gates = attention.q_proj(before).unflatten(-1, (-1, 2 * attention.head_dim)).chunk(2, dim=-1)
    keys, values = (
        linear(before).unflatten(-1, (-1, attention.head_dim)) for linear in (attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(attention.q_norm(queries), attention.k_norm(keys), cosines, sines)
    mixed = cache.attend(number, queries * attention.scaling, keys, values)
    added: Tensor = attention.o_proj(mixed * gates.flatten(1).sigmoid())
    return added
