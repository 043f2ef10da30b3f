"""Moondream 3's coordinates and sizes: heads that choose one of so many bins, and encoders that say a bin again.

A coordinate is a share of the image's side, bin k of K being k / (K - 1). A size is a share too, by its logarithm: bin
k is 2^(10 k / (K - 1) - 10), from 1/1024 to 1. What was chosen is the next input of the language model, as Fourier
features of the share through a linear layer, in place of the token's embedding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policies.choices import NO_BIN
from policies.moondream.config import MoondreamConfig

OCTAVES = 10
"""Halvings from the largest size to the smallest."""
HEADS = ("coordinate", "width", "height")
"""The further heads, in the order of the columns of bins."""


def coordinate_of(bins: Tensor, num: int, last_is_one: bool = True) -> Tensor:
    """Shares 0..1 that bins of `num` say, float32."""
    return bins.float() / (num - 1 if last_is_one else num)


def size_of(bins: Tensor, num: int) -> Tensor:
    """Shares 1/1024..1 that bins of `num` say, float32."""
    return torch.exp2(OCTAVES * bins.float() / (num - 1) - OCTAVES)


def fourier(shares: Tensor, frequencies: Tensor) -> Tensor:
    """[N, 2 F] cosines, then sines of shares [N, D] by frequencies [D, F]; in the frequencies' number format."""
    angles = 2 * math.pi * shares.float() @ frequencies.float()  # bfloat16 would lose the turns of high frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(frequencies.dtype)


class MoondreamRegion(nn.Module):
    """Heads and encoders."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__()
        region, width = config.region, config.text.dim
        self.settings = region
        self.coord_encoder = nn.Linear(region.coord_feat_dim, width)
        self.coord_decoder = nn.Linear(width, region.coord_out_dim)
        self.size_encoder = nn.Linear(region.size_feat_dim, width)
        self.size_decoder = nn.Linear(width, region.size_out_dim)
        self.ln = nn.LayerNorm(width)
        # Drawn once and kept: what the encoders were trained on.
        self.coord_features = nn.Parameter(torch.zeros(1, region.coord_feat_dim // 2))
        self.size_features = nn.Parameter(torch.zeros(2, region.size_feat_dim // 2))

    @property
    def num_bins(self) -> tuple[int, int, int]:
        """Bins of each of HEADS."""
        sizes = self.settings.size_out_dim // 2
        return self.settings.coord_out_dim, sizes, sizes

    def encoded(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for coordinates and for sizes [N, width] each, of bins [N, 3]; any where they say none."""
        known, (coordinates, sizes, _) = bins.clamp(min=0), self.num_bins
        shares = coordinate_of(known[:, :1], coordinates, self.settings.last_bin_is_one)
        return (
            self.coord_encoder(fourier(shares, self.coord_features)),
            self.size_encoder(fourier(size_of(known[:, 1:], sizes), self.size_features)),
        )

    def forward(self, embedded: Tensor, bins: Tensor) -> Tensor:
        """Inputs [N, width] with those of coordinates and sizes in place of their tokens' embeddings; bins: [N, 3]."""
        of_coordinates, of_sizes = self.encoded(bins)
        said = torch.where(bins[:, :1] != NO_BIN, of_coordinates, embedded)
        return torch.where(bins[:, 1:2] != NO_BIN, of_sizes, said)

    def logits(self, states: Tensor, chosen: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Logits [N, K] of each of HEADS from the language model's states [N, width].

        chosen: of each head the places [n] at which alone its logits are wanted; None: at all.
        """
        normed, half = self.ln(states), self.settings.size_out_dim // 2
        if chosen is None:
            return [self.coord_decoder(normed), *self.size_decoder(normed).split(half, dim=1)]
        coordinates, widths, heights = (normed[places] for places in chosen)
        return [
            self.coord_decoder(coordinates),
            self.size_decoder(widths)[:, :half],
            self.size_decoder(heights)[:, half:],
        ]
