"""What families have in common whose class of transformers holds a tower, a projector and a language model side by
side, and whose text goes on by order alone: LLaVA, InternVL, SmolVLM, Gemma 3, Kimi-VL."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.families._auto import AutoFamily
from policies.families.base import PromptRows


class TowerAndProjector(AutoFamily):
    """Part of a Family."""

    thinking_marks = ("<think>", "</think>")

    def engine_limits(self, image_processor: Any) -> dict[str, int]:
        """Family.engine_limits: there are none."""
        return {}

    def stored_limits(self, image_processor: Any) -> dict[str, Any]:
        """Family.stored_limits: as for an engine."""
        return dict(self.engine_limits(image_processor))

    def handed_over(self, image_processor: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Family.handed_over."""
        return image

    def placeholder(self, config: Any) -> int:
        """Family.placeholder."""
        return int(config.image_token_id)

    def image_end(self, config: Any) -> int | None:
        """Family.image_end: no token of the template closes an image."""
        return None

    def tower(self, model: Any) -> nn.Module:
        """Family.tower: both parts."""
        parts = {"vision_tower": model.model.vision_tower, "multi_modal_projector": model.model.multi_modal_projector}
        return nn.ModuleDict(parts)

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """Family.projector."""
        return [model.model.multi_modal_projector]

    def prepare(self, model: Any) -> None:
        """Family.prepare: nothing."""

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """Family.image_inputs."""
        return {"pixel_values": rows.pixel_values}

    def positions(self, model: Any, rows: PromptRows) -> tuple[Tensor, Tensor]:
        """Family.positions: by order alone."""
        positions = (rows.prompt_mask.cumsum(1) - 1).clamp(min=0)
        return positions, positions[:, -1] + 1


def with_output_of(module: nn.Module, call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What `call` gives, without gradient, and what a module gave on the way."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            found = call()
    finally:
        hook.remove()
    (held,) = seen
    return found, held[0] if isinstance(held, tuple) else held


def merged(tokens: Tensor, each: int) -> Tensor:
    """[N, cells * cells, C] as [N, cells * cells / each^2, each^2 * C]: squares of each * each, in reading order."""
    cells = int(tokens.shape[1] ** 0.5)
    squares = tokens.unflatten(1, (cells // each, each, cells // each, each)).permute(0, 1, 3, 2, 4, 5)
    return squares.flatten(3).flatten(1, 2)


def side_by_side(tokens: Tensor, images: int, tiles: int, rows: int, columns: int) -> Tensor:
    """[images * tiles, cells * cells, C] as [images, C, rows * cells, columns * cells], float32: tiles side by side.

    Tiles of an image beyond rows * columns are left out.
    """
    cells = int(tokens.shape[1] ** 0.5)
    placed = tokens.float().unflatten(0, (images, tiles))[:, : rows * columns]
    placed = placed.unflatten(2, (cells, cells)).unflatten(1, (rows, columns)).permute(0, 5, 1, 3, 2, 4)
    return placed.flatten(4).flatten(2, 3).contiguous()


def refuse_early_block(early: int, num_blocks: int) -> None:
    """Raise ValueError for a block that a tower of `num_blocks` does not have; 0 is the patch embedding."""
    if not 0 <= early <= num_blocks:
        raise ValueError(
            f"early_block is {early}, and the vision tower has {num_blocks} blocks; give 0 for its patch "
            f"embedding, or 1 to {num_blocks}."
        )
