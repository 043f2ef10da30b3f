"""Moondream 3's language model: parallel attention and feed-forward, experts from a layer on, and a temperature of
attention that depends on content and place.

    x + attention(ln x) + feed(ln x)                                 one LayerNorm a layer
    tau = tanh(W gelu(qkv)) + 0.5 + sigmoid(alpha log(position + 1))     of queries, and another of values, a head each
    feed = fc2 gelu(fc1 y), or sum over the best 8 of 64 experts of their weight times  fc2 (gelu(gate) (up + 1))

The first half of each head turns with its position, in split halves. Letters: B rows, L tokens, N = B L, H heads, d
width of a head, E experts, k of them a token.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from policies.moondream.config import MoondreamTextConfig
from policies.moondream.vision import Mlp
from policies.sharing.attention import attend
from policies.sharing.routes import Choice


class Turn:
    """Cosines and sines of positions, for the dimensions of a head that turn."""

    def __init__(self, positions: Tensor, head: int, theta: float) -> None:
        """positions: [..., ] int64; head: d."""
        self._turned = head // 2
        steps = torch.arange(0, self._turned, 2, device=positions.device, dtype=torch.float32) / self._turned
        angles = positions.float()[..., None, None] * theta**-steps
        self._cosines, self._sines = angles.cos(), angles.sin()

    def __call__(self, vectors: Tensor) -> Tensor:
        """[..., H, d] vectors, turned to their positions [...]."""
        first, second, rest = vectors.split(
            [self._turned // 2, self._turned // 2, vectors.shape[-1] - self._turned], -1
        )
        cosines, sines = self._cosines.to(vectors.dtype), self._sines.to(vectors.dtype)
        return torch.cat([first * cosines - second * sines, first * sines + second * cosines, rest], dim=-1)


class Tau(nn.Module):
    """Temperatures of attention."""

    def __init__(self, text: MoondreamTextConfig) -> None:
        super().__init__()
        self._gelu = text.tau_gelu
        self.wq = nn.Parameter(torch.zeros(text.n_heads, 3 * text.dim))
        self.wv = nn.Parameter(torch.zeros(text.n_heads, 3 * text.dim))
        self.alpha = nn.Parameter(torch.zeros(text.n_heads))

    def forward(self, qkv: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What queries and values [..., H] are multiplied by; qkv: [..., 3 dim], positions [...]."""
        told = functional.gelu(qkv, approximate=self._gelu)
        place = 0.5 + torch.sigmoid(self.alpha.float() * torch.log(positions.float() + 1)[..., None])
        place = place.to(qkv.dtype)
        return (told @ self.wq.t()).tanh() + place, (told @ self.wv.t()).tanh() + place


