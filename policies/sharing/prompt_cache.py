"""Decoding with shared prompts: a prompt's keys and values are held once, whatever the number of its answers.

A token's attention is two batched products: the queries of a prompt's answers against the prompt, together, and each
query against the tokens of its own answer; one softmax runs over both. Nothing is copied from token to token: buffers
are allocated once, and a token is written in place.

Letters: R prompts, C answers a prompt, P prompt tokens held, T places for tokens of an answer, L layers, H key heads,
d head width, e that of values (as d but in a few families).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention, Qwen3VLTextRMSNorm


@dataclass(frozen=True)
class EncodedPrompts:
    """What is kept of R prompts, all tokens but the last of each: that one is decoded as an answer's first input."""

    keys: Tensor
    """[L, R, H, P, d]."""
    values: Tensor
    """[L, R, H, P, e]."""
    mask: Tensor
    """[R, P] bool, True on real tokens."""
    last_tokens: Tensor
    """[R] int64."""
    last_positions: Tensor
    """[R] int64: where the last tokens stand."""


_WORTH_APART = 256
"""Tokens of padding from which a prompt is not encoded together with a longer one."""


def of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Places of prompts in parts, in each of which the longest has less than _WORTH_APART tokens more than any other.

    Places are in order within a part; parts go from the longest prompts to the shortest.
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not parts or lengths[parts[-1][0]] - lengths[place] >= _WORTH_APART:
            parts.append([])
        parts[-1].append(place)
    return [sorted(part) for part in parts]


def joined_prompts(encoded: Sequence[EncodedPrompts], parts: Sequence[Sequence[int]]) -> EncodedPrompts:
    """Prompts that were encoded apart, those of parts[k] by encoded[k], padded on the left to one length."""
    longest = max(one.mask.shape[1] for one in encoded)
    order = torch.tensor([place for part in parts for place in part]).argsort().to(encoded[0].mask.device)

    def padded(tensors: list[Tensor], places: int, tokens: int) -> Tensor:
        """places, tokens: which axes of the tensors have the prompts and their tokens."""
        shape = list(tensors[0].shape)
        shape[places], shape[tokens] = len(order), longest
        whole = tensors[0].new_zeros(shape)
        first = 0
        for tensor in tensors:
            rows = whole.narrow(places, first, tensor.shape[places])
            rows.narrow(tokens, longest - tensor.shape[tokens], tensor.shape[tokens]).copy_(tensor)
            first += tensor.shape[places]
        return whole.index_select(places, order)

    return EncodedPrompts(
        keys=padded([one.keys for one in encoded], 1, 3),
        values=padded([one.values for one in encoded], 1, 3),
        mask=padded([one.mask for one in encoded], 0, 1),
        last_tokens=torch.cat([one.last_tokens for one in encoded])[order],
        last_positions=torch.cat([one.last_positions for one in encoded])[order],
    )


@dataclass(frozen=True)
class _Layer:
    """One layer's part of the buffers, as the products want it; views, nothing is held twice."""

    prompt_keys: Tensor
    """[R * H, d, P]."""
    prompt_values: Tensor
    """[R * H, P, e]."""
    own_keys: Tensor
    """[R, H, C, T, d]."""
    own_values: Tensor
    """[R, H, C, T, e]."""


