"""Decoding with shared prompts: a prompt's keys and values are held once, whatever the number of its answers.

A token's attention is two batched products: the queries of a prompt's answers against the prompt, together, and each
query against the tokens of its own answer; one softmax runs over both. Nothing is copied from token to token: buffers
are allocated once, and a token is written in place. Keys are held with their tokens last, as the product wants them.

Letters: R prompts, C answers a prompt, P prompt tokens held, T places for tokens of an answer, L layers, H key heads,
d head width, e that of values (as d but in a few families).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from policies.sharing.capped import capped


class LayerDecoder(Protocol):
    """The layers of a model, for one cache; what it is asked for is its family's affair."""

    def refresh(self) -> None:
        """Take over what the parameters are by now, in place."""
        ...


@dataclass(frozen=True)
class EncodedPrompts:
    """What is kept of R prompts, all tokens but the last of each: that one is decoded as an answer's first input."""

    keys: Tensor
    """[L, R, H, d, P]."""
    values: Tensor
    """[L, R, H, P, e]."""
    mask: Tensor
    """[R, P] bool, True on real tokens."""
    last_tokens: Tensor
    """[R] int64."""
    last_positions: Tensor
    """[R] int64: where the last tokens stand."""
    routes: Tensor | None = None
    """[R, P, M, k] int16: the experts that the tokens went to, -1 at padding added later; None without experts."""
    states: tuple[Tensor, ...] | None = None
    """[layers, R, ...] each: what layers without keys hold behind the prompts (policies/sharing/forked.py); None where
    there are none."""


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