class TextAttention(nn.Module):
    """Attention of a layer."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, text: MoondreamTextConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = text.n_heads, text.dim // text.n_heads
        self.qkv, self.proj = nn.Linear(text.dim, 3 * text.dim), nn.Linear(text.dim, text.dim)
        self.tau = Tau(text)

    def heads_of(self, normed: Tensor, positions: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., H, d] of tokens [..., dim] at positions [...]."""
        qkv = self.qkv(normed)
        of_queries, of_values = self.tau(qkv, positions)
        queries, keys, values = qkv.unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return turn(queries * of_queries[..., None]), turn(keys), values * of_values[..., None]

    def forward(self, normed: Tensor, positions: Tensor, turn: Turn, **attention: Any) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, dim] of tokens [B, L, dim], and their keys and values [B, H, L, d]."""
        queries, keys, values = (part.transpose(1, 2) for part in self.heads_of(normed, positions, turn))
        mixed, _ = attend(self, queries, keys, values, scaling=1 / math.sqrt(self.head_dim), **attention)
        return self.proj(mixed.flatten(2)), keys, values


class ExpertWeights(nn.Module):
    """One map of all experts."""

    def __init__(self, experts: int, out: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, out, width))


class Experts(nn.Module):
    """The feed-forward part of a layer with experts."""

    def __init__(self, text: MoondreamTextConfig) -> None:
        super().__init__()
        experts, inner = text.moe["num_experts"], text.moe["expert_inner_dim"]
        self.router, self.choice = nn.Linear(text.dim, experts), Choice(text.moe["experts_per_token"])
        self.fc1, self.fc2 = ExpertWeights(experts, 2 * inner, text.dim), ExpertWeights(experts, text.dim, inner)

    def forward(self, normed: Tensor) -> Tensor:
        """[..., dim] to [..., dim]: the best experts of each token, weighed by the softmax of their logits."""
        flat = normed.flatten(0, -2)
        logits, each = self.router(flat), self.choice.each
        experts = self.choice(logits)
        weights = logits.gather(1, experts).softmax(-1, dtype=torch.float32).to(flat.dtype)
        by_expert = experts.flatten().argsort(stable=True)
        # Embeddings, not indices: their gradients are added up in order, so that a run repeats itself to the bit.
        sorted_tokens = functional.embedding(by_expert // each, flat)
        counts = torch.bincount(experts.flatten(), minlength=len(self.fc1.weight)).tolist()
        parts = zip(sorted_tokens.split(counts), self.fc1.weight, self.fc2.weight, strict=True)
        made = torch.cat([_expert(*part) for part in parts])
        given = functional.embedding(by_expert.argsort(), made).unflatten(0, (-1, each))
        return (given * weights[..., None]).sum(1).view_as(normed)


def _expert(tokens: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """[n, dim] of tokens [n, dim]; also of none, so that every expert has a gradient on every rank."""
    gate, up = (tokens @ fc1.t()).chunk(2, dim=-1)
    return (functional.gelu(gate) * (up + 1)) @ fc2.t()


class TextBlock(GradientCheckpointingLayer):
    """A layer."""

    def __init__(self, text: MoondreamTextConfig, number: int) -> None:
        super().__init__()
        self.ln, self.attn = nn.LayerNorm(text.dim), TextAttention(text)
        dense = number < text.moe["start_layer"]
        self.mlp: nn.Module = Mlp(text.dim, text.ff_dim, text.dim) if dense else Experts(text)

    def forward(self, states: Tensor, positions: Tensor, turn: Turn, **attention: Any) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L, dim] of states [B, L, dim], and keys and values [B, H, L, d]."""
        normed = self.ln(states)
        mixed, keys, values = self.attn(normed, positions, turn, **attention)
        return states + mixed + self.mlp(normed), keys, values


class MoondreamText(nn.Module):
    """The language model: embedding, layers, final norm, head."""

    def __init__(self, text: MoondreamTextConfig) -> None:
        super().__init__()
        self.settings = text
        self.wte = nn.Parameter(torch.zeros(text.vocab_size, text.dim))
        self.blocks = nn.ModuleList([TextBlock(text, number) for number in range(text.n_layers)])
        self.post_ln = nn.LayerNorm(text.dim)
        self.lm_head = nn.Linear(text.dim, text.vocab_size)

    @property
    def weight(self) -> nn.Parameter:
        """The embedding, as transformers asks for that of any model."""
        return self.wte

    def embedded(self, tokens: Tensor) -> Tensor:
        """[..., dim] of tokens [...]; any for a number that no token has, as image places do."""
        return functional.embedding(tokens.clamp(max=len(self.wte) - 1), self.wte)

    def turn(self, positions: Tensor) -> Turn:
        """The turn of positions [...]."""
        return Turn(positions, self.settings.dim // self.settings.n_heads, self.settings.rope_theta)

    def forward(
        self, embedded: Tensor, positions: Tensor, keep: bool = False, **attention: Any
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """States [B, L, dim] before the final norm, and where `keep` each layer's keys and values [B, H, L, d].

        embedded: [B, L, dim], positions: [B, L]; attention: as policies/sharing/attention.py takes it.
        """
        states, turn, held = embedded, self.turn(positions), list[tuple[Tensor, Tensor]]()
        for block in self.blocks:
            states, keys, values = block(states, positions, turn, **attention)
            if keep:
                held.append((keys, values))
        return states, held
