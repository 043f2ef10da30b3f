"""Parts of the two-way head: tokens and an image that attend to each other, as in Segment Anything (arXiv 2304.02643).

Letters: B masks, T tokens, N places of an image map, D channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention with its own projections of queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[B, T, D] of queries [B, T, D], keys and values [B, N, D]."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), self.key(keys), self.value(values))
        )
        mixed: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, pass an MLP, and the image attends to them; a norm after each."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.among_tokens, self.tokens_to_image, self.image_to_tokens = (Attention(width, heads) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, token_places: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens [B, T, D], image [B, N, D]) after the block; token_places, places: what says where each stands."""
        own = tokens + token_places
        tokens = self.norms[0](tokens + self.among_tokens(own, own, tokens))
        seen = self.tokens_to_image(tokens + token_places, image + places, image)
        tokens = self.norms[1](tokens + seen)
        tokens = self.norms[2](tokens + self.mlp(tokens))
        seen = self.image_to_tokens(image + places, tokens + token_places, tokens)
        return tokens, self.norms[3](image + seen)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each place of a map [B, D, rows, columns]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """The same shape."""
        normed: Tensor = self.norm(maps.movedim(1, -1))
        return normed.movedim(-1, 1)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def mask_encoder(channels: int, width: int) -> nn.Sequential:
    """[B, 1, R, R] to [B, width, R / 16, R / 16], rounded up: four strided convolutions, 1 -> channels, doubled twice,
    -> width."""
    widths = (1, channels, 2 * channels, 4 * channels, width)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(4, outputs), nn.GELU()]
    return nn.Sequential(*layers)


def upsampler(width: int) -> nn.Sequential:
    """[B, width, f, f] to [B, width / 8, 8 f, 8 f]: three times twice as fine and half the channels."""
    layers: list[nn.Module] = []
    for coarse in (width, width // 2, width // 4):
        fine = coarse // 2
        layers += [nn.ConvTranspose2d(coarse, fine, 2, 2), nn.Conv2d(fine, fine, 3, padding=1), ChannelNorm(fine)]
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


def flat(maps: Tensor) -> Tensor:
    """[B, N, D] of maps [B, D, rows, columns]."""
    return maps.flatten(2).transpose(1, 2)


def small_normal(*shape: int) -> nn.Parameter:
    """A parameter of normal numbers of deviation 0.02."""
    return nn.Parameter(torch.randn(*shape) * 0.02)
