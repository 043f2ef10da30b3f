"""Parts of the two-way head: tokens and an image that attend to each other, as in Segment Anything (arXiv 2304.02643).

Letters: B masks, M masks a pass, T tokens, f cells of a side of an image map, N = f * f its places, D channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.crops import resized


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


class Exchange(nn.Module):
    """Learned tokens and an image through several two-way blocks, and a last look of the tokens at the image."""

    def __init__(self, width: int, heads: int, blocks: int, mlp_ratio: int, num_tokens: int, cells: int) -> None:
        """cells: of a side of the map of positions; it is resampled for images of other sizes."""
        super().__init__()
        self.tokens, self.token_places = small_normal(num_tokens, width), small_normal(num_tokens, width)
        self.places = small_normal(width, cells, cells)
        self.blocks = nn.ModuleList(TwoWayBlock(width, heads, mlp_ratio) for _ in range(blocks))
        self.last_look, self.last_norm = Attention(width, heads), nn.LayerNorm(width)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens [B, T, D], maps [B, D, f, f]) after the exchange, of maps [B, D, f, f]."""
        size = maps.shape[2]
        places, image = flat(resized(self.places[None], size)), flat(maps)
        tokens = self.tokens.expand(len(maps), -1, -1)
        for block in self.blocks:
            tokens, image = block(tokens, image, self.token_places, places)
        seen = self.last_look(tokens + self.token_places, image + places, image)
        return self.last_norm(tokens + seen), image.transpose(1, 2).unflatten(2, (size, size))


class FilteredMap(nn.Module):
    """The image made eight times finer, and under one filter per token; untrained, all filters are zero."""

    def __init__(self, width: int, heads: int, filters: int) -> None:
        """heads: of the attention over the finer map, which has width / 8 channels."""
        super().__init__()
        narrow = width // 8
        self.upsample = upsampler(width)
        self.narrow = nn.Linear(width, narrow)
        self.look = Attention(narrow, heads)
        self.filters = nn.ModuleList(perceptron_from_zero(narrow, narrow, narrow) for _ in range(filters))

    def forward(self, tokens: Tensor, maps: Tensor) -> Tensor:
        """[B, M, 8 f, 8 f] of tokens [B, M, D] and maps [B, D, f, f]."""
        fine, tokens = self.upsample(maps), self.narrow(tokens)
        places = flat(fine)
        tokens = tokens + self.look(tokens, places, places)
        filters = torch.stack([each(tokens[:, m]) for m, each in enumerate(self.filters)], dim=1)
        filtered: Tensor = filters @ fine.flatten(2)
        return filtered.unflatten(2, fine.shape[2:])


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each place of a map [B, D, rows, columns]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps, in the shape of `maps`."""
        normed: Tensor = self.norm(maps.movedim(1, -1))
        return normed.movedim(-1, 1)


def perceptron_from_zero(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers; the last is zero, so that untrained it says nothing."""
    last = nn.Linear(hidden, outputs)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)


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
