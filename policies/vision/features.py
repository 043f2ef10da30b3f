"""What a refiner reads from a vision tower of the Qwen families: its output, and what it held early on.

Patches come merge block by merge block; the patches of a block become channels of its place, so that early and final
features stand on one grid.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_window_index

from envs.plugin import Plugin
from policies.checkpoint import Checkpoint
from policies.families.base import PolicyContract, VisionFeatures


def policy_with_tower_alone(recipe: Plugin, device: torch.device) -> PolicyContract:
    """The policy of a recipe for its vision features and their checksum: the tower on a device, nothing else in memory.

    Weights are read in the format that they are stored in, so that those of the language model stay in their file.
    """
    dtype = str(recipe.settings.get("dtype", "float32"))
    if recipe.takes("dtype") and (stored := Checkpoint(Path(recipe.settings["checkpoint"])).stored_dtype()):
        recipe = recipe.with_settings(dtype=stored)
    policy: Any = recipe.build()
    policy.eval().requires_grad_(False)
    tower = policy.vision_tower
    kept = {id(module) for module in tower.modules()}
    for module in policy.modules():
        if id(module) not in kept:
            for name, parameter in list(module.named_parameters(recurse=False)):
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    tower.to(device)
    for parameter in tower.parameters():
        parameter.data = parameter.data.to(_DTYPES[dtype])
    held: PolicyContract = policy
    return held


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def tower_features(visual: nn.Module, patches: Tensor, grid: Tensor, early_block: int = 0) -> VisionFeatures:
    """Features of B images of one size, float32.

    visual: the tower; patches: [all patches, channels] as the image processor cuts them; grid: [B, 3] int64, (1, rows,
    columns) of patches of each image. early_block: 0 the patch embedding, before positions and blocks, k the output of
    block k, counted from 1; ValueError where the tower has no such block.
    """
    tower: Any = visual
    if not 0 <= early_block <= len(tower.blocks):
        raise ValueError(
            f"early_block is {early_block}, and the vision tower has {len(tower.blocks)} blocks; give 0 for its patch "
            f"embedding, or 1 to {len(tower.blocks)}."
        )
    if early_block == 0:
        final, early = tower(patches, grid_thw=grid).pooler_output, tower.patch_embed(patches)
    else:
        final, early = _with_block(tower, patches, grid, early_block)
    merge = tower.spatial_merge_size
    rows, columns = (grid[0, 1:] // merge).tolist()

    def on_grid(tokens: Tensor) -> Tensor:
        maps = tokens.reshape(len(grid), rows, columns, -1).permute(0, 3, 1, 2)
        return maps.float().contiguous()

    return VisionFeatures(on_grid(final), on_grid(early))


def _with_block(tower: Any, patches: Tensor, grid: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(output [merge blocks, C], output of one block [patches, E], in the order of the patches)."""
    seen: list[Tensor] = []
    hook = tower.blocks[block - 1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        final = tower(patches, grid_thw=grid).pooler_output
    finally:
        hook.remove()
    (early,) = seen
    if isinstance(tower, Qwen2_5_VisionTransformerPretrainedModel):
        # It puts merge blocks in the order of its attention windows, and only its output back.
        sizes: Any = tower.config
        order, _ = get_vision_window_index(grid, sizes.spatial_merge_size, sizes.window_size, sizes.patch_size)
        places = torch.argsort(order.to(early.device))
        early = early.view(len(places), -1)[places].view(early.shape)
    return final, early
