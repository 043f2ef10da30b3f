"""What families have in common whose class of transformers holds a tower, a projector and a language model side by
side, and whose text goes on by order alone: LLaVA and InternVL."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from policies.families.base import PromptRows


class TowerAndProjector:
    """Part of a Family."""

    thinking_marks = ("<think>", "</think>")

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


def refuse_early_block(early: int, num_blocks: int) -> None:
    """Raise ValueError for a block that a tower of `num_blocks` does not have; 0 is the patch embedding."""
    if not 0 <= early <= num_blocks:
        raise ValueError(
            f"early_block is {early}, and the vision tower has {num_blocks} blocks; give 0 for its patch "
            f"embedding, or 1 to {num_blocks}."
        )
