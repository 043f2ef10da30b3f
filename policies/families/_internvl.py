"""InternVL3 and InternVL3.5 in the form of transformers' own class (the folders that end in -hf).

A photo is stretched to the grid of square tiles whose ratio is nearest to its own, at most 12 of them, and shown once
more as one tile where there are several. Stretching changes nothing about places in thousandths of each side. A tile's
patches become a quarter as many tokens: two by two lie side by side as channels. Facts: the released folders and
transformers' classes (internvl, got_ocr2).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import (
    TowerAndProjector,
    merged,
    refuse_early_block,
    side_by_side,
    with_output_of,
)
from policies.families.base import VisionFeatures
from policies.family import Sides


class InternVL(TowerAndProjector):
    """InternVL over Qwen2 and Qwen3, of tiles."""

    title = "InternVL"
    coordinates = "thousandths"
    template = (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}"
        "{{ '<|im_end|>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    begins = False
    turn_ends: tuple[str, ...] = ("<|im_end|>",)
    texts: tuple[str, ...] = ("qwen2", "qwen3")
    image_marks: tuple[str, ...] = ("<img>", "</img>")

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network: with a head of its own where the folder has one, whatever its config.json leaves out.

        Without the key the class ties head and embedding, and a stored head would be dropped without a word.
        """
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        stored = checkpoint.stored_shapes() if checkpoint.whole else {}
        if any(name.endswith("lm_head.weight") for name in stored):
            config.tie_word_embeddings = False
        return InternVLForConditionalGeneration.from_pretrained(checkpoint.folder, config=config, **loading)

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: cutting into tiles, as it was trained; max_pixels bounds their number."""
        if min_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels}, but {self.title} sees an image as whole tiles, one at least; set "
                "it to null."
            )
        processor: Any = GotOcr2ImageProcessorPil.from_pretrained(checkpoint.folder)
        size, seen = (processor.size["height"], processor.size["width"]), _vision(checkpoint, "image_size", 448)
        if size != (seen, seen) or processor.max_patches < 1:
            raise ValueError(
                f"the image processor of {checkpoint.folder} cuts an image into at most {processor.max_patches} tiles "
                f"of {size[0]}x{size[1]} pixels, and the model's vision tower sees {seen}x{seen}; copy "
                "preprocessor_config.json of this very model."
            )
        side = seen
        if max_pixels is not None and max_pixels < side**2:
            raise ValueError(
                f"policy.max_pixels is {max_pixels}, less than one tile of {self.title} shows ({side**2}); set it to "
                f"{side**2} x the tiles that an image may take, such as {4 * side**2}."
            )
        most = int(processor.max_patches)
        processor.max_patches = most if max_pixels is None else min(most, max_pixels // side**2)
        processor.crop_to_patches, processor.do_resize = True, True
        processor.tile_tokens = _tile_tokens(checkpoint, side)
        return processor

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: that of all tiles together."""
        columns, rows = _grid(image_processor, height, width)
        side = _side(image_processor)
        return rows * side, columns * side

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens: those of the tiles, and of the photo in one tile where there are several."""
        columns, rows = _grid(image_processor, height, width)
        tiles = columns * rows
        return (tiles + (tiles > 1)) * int(image_processor.tile_tokens)

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each."""
        return 4

    def engine_limits(self, image_processor: Any) -> dict[str, int]:
        """Family.engine_limits: most tiles."""
        return {"max_patches": int(image_processor.max_patches)}

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: a tile is one row of pixel_values."""
        inputs = image_processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        grid = torch.ones(len(images), 3, dtype=torch.int64)
        grid[:, 0] = torch.as_tensor(inputs["num_patches"])
        return inputs["pixel_values"], grid

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the tiles side by side, without the photo in one tile.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block. The patches of a token become channels of its place.
        """
        vision = model.model.vision_tower
        num_blocks = len(vision.encoder.layer)
        refuse_early_block(early, num_blocks)
        watched = vision.embeddings.patch_embeddings if early == 0 else vision.encoder.layer[early - 1]
        final, held = with_output_of(watched, lambda: model.model.get_image_features(pixel_values).pooler_output)
        tiles, side = int(image_grid[0, 0]), pixel_values.shape[-1]
        columns, rows = (1, 1) if tiles == 1 else get_optimal_tiled_canvas(sides, (side, side), tiles - 1, tiles - 1)
        layout = len(image_grid), tiles, rows, columns
        return VisionFeatures(side_by_side(final, *layout), side_by_side(merged(held[:, early > 0 :], 2), *layout))


def _side(image_processor: Any) -> int:
    """Pixels of a side of a tile."""
    return int(image_processor.size["height"])


def _vision(checkpoint: Checkpoint, name: str, otherwise: int) -> int:
    """A side of what the vision tower sees, or of its patches, by config.json."""
    vision = checkpoint.config.get("vision_config")
    side = (vision if isinstance(vision, dict) else {}).get(name, otherwise)
    return int(side[0] if isinstance(side, list) else side)


def _tile_tokens(checkpoint: Checkpoint, side: int) -> int:
    """Tokens of a tile; ValueError where config.json says another number than its own sizes make."""
    ratio = float(checkpoint.config.get("downsample_ratio", 0.5))
    if ratio != 0.5:
        raise ValueError(
            f"config.json of {checkpoint.folder} has downsample_ratio {ratio}, and tiles are known here whose patches "
            "become tokens two by two, which is 0.5; give a checkpoint of that."
        )
    made = int(side // _vision(checkpoint, "patch_size", 14) * ratio) ** 2
    said = checkpoint.config.get("image_seq_length", made)
    if said != made:
        raise ValueError(
            f"config.json of {checkpoint.folder} says {said} tokens a tile (image_seq_length), and its vision tower "
            f"makes {made}; copy config.json of this very model."
        )
    return made


def _grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """(columns, rows) of tiles of a height x width image."""
    side = _side(image_processor)
    most = int(image_processor.max_patches)
    if most == 1:
        return 1, 1
    found: tuple[int, int] = get_optimal_tiled_canvas(
        (height, width), (side, side), min(int(image_processor.min_patches), most), most
    )
    return found