def stacked(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Keys [L, R, H, d, P] and values [L, R, H, P, e] of the layers of transformers' cache, which are emptied on the
    way: never are more than one layer's held twice."""
    first = layers[0]
    (r, heads, p, d), e = first.keys.shape, first.values.shape[-1]
    keys = first.keys.new_empty(len(layers), r, heads, d, p)
    values = first.values.new_empty(len(layers), r, heads, p, e)
    for k, layer in enumerate(layers):
        keys[k], values[k] = layer.keys.transpose(2, 3), layer.values
        layer.keys = layer.values = None
    return keys, values


def padded_prompts(prompts: EncodedPrompts, tokens: int) -> EncodedPrompts:
    """Prompts padded on the left to `tokens`, P or more."""
    more = tokens - prompts.mask.shape[1]
    return replace(
        prompts,
        keys=functional.pad(prompts.keys, (more, 0)),
        values=functional.pad(prompts.values, (0, 0, more, 0)),
        mask=functional.pad(prompts.mask, (more, 0)),
        routes=None if prompts.routes is None else functional.pad(prompts.routes, (0, 0, 0, 0, more, 0), value=-1),
    )


def joined_prompts(encoded: Sequence[EncodedPrompts], parts: Sequence[Sequence[int]]) -> EncodedPrompts:
    """Prompts that were encoded apart, those of parts[k] by encoded[k], padded on the left to one length."""
    longest = max(one.mask.shape[1] for one in encoded)
    order = torch.tensor([place for part in parts for place in part]).argsort().to(encoded[0].mask.device)
    whole = [padded_prompts(one, longest) for one in encoded]
    routes = [one.routes for one in whole if one.routes is not None]
    states = list(zip(*(one.states for one in whole if one.states is not None), strict=True))
    return EncodedPrompts(
        keys=torch.cat([one.keys for one in whole], dim=1).index_select(1, order),
        values=torch.cat([one.values for one in whole], dim=1).index_select(1, order),
        mask=torch.cat([one.mask for one in whole])[order],
        last_tokens=torch.cat([one.last_tokens for one in whole])[order],
        last_positions=torch.cat([one.last_positions for one in whole])[order],
        routes=None if not routes else torch.cat(routes)[order],
        states=tuple(torch.cat(each, dim=1).index_select(1, order) for each in states) or None,
    )


@dataclass(frozen=True)
class _Layer:
    """One layer's part of the buffers, as the products want it; views, nothing is held twice."""

    prompt_keys: Tensor
    """[R * H, d, P]."""
    prompt_values: Tensor
    """[R * H, P, e]."""
    own_keys: Tensor
    """[R, H, C, d, T]."""
    own_values: Tensor
    """[R, H, C, T, e]."""


class PromptCache:
    """Keys and values of R prompts, and of C answers to each of them that grow by a token at a time.

    All answers of a prompt are equally long. Prompts may enter and leave; a token goes to the same place of the
    buffer for all, and `_bias` says who may look at it.
    """

    def __init__(self, prompts: EncodedPrompts, group_size: int, max_tokens: int, same_calls: bool = False) -> None:
        """Takes `prompts` over: its tensors are written to where others enter.

        same_calls: whether each token makes the very same calls on the very same buffers, as a CUDA graph repeats them:
        all places are multiplied, those still empty by 0, and none may leave.
        """
        layers, r, heads, width, _ = prompts.keys.shape
        # Zeros: a place that nobody may look at is still multiplied, by 0.
        keys = prompts.keys.new_zeros(layers, r, heads, group_size, width, max_tokens)
        values = prompts.values.new_zeros(layers, r, heads, group_size, max_tokens, prompts.values.shape[-1])
        self._hold(prompts, keys, values)
        closed = torch.full((r, max_tokens), -torch.inf, device=prompts.mask.device)
        self._bias = torch.cat([_bias(prompts.mask), closed], dim=1)
        self._needs_bias = same_calls or not bool(prompts.mask.all())
        self.positions = prompts.last_positions.clone()
        """[R] int64: where the next token of each prompt's answers stands."""
        self.decoder: LayerDecoder | None = None
        """What takes the tokens; the policy puts it here, so that it goes when the cache goes."""
        self.states = tuple(_forked(each, group_size).clone() for each in prompts.states or ())
        """[layers, R, C, ...] each: what layers without keys hold behind each answer; () where there are none."""
        self._steps, self._capacity = 0, max_tokens
        self._place = torch.zeros(1, dtype=torch.int64, device=prompts.mask.device) if same_calls else None

    def _hold(self, prompts: EncodedPrompts, keys: Tensor, values: Tensor) -> None:
        """Let these be the buffers; keys [L, R, H, C, d, T], values [L, R, H, C, T, e], of the answers."""
        self.prompts, self._keys, self._values = prompts, keys, values
        self._layers = [
            _Layer(prompt_keys.flatten(0, 1), prompt_values.flatten(0, 1), own_keys, own_values)
            for prompt_keys, prompt_values, own_keys, own_values in zip(
                prompts.keys, prompts.values, keys, values, strict=True
            )
        ]

    @property
    def longest(self) -> int:
        """Positions that tokens of these prompts, and of their answers, can have: 0 to this number less 1."""
        return self.prompts.mask.shape[1] + 1 + self._capacity

    def replace(self, places: Tensor, entering: EncodedPrompts) -> None:
        """Put other prompts, of the same P, in place of those at `places` [M]; their answers begin anew."""
        held = self.prompts
        held.keys[:, places] = entering.keys
        held.values[:, places] = entering.values
        held.mask[places] = entering.mask
        held.last_tokens[places] = entering.last_tokens
        held.last_positions[places] = entering.last_positions
        for own, state in zip(self.states, entering.states or (), strict=True):
            own[:, places] = _forked(state, own.shape[2])
        self.positions[places] = entering.last_positions
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
        self.states = tuple(state[:, places[:, None], answers] for state in self.states)
        self._bias, self.positions = self._bias[places], self.positions[places]

    def begin_token(self) -> None:
        """Open the next place of the buffers to all answers."""
        of_answers = self._bias[:, self.prompts.mask.shape[1] :]
        if self._place is None:
            of_answers[:, self._steps % self._capacity] = 0.0
        else:
            of_answers.index_fill_(1, self._place, 0.0)

    def end_token(self) -> None:
        """All layers have written; the next token follows."""
        # An answer that has had all its tokens may have to wait for others; it is not looked at, wherever it stands.
        self.positions.add_(1).clamp_(max=self.longest - 1)
        self._steps += 1
        if self._place is not None:
            self._place.add_(1).remainder_(self._capacity)

    @property
    def _next(self) -> int | Tensor:
        """Place of the next token: where all calls are the same, on the device."""
        # Round and round: by the time a place is used again, the answer that used it has had all its tokens.
        return self._steps % self._capacity if self._place is None else self._place

    @property
    def _used(self) -> int:
        """Places that are multiplied."""
        return self._capacity if self._place is not None else min(self._steps + 1, self._capacity)

    def bias_within(self, window: int, whole_prompts: bool = False) -> Tensor:
        """[R, P + T] float32: 0 where the next tokens may look and less than `window` places back, minus infinity
        elsewhere. Of text whose positions go on by 1. whole_prompts: whether a prompt's last token, which is the first
        to come, sees all of the prompt."""
        p, device = self.prompts.mask.shape[1], self.positions.device
        first = self.prompts.last_positions - p  # where the first token held stands; the last is not held
        back = (self.positions - first)[:, None] - torch.arange(p, device=device)
        own = (self._next - torch.arange(self._capacity, device=device)) % self._capacity
        if whole_prompts:
            back = back.masked_fill((self.positions == self.prompts.last_positions)[:, None], 0)
        return self._bias.masked_fill(torch.cat([back, own.expand(len(back), -1)], dim=1) >= window, -torch.inf)

    def attend(
        self,
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor | None = None,
        cap: float | None = None,
    ) -> Tensor:
        """Attention of one token of each answer, its own key and value being written first.

        queries: [R * C, H * n, d], scaled, n of them per key head; keys: [R * C, H, d]; values: [R * C, H, e]. bias:
        [R, P + T] in place of the cache's own, as `bias_within` gives it. cap: of scores (capped.py). Returns
        [R * C, H * n * e].
        """
        held, used = self._layers[layer], self._used
        r, heads, c, d, _ = held.own_keys.shape
        _write(held.own_keys, 4, self._next, keys.unflatten(0, (r, c)).transpose(1, 2))
        _write(held.own_values, 3, self._next, values.unflatten(0, (r, c)).transpose(1, 2))
        by_head = queries.view(r, c, heads, -1, d).transpose(1, 2).reshape(r * heads * c, -1, d)
        n = by_head.shape[1]
        to_prompt = torch.bmm(by_head.view(r * heads, c * n, d), held.prompt_keys)
        to_own = torch.bmm(by_head, held.own_keys.flatten(0, 2)[:, :, :used]).view(r * heads, c * n, used)
        scores = torch.cat([to_prompt, to_own], dim=2)
        weights = self._softmax(scores if cap is None else capped(scores, cap), bias).to(values.dtype)
        of_prompt, of_own = weights.split([to_prompt.shape[2], used], dim=2)
        mixed = torch.bmm(of_prompt, held.prompt_values).view(r, heads, c, n, -1)
        own = torch.bmm(of_own.unflatten(1, (c, n)).flatten(0, 1), held.own_values.flatten(0, 2)[:, :used])
        return mixed.add_(own.view_as(mixed)).transpose(1, 2).reshape(r * c, -1)

    def _softmax(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """Over the last axis, float32; scores: [R * H, C * n, P + used]; bias: as `attend` has it."""
        if bias is None and self._needs_bias:
            bias = self._bias
        if bias is not None:
            by_prompt = scores.view(len(bias), -1, scores.shape[-1])
            scores = (by_prompt + bias[:, None, : scores.shape[-1]]).view_as(scores)
        return scores.softmax(-1, dtype=torch.float32)


def _forked(states: Tensor, answers: int) -> Tensor:
    """[layers, R, C, ...] of [layers, R, ...]."""
    return states[:, :, None].expand(-1, -1, answers, *states.shape[2:])


def _write(buffer: Tensor, axis: int, place: int | Tensor, new: Tensor) -> None:
    """Put `new` at a place of an axis: a number, or one on the device, of which no call depends."""
    if isinstance(place, int):
        buffer.select(axis, place).copy_(new)
    else:
        buffer.index_copy_(axis, place, new.unsqueeze(axis))


def _bias(mask: Tensor) -> Tensor:
    """0 where `mask` is True, minus infinity elsewhere, float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
