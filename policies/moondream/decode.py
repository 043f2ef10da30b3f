"""One more token of each answer through Moondream's layers, from a cache that answers to one prompt share.

Letters as in policies/sharing/prompt_cache.py; N = R * C tokens, one of each answer.
"""

import math
from typing import Any

from torch import Tensor

from policies.moondream.model import MoondreamModel
from policies.sharing.prompt_cache import PromptCache


class MoondreamDecoder:
    """The layers of one model, for one cache."""

    def __init__(self, model: MoondreamModel) -> None:
        self._model = model
        self._blocks: list[Any] = [*model.text.blocks]
        self.states: Tensor | None = None
        """[N, dim] of the last token, before the final norm: what all heads choose by."""

    def refresh(self) -> None:
        """Nothing: parameters are used where they lie."""

    def next_states(self, cache: PromptCache, tokens: Tensor, bins: Tensor) -> Tensor:
        """States [N, dim] behind `tokens` [R, C] with their `bins` [R, C, heads]; the cache grows by one."""
        text = self._model.text
        positions = cache.positions[:, None].expand_as(tokens).flatten()
        hidden = self._model.region(text.embedded(tokens.flatten()), bins.flatten(0, 1))
        turn = text.turn(positions)
        cache.begin_token()
        for layer, block in enumerate(self._blocks):
            normed, attention = block.ln(hidden), block.attn
            queries, keys, values = attention.heads_of(normed, positions, turn)
            scaled = queries / math.sqrt(attention.head_dim)
            mixed = cache.attend(layer, scaled.contiguous(), keys, values)
            hidden = hidden + attention.proj(mixed) + block.mlp(normed)
        cache.end_token()
        self.states = hidden
        return hidden
