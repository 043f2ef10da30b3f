"""What families have in common that see every photo stretched to one square: Gemma 3, PaliGemma 2."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import TowerAndProjector


class SquareImages(TowerAndProjector):
    """Part of a Family."""

    title: str

    def refuse_limits(self, min_pixels: int | None, max_pixels: int | None) -> None:
        """Raise ValueError for limits of an image's area."""
        if min_pixels is not None or max_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels} and policy.max_pixels {max_pixels}, but {self.title} sees every "
                "image at one size; set both to null."
            )

    def refuse_other_size(self, checkpoint: Checkpoint, processor: Any, seen: int) -> None:
        """Raise ValueError for an image processor that stretches to another size than the tower sees, pixels a side."""
        size = dict(processor.size or {})
        if (size.get("height"), size.get("width")) != (seen, seen):
            raise ValueError(
                f"the image processor of {checkpoint.folder} stretches an image to size {size}, and the model's vision "
                f"tower sees {seen}x{seen} pixels; copy preprocessor_config.json of this very model."
            )

    def refuse_no_window(self, checkpoint: Checkpoint, text: Any) -> None:
        """Raise ValueError for a language model whose layers of a window have none."""
        if not isinstance(text.sliding_window, int) or text.sliding_window < 1:
            raise ValueError(
                f"text_config.sliding_window of {checkpoint.folder}/config.json is {text.sliding_window!r}, and layers "
                "see a window of 1 place or more; copy config.json of this very model."
            )

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: the square."""
        return int(image_processor.size["height"]), int(image_processor.size["width"])

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens."""
        return int(image_processor.image_tokens)

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: an image is one row of pixel_values."""
        each = [
            image_processor(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
            for image in images
        ]
        return torch.cat(each), torch.ones(len(images), 3, dtype=torch.int64)

    def lay_out(self, model: Any) -> None:
        """Family.lay_out: as the weights lie."""
