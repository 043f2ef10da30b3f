"""The first layer of a vision tower, from pixels of a patch to its vector, as the one matrix product that it is.

The towers of Qwen2.5-VL and Qwen3-VL write it as a convolution in three dimensions whose kernel is a whole patch: one
place a patch, nothing shared between two. Kernels for convolutions are slow at that: on two CPU cores one takes 6 times
as long as the product for the embedded model.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear


class PatchEmbedding(nn.Conv3d):
    """A convolution over patches of just its kernel's size, under the same names and with the same parameters."""

    @classmethod
    def in_place_of(cls, found: nn.Conv3d) -> "PatchEmbedding":
        """One with the parameters of `found` themselves."""
        sizes: dict[str, Any] = {"kernel_size": found.kernel_size, "stride": found.stride}
        made = cls(found.in_channels, found.out_channels, bias=found.bias is not None, device="meta", **sizes)
        made.weight, made.bias = found.weight, found.bias
        return made.train(found.training)

    def forward(self, input: Tensor) -> Tensor:  # as in nn.Conv3d
        """[patches, width, 1, 1, 1] from [patches, channels, frames, rows, columns] of the kernel's size."""
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def embed_patches_by_product(tower: Any) -> None:
    """Replace the first layer of a tower of Qwen2.5-VL or Qwen3-VL."""
    tower.patch_embed.proj = PatchEmbedding.in_place_of(tower.patch_embed.proj)
