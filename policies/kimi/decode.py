"""One more token of each answer through layers with latent attention (MLA), from a cache of latents.

Keys and values of all heads are linear in one latent of a token (arXiv 2405.04434). So their maps go to the query and
to the output, and of a token the cache holds the latent and the part of the key that turns, once for all heads:

    q k = (W_uk^T q_nope) c + q_turned k_turned,     output of a head = W_uv (sum over tokens of weight c)

Letters as in policies/sharing/prompt_cache.py; N = R * C tokens, n heads, l width of a latent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from policies.sharing.prompt_cache import PromptCache


def latent_cache(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Keys [L, R, 1, l + turned, P] and values [L, R, 1, P, l] of the layers of transformers' cache, which holds
    latents and turned keys apart; its own are emptied on the way."""
    keys, values = list[Tensor](), list[Tensor]()
    for layer in layers:
        keys.append(torch.cat([layer.keys, layer.values], dim=-1).transpose(2, 3))
        values.append(layer.keys)
        layer.keys = layer.values = None
    return torch.stack(keys), torch.stack(values)


def whole_weight(module: Any) -> Tensor:
    """The weight of a linear layer, an adapter's part included."""
    if "lora_A" not in dict(module.named_children()):
        weight: Tensor = module.weight
        return weight
    delta = sum(module.get_delta_weight(name) for name in module.active_adapters)
    return module.base_layer.weight + delta


class LatentDecoder:
    """The layers of transformers' DeepSeek-V3, for one cache."""

    def __init__(self, text: Any) -> None:
        self._text = text
        self._layers = [_Layer(layer) for layer in text.layers]

    def refresh(self) -> None:
        """Take over what the parameters are by now."""
        for layer in self._layers:
            layer.refresh()

    def next_states(self, cache: PromptCache, tokens: Tensor) -> Tensor:
        """Hidden states [N, width] after one more token of each answer, tokens [R, C] int64; the cache grows by it."""
        cache.begin_token()
        hidden = self._text.embed_tokens(tokens.flatten())
        positions = cache.positions[:, None].expand_as(tokens).flatten()
        cosines, sines = (part[0] for part in self._text.rotary_emb(hidden, positions[None]))
        for number, layer in enumerate(self._layers):
            hidden = hidden + layer.attended(cache, number, hidden, cosines, sines)
            hidden = hidden + layer.thought(hidden)
        cache.end_token()
        last: Tensor = self._text.norm(hidden)
        return last


class _Layer:
    """One layer's modules, and the two halves of the map from latents."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._attention = layer, layer.self_attn
        self.refresh()

    def refresh(self) -> None:
        """The map from latents to keys and values, by head."""
        attention = self._attention
        by_head = whole_weight(attention.kv_b_proj).detach().unflatten(0, (attention.num_heads, -1))
        self._to_keys, self._to_values = by_head.split([attention.qk_nope_head_dim, attention.v_head_dim], dim=1)

    def attended(self, cache: PromptCache, number: int, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """What attention adds to tokens [N, width]; cosines, sines: [N, turned]."""
        attention = self._attention
        before = self._layer.input_layernorm(hidden)
        queries = self._queries(before).unflatten(-1, (attention.num_heads, -1))
        plain, turning = queries.split([attention.qk_nope_head_dim, attention.qk_rope_head_dim], dim=-1)
        latent, turned = attention.kv_a_proj_with_mqa(before).split(
            [attention.kv_lora_rank, attention.qk_rope_head_dim], dim=-1
        )
        latent = attention.kv_a_layernorm(latent)
        turn = _pairs if attention.config.rope_interleave else _halves
        queries_turned = turn(turning, cosines[:, None], sines[:, None])
        asked = torch.cat([torch.einsum("nhd,hdl->nhl", plain, self._to_keys), queries_turned], dim=-1)
        keys = torch.cat([latent, turn(turned, cosines, sines)], dim=-1)
        mixed = cache.attend(number, (asked * attention.scaling).contiguous(), keys[:, None], latent[:, None])
        found = torch.einsum("nhl,hvl->nhv", mixed.unflatten(-1, (attention.num_heads, -1)), self._to_values)
        added: Tensor = attention.o_proj(found.flatten(1))
        return added

    def _queries(self, before: Tensor) -> Tensor:
        attention = self._attention
        if attention.q_lora_rank is None:
            plain: Tensor = attention.q_proj(before)
            return plain
        narrow: Tensor = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(before)))
        return narrow

    def thought(self, hidden: Tensor) -> Tensor:
        """What the feed-forward part, experts among it, adds to tokens [N, width]."""
        added: Tensor = self._layer.mlp(self._layer.post_attention_layernorm(hidden)[None])[0]
        return added


def _pairs(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """[..., turned] vectors, their neighbouring numbers turned together; in halves, as transformers returns them."""
    half = cosines.shape[-1] // 2
    cosines, sines, first, second = cosines[..., :half], sines[..., :half], vectors[..., 0::2], vectors[..., 1::2]
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def _halves(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """[..., turned] vectors, numbers half a vector apart turned together."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosines + torch.cat([-second, first], dim=-1) * sines
