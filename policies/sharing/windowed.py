"""Language models some of whose layers see a window of the text: masks for learning, and one more token of each answer.

A token of such a layer sees the tokens at most window - 1 places before it, in a packed row by positions and not by
where tokens lie: each answer goes on at the end of its prompt. Tokens that all see each other do so in these layers
too: those of an image of Gemma 3 as far as the window reaches back, those of a prompt of PaliGemma however far.

Letters as in policies/sharing/packing.py, and N = R * C as in policies/sharing/decoder.py.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

from policies.sharing.packing import PackedRows, causal
from policies.sharing.prompt_cache import PromptCache

WINDOW = "sliding_attention"
"""What transformers calls the kind of a layer with a window."""
_WHOLE = "full_attention"


def masks_of_rows(packed: PackedRows, window: int, together_near: bool = True) -> dict[str, Tensor]:
    """[B, 1, L, L] bool of packed rows, by kind of layer; together_near: as Heads of attention.py has it."""
    prompt = packed.prompt_mask.cumsum(1)
    positions = torch.cat([prompt, prompt[:, -1:] + 1 + packed.steps], dim=1)
    return _by_kind(packed.attends, positions, window, None if together_near else packed.together)


def masks_of_prompts(
    mask: Tensor, together: Tensor | None, window: int, together_near: bool = True
) -> dict[str, Tensor]:
    """[B, 1, P, P] bool of prompts alone, mask [B, P], by kind of layer; together: as prompt_inputs has it."""
    seen = causal(mask, together)[:, None]
    return _by_kind(seen, mask.cumsum(1), window, None if together_near else together)


def _by_kind(seen: Tensor, positions: Tensor, window: int, far: Tensor | None) -> dict[str, Tensor]:
    """far: [B, P] bool, the first tokens that see each other whatever the window; None for none."""
    positions = positions.int()  # differences of all pairs
    near = positions[:, None, :, None] - positions[:, None, None, :] < window
    if far is not None:
        p = far.shape[1]
        near[:, :, :p, :p] |= (far[:, :, None] & far[:, None, :])[:, None]
    return {_WHOLE: seen, WINDOW: seen & near}


class WindowedDecoder:
    """The layers of transformers' Gemma 3 and Gemma 2, for one cache."""

    def __init__(self, text: Any, together_near: bool = True) -> None:
        """together_near: as Heads of attention.py has it; else a prompt's tokens are taken to all see each other."""
        self._text, self._caps, self._near = text, isinstance(text, Gemma2Model), together_near
        self._kinds: list[str] = list(text.config.layer_types)
        self._window = int(text.config.sliding_window)
        self._cap = float(text.config.attn_logit_softcapping) if self._caps else None

    def refresh(self) -> None:
        """Nothing of the parameters is held."""

    def next_states(self, cache: PromptCache, tokens: Tensor) -> Tensor:
        """Hidden states [N, width] after one more token of each answer, tokens [R, C] int64; the cache grows by it."""
        cache.begin_token()
        hidden = self._text.embed_tokens(tokens.flatten())
        positions = cache.positions[:, None].expand_as(tokens).reshape(1, -1)
        turns = {kind: self._turn(hidden, positions, kind) for kind in set(self._kinds)}
        biases = {_WHOLE: None, WINDOW: cache.bias_within(self._window, not self._near)}
        for number, (layer, kind) in enumerate(zip(self._text.layers, self._kinds, strict=True)):
            queries, keys, values = self._attends_by(layer, hidden, *turns[kind])
            mixed = layer.self_attn.o_proj(cache.attend(number, queries, keys, values, biases[kind], self._cap))
            hidden = hidden + layer.post_attention_layernorm(mixed)
            thought = layer.mlp(layer.pre_feedforward_layernorm(hidden))
            hidden = hidden + layer.post_feedforward_layernorm(thought)
        cache.end_token()
        last: Tensor = self._text.norm(hidden)
        return last

    def _turn(self, hidden: Tensor, positions: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, N, d]; in Gemma 3 each kind of layer turns at its own rate."""
        found: tuple[Tensor, Tensor] = self._text.rotary_emb(hidden, positions, *([] if self._caps else [kind]))
        return found

    def _attends_by(self, layer: Any, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, scaled, keys and values of tokens [N, width]; cosines, sines: [1, N, d]."""
        attention, before = layer.self_attn, layer.input_layernorm(hidden)
        queries, keys, values = (
            linear(before).unflatten(-1, (-1, attention.head_dim))
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if not self._caps:
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        queries, keys = apply_rotary_pos_emb(queries, keys, cosines[0], sines[0])
        return queries * attention.scaling, keys, values