class PromptCache:
    """Keys and values of R prompts, and of C answers to each of them that grow by a token at a time.

    All answers of a prompt are equally long. Prompts may enter and leave; a token goes to the same place of the
    buffer for all, and `_bias` says who may look at it.
    """

    def __init__(self, prompts: EncodedPrompts, group_size: int, max_tokens: int) -> None:
        """Takes `prompts` over: its tensors are written to where others enter."""
        layers, r, heads, _, width = prompts.keys.shape
        # Zeros: a place that nobody may look at is still multiplied, by 0.
        keys = prompts.keys.new_zeros(layers, r, heads, group_size, max_tokens, width)
        values = prompts.values.new_zeros(*keys.shape[:-1], prompts.values.shape[-1])
        self._hold(prompts, keys, values)
        closed = torch.full((r, max_tokens), -torch.inf, device=prompts.mask.device)
        self._bias = torch.cat([_bias(prompts.mask), closed], dim=1)
        self._needs_bias = not bool(prompts.mask.all())
        self.positions = prompts.last_positions
        """[R] int64: where the next token of each prompt's answers stands."""
        self._steps, self._capacity = 0, max_tokens

    def _hold(self, prompts: EncodedPrompts, keys: Tensor, values: Tensor) -> None:
        """Let these be the buffers; keys [L, R, H, C, T, d], values [L, R, H, C, T, e], of the answers."""
        self.prompts, self._keys, self._values = prompts, keys, values
        self._layers = [
            _Layer(prompt_keys.flatten(0, 1).transpose(1, 2), prompt_values.flatten(0, 1), own_keys, own_values)
            for prompt_keys, prompt_values, own_keys, own_values in zip(
                prompts.keys, prompts.values, keys, values, strict=True
            )
        ]

    def replace(self, places: Tensor, entering: EncodedPrompts) -> None:
        """Put other prompts, of the same P, in place of those at `places` [M]; their answers begin anew."""
        held = self.prompts
        held.keys[:, places] = entering.keys
        held.values[:, places] = entering.values
        held.mask[places] = entering.mask
        self.positions = self.positions.index_copy(0, places, entering.last_positions)
        p = held.mask.shape[1]
        self._bias[places, :p] = _bias(entering.mask)
        self._bias[places, p:] = -torch.inf
        self._needs_bias = True

    def keep(self, places: Tensor, answers: Tensor) -> None:
        """Drop all but the prompts at `places` [M], and of the answers of each all but `answers` [M, C']."""
        held = self.prompts
        prompts = EncodedPrompts(
            held.keys[:, places],
            held.values[:, places],
            held.mask[places],
            held.last_tokens[places],
            held.last_positions[places],
        )
        # Indices that a slice stands between put their own axes first.
        keys, values = (
            tensor[:, places[:, None], :, answers].permute(2, 0, 3, 1, 4, 5).contiguous()
            for tensor in (self._keys, self._values)
        )
        self._hold(prompts, keys, values)
        self._bias, self.positions = self._bias[places], self.positions[places]

    def begin_token(self) -> None:
        """Open the next place of the buffers to all answers."""
        self._bias[:, self.prompts.mask.shape[1] + self._place] = 0.0

    def end_token(self) -> None:
        """All layers have written; the next token follows."""
        self.positions = self.positions + 1
        self._steps += 1

    @property
    def _place(self) -> int:
        # Round and round: by the time a place is used again, the answer that used it has had all its tokens.
        return self._steps % self._capacity

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one token of each answer, its own key and value being written first.

        queries: [R * C, H * n, d], scaled, n of them per key head; keys: [R * C, H, d]; values: [R * C, H, e].
        Returns [R * C, H * n * e].
        """
        held = self._layers[layer]
        r, heads, c, _, d = held.own_keys.shape
        held.own_keys.select(3, self._place).copy_(keys.view(r, c, heads, d).transpose(1, 2))
        held.own_values.select(3, self._place).copy_(values.view(r, c, heads, -1).transpose(1, 2))
        used = min(self._steps + 1, self._capacity)
        own_keys, own_values = (x.flatten(0, 2)[:, :used] for x in (held.own_keys, held.own_values))
        by_head = queries.view(r, c, heads, -1, d).transpose(1, 2).reshape(r * heads * c, -1, d)
        n = by_head.shape[1]
        to_prompt = torch.bmm(by_head.view(r * heads, c * n, d), held.prompt_keys)
        to_own = torch.bmm(by_head, own_keys.transpose(1, 2)).view(r * heads, c * n, used)
        weights = self._softmax(torch.cat([to_prompt, to_own], dim=2)).to(values.dtype)
        of_prompt, of_own = weights.split([to_prompt.shape[2], used], dim=2)
        mixed = torch.bmm(of_prompt, held.prompt_values).view(r, heads, c, n, -1)
        own = torch.bmm(of_own.unflatten(1, (c, n)).flatten(0, 1), own_values)
        return (mixed + own.view_as(mixed)).transpose(1, 2).reshape(r * c, -1)

    def _softmax(self, scores: Tensor) -> Tensor:
        """Over the last axis, float32; scores: [R * H, C * n, P + used]."""
        if self._needs_bias:
            by_prompt = scores.unflatten(0, (len(self._bias), -1))
            scores = (by_prompt + self._bias[:, None, None, : scores.shape[-1]]).flatten(0, 1)
        return scores.softmax(-1, dtype=torch.float32)


def _bias(mask: Tensor) -> Tensor:
    """0 where `mask` is True, minus infinity elsewhere, float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def next_states(text: Any, cache: PromptCache, tokens: Tensor) -> Tensor:
    """Hidden states [R * C, width] after one more token of each answer; the cache grows by it.

    text: transformers' language model of Qwen2.5-VL, Qwen3-VL or the Llama kind; tokens: [R, C] int64. Its layers' own
    modules are called, in their order; only what is between them is written anew, for one token has little to do and
    calls cost.
    """
    cache.begin_token()
    hidden = text.embed_tokens(tokens.flatten())
    positions = cache.positions.repeat_interleave(tokens.shape[1])[:, None]
    # The Qwen kinds turn by row, column and time apart; of text all three are the same.
    of_axes = positions if isinstance(text, LlamaModel) else positions.expand(3, -1, -1)
    turn = _Turn(*text.rotary_emb(hidden, of_axes))
    for index, layer in enumerate(text.layers):
        attention, normed = layer.self_attn, _normed(layer.input_layernorm, hidden)
        by_head = (len(hidden), -1, attention.head_dim)
        queries = attention.q_proj(normed).view(by_head)
        keys = attention.k_proj(normed).view(by_head)
        values = attention.v_proj(normed).view(by_head)
        if isinstance(attention, Qwen3VLTextAttention):
            queries, keys = _normed(attention.q_norm, queries), _normed(attention.k_norm, keys)
        queries, keys = turn(torch.cat([queries, keys], dim=1)).split([queries.shape[1], keys.shape[1]], dim=1)
        hidden = hidden + attention.o_proj(cache.attend(index, queries * attention.scaling, keys, values))
        hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
    cache.end_token()
    return _normed(text.norm, hidden)


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    """What a family's RMS norm gives; in float32 by one call, for those that multiply by their weights. In other
    formats its own rounding is kept."""
    if hidden.dtype == torch.float32 and isinstance(norm, _NORMS):
        return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return norm(hidden)


_NORMS = (LlamaRMSNorm, Qwen2_5_VLRMSNorm, Qwen3VLTextRMSNorm)


class _Turn:
    """The turn of rotary positions, prepared once a token for all layers."""

    def __init__(self, cosines: Tensor, sines: Tensor) -> None:
        """cosines, sines: [N, 1, d]."""
        self._half = cosines.shape[-1] // 2
        self._cosines = cosines
        # transformers negates half of the vector; negating half of the sines is the same, and done once.
        self._sines = torch.cat([-sines[..., : self._half], sines[..., self._half :]], dim=-1)

    def __call__(self, vectors: Tensor) -> Tensor:
        """[N, heads, d] vectors at their positions."""
        return vectors * self._cosines + vectors.roll(self._half, -1) * self._sines
