"""One more token of each answer through a language model's layers, in few calls.

A token of few answers has little to compute, so what counts is the number of calls. The layers' own parameters are
used, in their order; what lies between the products is written anew. Where each rounds is as in transformers, in every
number format, so that only sums taken in another order differ.

Letters as in policies/sharing/prompt_cache.py; N = R * C tokens, one of each answer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeTextAttention,
    Qwen3VLMoeTextSparseMoeBlock,
)

from policies.sharing.joined import JoinedMaps, join
from policies.sharing.norm import SAME_NORMS, RootMeanSquareNorm
from policies.sharing.prompt_cache import PromptCache

_PLAIN = (LlamaModel, Qwen2Model, Qwen3Model)
"""Language models whose positions have one axis."""
_NORMED_HEADS = (Qwen3Attention, Qwen3VLTextAttention, Qwen3VLMoeTextAttention)
"""Attention that norms queries and keys, a head at a time."""
_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary positions whose angles depend on the longest position that is asked for together."""


def lay_out(text: Any) -> None:
    """Let the weights of a language model that one product can use lie side by side (policies/sharing/joined.py)."""
    for layer in text.layers:
        for maps in _joinable(layer):
            join(maps)


def _joinable(layer: Any) -> list[list[Any]]:
    """The maps of attention that share an input, and those of the feed-forward part; of experts none."""
    attention = layer.self_attn
    looking = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [looking] if _has_experts(layer) else [looking, [layer.mlp.gate_proj, layer.mlp.up_proj]]


def _has_experts(layer: Any) -> bool:
    return isinstance(layer.mlp, Qwen3VLMoeTextSparseMoeBlock)


class Decoder:
    """The layers of transformers' language model of Qwen2.5-VL, Qwen3-VL, Qwen2, Qwen3 or the Llama kind.

    Made for parameters where they lie, and for one cache: where they move (`to`, `data`) it is worth nothing any more;
    where their values change, `refresh` takes them over.
    """

    def __init__(self, text: Any) -> None:
        self._text = text
        self._layers = [_Layer(layer) for layer in text.layers]
        self._angles: tuple[Tensor, Tensor] | None = None

    def refresh(self) -> None:
        """Take over what the parameters are by now, in place."""
        for layer in self._layers:
            layer.refresh()

    def next_states(self, cache: PromptCache, tokens: Tensor) -> Tensor:
        """Hidden states [N, width] after one more token of each answer, tokens [R, C] int64; the cache grows by it."""
        cache.begin_token()
        turn = _Turn(*self._cosines_and_sines(cache), tokens.shape[1])
        hidden = self._text.embed_tokens(tokens.flatten())
        for index, layer in enumerate(self._layers):
            hidden = hidden + layer.attended(cache.attend(index, *layer.attends_by(hidden, turn)))
            hidden = hidden + layer.thought(hidden)
        cache.end_token()
        return normed(self._text.norm, hidden)

    def _cosines_and_sines(self, cache: PromptCache) -> tuple[Tensor, Tensor]:
        """[R, d] each, of the positions that the next tokens have."""
        rotary = self._text.rotary_emb
        if any(kind in rotary.rope_type for kind in _BY_LENGTH):
            return self._made(cache.positions)
        if self._angles is None or len(self._angles[0]) < cache.longest:
            self._angles = self._made(torch.arange(cache.longest, device=cache.positions.device))
        cosines, sines = self._angles
        return cosines.index_select(0, cache.positions), sines.index_select(0, cache.positions)

    def _made(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[N, d] cosines, and sines, of positions [N]."""
        like = self._text.norm.weight.detach()
        # The kinds of Qwen-VL turn by row, column and time apart; of text all three are the same.
        of_axes = positions[None] if isinstance(self._text, _PLAIN) else positions.expand(3, 1, -1)
        cosines, sines = (part[0] for part in self._text.rotary_emb(like, of_axes))
        half = cosines.shape[-1] // 2
        # transformers negates half of the vector; negating half of the sines is the same, and done once.
        return cosines, torch.cat([-sines[:, :half], sines[:, half:]], dim=-1)


class _Layer:
    """One layer's parameters, and the calls that it makes of them; looked up once, for a module's attributes cost."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        looking, *thinking = _joinable(layer)
        self._look, self.attended = JoinedMaps(looking), JoinedMaps([attention.o_proj])
        self._before, self._between = layer.input_layernorm, layer.post_attention_layernorm
        self._experts = mlp if _has_experts(layer) else None
        if self._experts is None:
            self._think, self._thought, self._act = JoinedMaps(thinking[0]), JoinedMaps([mlp.down_proj]), mlp.act_fn
        self._width, self._scaling = attention.head_dim, attention.scaling
        heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
        self._split = [heads[0], heads[1], heads[1]]
        self._norms: tuple[Any, ...] = ()
        if isinstance(attention, _NORMED_HEADS):
            self._norms = attention.q_norm, attention.k_norm
            self._head_norms = self._joined_norms()

    def refresh(self) -> None:
        """Take over the norms of heads, which are held a head at a time."""
        if self._norms:
            self._head_norms.copy_(self._joined_norms())

    def _joined_norms(self) -> Tensor:
        """[heads of queries and keys, d]."""
        norms = zip(self._norms, self._split, strict=False)
        return torch.cat([norm.weight.detach().expand(num, -1) for norm, num in norms])

    def attends_by(self, hidden: Tensor, turn: "_Turn") -> tuple[Tensor, Tensor, Tensor]:
        """Queries, scaled, keys and values of tokens [N, width], as the cache takes them."""
        by_head = self._look(normed(self._before, hidden)).unflatten(-1, (-1, self._width))
        turned, values = by_head.split([sum(self._split[:2]), self._split[2]], dim=1)
        if self._norms:
            turned = functional.rms_norm(turned, (self._width,), None, self._norms[0].variance_epsilon)
            turned = turned * self._head_norms
        queries, keys = turn(turned).split(self._split[:2], dim=1)
        return queries * self._scaling, keys, values

    def thought(self, hidden: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [N, width]."""
        if self._experts is not None:
            added: Tensor = self._experts(normed(self._between, hidden)[None])[0]
            return added
        gate, up = self._think(normed(self._between, hidden)).chunk(2, dim=-1)
        return self._thought(self._act(gate) * up)


class _Turn:
    """The turn of rotary positions, prepared once a token for all layers."""

    def __init__(self, cosines: Tensor, sines: Tensor, answers: int) -> None:
        """cosines, sines: [R, d], half of the sines negated; answers: C."""
        self._half, self._answers = cosines.shape[-1] // 2, answers
        self._cosines, self._sines = cosines[:, None, None], sines[:, None, None]

    def __call__(self, vectors: Tensor) -> Tensor:
        """[N, heads, d] vectors at their positions."""
        of_prompts = vectors.unflatten(0, (-1, self._answers))
        turned = of_prompts * self._cosines + of_prompts.roll(self._half, -1) * self._sines
        return turned.flatten(0, 1)


def normed(norm: Any, hidden: Tensor) -> Tensor:
    """What a family's RMS norm gives, in one call, or in two where it rounds twice: those of lower precision than
    float32 round before they multiply by their weights."""
    if not isinstance(norm, (RootMeanSquareNorm, *SAME_NORMS)):
        return norm(hidden)
    if hidden.dtype == torch.float32:
        return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return norm.weight * functional.rms_norm(hidden, norm.weight.shape, None, norm.variance_epsilon)
