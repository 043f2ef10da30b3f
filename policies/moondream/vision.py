"""Moondream 3's vision tower: a ViT over crops, whose features of the whole image and of its crops become one grid of
tokens.

Letters: N crops, n = s x s patches of a crop, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from policies.moondream.config import MoondreamVisionConfig
from policies.moondream.crops import Tiling, num_crops, stitched


class VisionAttention(nn.Module):
    """Full attention of a crop's patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, n, C] to [N, n, C]."""
        by_head = self.qkv(patches).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, in its approximation by tanh."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, states: Tensor) -> Tensor:
        """[..., width] to [..., out]."""
        return self.fc2(functional.gelu(self.fc1(states), approximate="tanh"))


class VisionBlock(GradientCheckpointingLayer):
    """A block of the tower."""

    def __init__(self, vision: MoondreamVisionConfig) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(vision.enc_dim), nn.LayerNorm(vision.enc_dim)
        self.attn = VisionAttention(vision.enc_dim, vision.enc_n_heads)
        self.mlp = Mlp(vision.enc_dim, vision.enc_ff_dim, vision.enc_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, n, C] to [N, n, C]."""
        patches = patches + self.attn(self.ln1(patches))
        return patches + self.mlp(self.ln2(patches))


class MoondreamVision(nn.Module):
    """The tower and its projection to the language model."""

    def __init__(self, vision: MoondreamVisionConfig, out: int) -> None:
        """out: width of the language model."""
        super().__init__()
        self.settings = vision
        self.patch_emb = nn.Linear(3 * vision.enc_patch_size**2, vision.enc_dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, vision.grid**2, vision.enc_dim))
        self.blocks = nn.ModuleList([VisionBlock(vision) for _ in range(vision.enc_n_layers)])
        self.post_ln = nn.LayerNorm(vision.enc_dim)
        self.proj_mlp = Mlp(2 * vision.enc_dim, vision.proj_inner_dim, out)

    def embedded(self, crops: Tensor) -> Tensor:
        """Patch embeddings [N, n, C] of crops [N, 3, side, side], without positions."""
        size = self.settings.enc_patch_size
        crops = crops.to(self.patch_emb.weight.dtype)
        cut = crops.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        return self.patch_emb(cut.flatten(3).flatten(1, 2))

    def forward(self, crops: Tensor) -> Tensor:
        """[N, s, s, C] features of crops [N, 3, side, side] in -1..1."""
        patches = self.embedded(crops) + self.pos_emb
        for block in self.blocks:
            patches = block(patches)
        return self.post_ln(patches).unflatten(1, (self.settings.grid, -1))

    def image_tokens(self, crops: Tensor, tilings: list[Tiling]) -> Tensor:
        """[B, n, out] tokens of B images from all their crops [N, 3, side, side], the whole image first of each.

        The features of an image's own crops are stitched and averaged to a crop's grid; each token is made of those
        and of the whole image's at the same place.
        """
        seen, grid, first, both = self(crops), self.settings.grid, 0, []
        for tiling in tilings:
            own = seen[first : first + num_crops(tiling)]
            first += len(own)
            near = stitched(own[-tiling[0] * tiling[1] :], tiling, self.settings.overlap_margin)
            if tiling != (1, 1):
                near = functional.adaptive_avg_pool2d(near.permute(2, 0, 1), grid).permute(1, 2, 0)
            both.append(torch.cat([own[0], near], dim=-1).flatten(0, 1))
        return self.proj_mlp(torch.stack(both))
