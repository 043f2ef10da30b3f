"""Language models some of whose layers see a window of the text: masks for learning, and one more token of each answer.

A token of such a layer sees the tokens at most window - 1 places before it, in a packed row by positions and not by
where tokens lie: each answer goes on at the end of its prompt. Tokens that all see each other (of an image) do so in
these layers too, as far as the window reaches back.

Letters as in policies/sharing/packing.py, and N = R * C as in policies/sharing/decoder.py.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

from policies.sharing.packing import PackedRows, causal
from policies.sharing.prompt_cache import PromptCache

WINDOW = "sliding_attention"
"""What transformers calls the kind of a layer with a window."""
_WHOLE = "full_attention"


def masks_of_rows(packed: PackedRows, window: int) -> dict[str, Tensor]:
    """[B, 1, L, L] bool of packed rows, by kind of layer."""
    prompt = packed.prompt_mask.cumsum(1)
    positions = torch.cat([prompt, prompt[:, -1:] + 1 + packed.steps], dim=1)
    return _by_kind(packed.attends, positions, window)


def masks_of_prompts(mask: Tensor, together: Tensor | None, window: int) -> dict[str, Tensor]:
    """[B, 1, P, P] bool of prompts alone, mask [B, P], by kind of layer; together: as prompt_inputs has it."""
    return _by_kind(causal(mask, together)[:, None], mask.cumsum(1), window)


def _by_kind(seen: Tensor, positions: Tensor, window: int) -> dict[str, Tensor]:
    positions = positions.int()  # differences of all pairs
    near = positions[:, None, :, None] - positions[:, None, None, :] < window
    return {_WHOLE: seen, WINDOW: seen & near}


class WindowedDecoder:
    """The layers of transformers' Gemma 3, for one cache."""

    def __init__(self, text: Any) -> None:
        self._text = text
        self._kinds: list[str] = list(text.config.layer_types)
        self._window = int(text.config.sliding_window)

    def refresh(self) -> None:
        """Nothing of the parameters is held."""

    def next_states(self, cache: PromptCache, tokens: Tensor) -> Tensor:
        """Hidden states [N, width] after one more token of each answer, tokens [R, C] int64; the cache grows by it."""
        cache.begin_token()
        hidden = self._text.embed_tokens(tokens.flatten())
        positions = cache.positions[:, None].expand_as(tokens).reshape(1, -1)
        turns = {kind: self._text.rotary_emb(hidden, positions, kind) for kind in set(self._kinds)}
        biases = {_WHOLE: None, WINDOW: cache.bias_within(self._window)}
        for number, (layer, kind) in enumerate(zip(self._text.layers, self._kinds, strict=True)):
            queries, keys, values = _attends_by(layer, hidden, *turns[kind])
            mixed = layer.self_attn.o_proj(cache.attend(number, queries, keys, values, biases[kind]))
            hidden = hidden + layer.post_attention_layernorm(mixed)
            thought = layer.mlp(layer.pre_feedforward_layernorm(hidden))
            hidden = hidden + layer.post_feedforward_layernorm(thought)
        cache.end_token()
        last: Tensor = self._text.norm(hidden)
        return last


def _attends_by(layer: Any, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, scaled, keys and values of tokens [N, width]; cosines, sines: [1, N, d]."""
    attention, before = layer.self_attn, layer.input_layernorm(hidden)
    queries, keys, values = (
        linear(before).unflatten(-1, (-1, attention.head_dim))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(attention.q_norm(queries), attention.k_norm(keys), cosines[0], sines[0])
    return queries * attention.scaling, keys, values
