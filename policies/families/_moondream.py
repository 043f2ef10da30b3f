"""Moondream 3 as a family: its folder, its crops, its tower. Its model is written here (policies/moondream): the
folders as published hold code of their own, which is never run, and transformers has no class for it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import TowerAndProjector, refuse_early_block, with_output_of
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.moondream import layouts
from policies.moondream.config import MoondreamConfig, MoondreamVisionConfig
from policies.moondream.crops import canvas, crops_of, num_crops, stitched, tiling_of
from policies.moondream.decode import MoondreamDecoder
from policies.moondream.model import MoondreamForSegmentation
from policies.sharing.attention import Heads


class Moondream(TowerAndProjector):
    """Moondream 3."""

    title = "Moondream 3"
    takes_code = True
    coordinates = "unit"
    template = ""
    begins = False
    turn_ends: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("moondream3_text",)
    image_marks: tuple[str, ...] = ()

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config."""
        return MoondreamConfig.from_pretrained(checkpoint.folder)

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network: of either published layout; ValueError for a key that is doubled or that nobody knows."""
        loading.pop("attn_implementation", None)
        config = MoondreamConfig.from_pretrained(checkpoint.folder)
        if not layouts.is_second(checkpoint.stored_shapes()):
            return MoondreamForSegmentation.from_pretrained(checkpoint.folder, config=config, **loading)
        stored: dict[str, Tensor] = {}
        for name in checkpoint.shards:
            stored |= load_file(checkpoint.folder / name)
        weights = layouts.to_first(stored)
        return MoondreamForSegmentation.from_pretrained(None, config=config, state_dict=weights, **loading)

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: the vision part of the config; max_pixels bounds the number of crops."""
        if min_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels}, but {self.title} sees an image as whole crops, one at least; set "
                "it to null."
            )
        vision = MoondreamConfig.from_pretrained(checkpoint.folder).vision
        area = vision.crop_size**2
        if max_pixels is not None and max_pixels < area:
            raise ValueError(
                f"policy.max_pixels is {max_pixels}, less than one crop of {self.title} shows ({area}); set it to "
                f"{area} x the crops that an image may take, such as {4 * area}."
            )
        if max_pixels is not None:
            vision.max_crops = min(vision.max_crops, max_pixels // area)
        return vision

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: that of all crops together."""
        return canvas(tiling_of(height, width, image_processor), image_processor)

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens: as many for every image."""
        return int(image_processor.grid**2)

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each: of the whole image's crop; how many crops there are besides, says its size."""
        return 1

    def language_model(self, model: Any) -> Any:
        """Family.language_model."""
        return model.model.text

    def heads(self, model: Any) -> Heads:
        """Family.heads."""
        text = model.config.text
        return Heads(1, text.dim // text.n_heads, model.dtype)

    def lay_out(self, model: Any) -> None:
        """Family.lay_out: nothing; the maps that share an input are one already."""

    def cached(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Family.cached."""
        return torch.stack([keys.transpose(2, 3) for keys, _ in layers]), torch.stack([values for _, values in layers])

    def decoder(self, model: Any) -> MoondreamDecoder:
        """Family.decoder."""
        return MoondreamDecoder(model.model)

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: a crop is one row of pixel_values, the whole image first; the grid is that of its other
        crops."""
        tilings = [tiling_of(image.shape[0], image.shape[1], image_processor) for image in images]
        pixel_values = torch.cat([crops_of(image, image_processor) for image in images])
        return pixel_values, torch.tensor([(1, *tiling) for tiling in tilings], dtype=torch.int64)

    def placeholder(self, config: Any) -> int:
        """Family.placeholder: a number that no token has, since places alone say where the image is."""
        return int(config.text.vocab_size)

    def tower(self, model: Any) -> nn.Module:
        """Family.tower."""
        tower: nn.Module = model.model.vision
        return tower

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """Family.projector."""
        return [model.model.vision.proj_mlp]

    def prepare(self, model: Any) -> None:
        """Family.prepare: the frequencies of coordinates and sizes stay as they were drawn."""
        region = model.model.region
        region.coord_features.requires_grad_(False)
        region.size_features.requires_grad_(False)

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """Family.image_inputs."""
        return {"pixel_values": rows.pixel_values, "image_grid": rows.image_grid}

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: those of the crops, stitched; of the whole image's crop where it is the only one.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block.
        """
        vision = model.model.vision
        refuse_early_block(early, len(vision.blocks))
        watched = vision.patch_emb if early == 0 else vision.blocks[early - 1]
        final, held = with_output_of(watched, lambda: vision(pixel_values))
        parts = final, held.unflatten(1, (vision.settings.grid, -1))
        return VisionFeatures(*(_of_images(part, image_grid, vision.settings) for part in parts))


def _of_images(crops: Tensor, image_grid: Tensor, vision: MoondreamVisionConfig) -> Tensor:
    """[B, C, h, w] float32 of B images of one size, from the features [N, side, side, C] of all their crops."""
    _, rows, columns = image_grid[0].tolist()
    each, tiles = num_crops((rows, columns)), rows * columns
    by_image = crops.float().unflatten(0, (len(image_grid), each))[:, -tiles:]
    whole = [stitched(own, (rows, columns), vision.overlap_margin) for own in by_image]
    return torch.stack(whole).permute(0, 3, 1, 2).contiguous()
