"""SmolVLM2 in the form of transformers' own class (smolvlm): a SigLIP tower over tiles, a pixel shuffle, a Llama.

A photo is resampled to a longest side (which enlarges small ones), stretched to whole tiles, and shown once more as one
tile; tokens between say which row and column a tile is. Stretching changes nothing about places in thousandths of each
side, in which it is asked, since its released models were taught no outlines. Facts: the released folders and
transformers' classes (smolvlm).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import (
    TowerAndProjector,
    merged,
    refuse_early_block,
    side_by_side,
    with_output_of,
)
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides

_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"


class SmolVLM(TowerAndProjector):
    """SmolVLM2 over Llama."""

    title = "SmolVLM2"
    coordinates = "thousandths"
    template = (
        "<|im_start|>{%- for message in messages -%}"
        "{{ message['role'] | capitalize }}"
        "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{{ '<end_of_utterance>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
    )
    begins = False
    turn_ends: tuple[str, ...] = ("<end_of_utterance>",)
    texts: tuple[str, ...] = ("llama",)
    image_marks: tuple[str, ...] = ()

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return SmolVLMForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def language_model(self, model: Any) -> Any:
        """Family.language_model."""
        return model.model.text_model

    def tower(self, model: Any) -> nn.Module:
        """Family.tower."""
        return nn.ModuleDict({"vision_model": model.model.vision_model, "connector": model.model.connector})

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """Family.projector."""
        return [model.model.connector]

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: cutting into tiles, as it was trained; max_pixels bounds the longest side."""
        if min_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels}, but {self.title} sees an image as whole tiles, one at least; set "
                "it to null."
            )
        processor: Any = SmolVLMImageProcessorPil.from_pretrained(checkpoint.folder)
        side, seen = _side(processor), int(checkpoint.config.get("vision_config", {}).get("image_size", 0))
        if seen and side != seen:
            raise ValueError(
                f"the image processor of {checkpoint.folder} cuts an image into tiles of {side} pixels, and the "
                f"model's vision tower sees {seen}; copy preprocessor_config.json of this very model."
            )
        if max_pixels is not None and max_pixels < side**2:
            raise ValueError(
                f"policy.max_pixels is {max_pixels}, less than one tile of {self.title} shows ({side**2}); set it to "
                f"{side**2} x the tiles that an image may take, such as {4 * side**2}."
            )
        longest = int(processor.size["longest_edge"])
        if max_pixels is not None:
            longest = min(longest, math.isqrt(max_pixels) // side * side)
        processor.size = {"longest_edge": longest}
        processor.do_image_splitting, processor.do_resize = True, True
        processor.tile_tokens = _tile_tokens(checkpoint, side)
        processor.shuffle = int(checkpoint.config.get("scale_factor", 4))
        return processor

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: that of all tiles together."""
        rows, columns = _grid(image_processor, height, width)
        return rows * _side(image_processor), columns * _side(image_processor)

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens: those of the tiles, and of the photo in one tile where there are several."""
        return _num_tiles(*_grid(image_processor, height, width)) * int(image_processor.tile_tokens)

    def image_ids(self, tokenizer: Any, image_processor: Any, image_token: int, size: Sides) -> list[int]:
        """TiledFamily.image_ids: tiles by row and column, then the whole."""
        rows, columns = _grid(image_processor, *size)
        split = (0, 0) if rows * columns == 1 else (rows, columns)
        shown = tokenizer.convert_ids_to_tokens(image_token)
        text = get_image_prompt_string(*split, int(image_processor.tile_tokens), _AROUND, shown, _WHOLE)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each: those that a pixel shuffle lays together."""
        return int(image_processor.shuffle) ** 2

    def stored_limits(self, image_processor: Any) -> dict[str, Any]:
        """Family.stored_limits."""
        return {"size": {"longest_edge": int(image_processor.size["longest_edge"])}}

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: a tile is one row of pixel_values."""
        tiles = [_num_tiles(*_grid(image_processor, image.shape[0], image.shape[1])) for image in images]
        each = [
            image_processor(images=[image], return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
            for image in images
        ]
        grid = torch.ones(len(images), 3, dtype=torch.int64)
        grid[:, 0] = torch.tensor(tiles)
        return torch.cat(each), grid

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """Family.image_inputs: all tiles of all images, as those of one."""
        return {"pixel_values": rows.pixel_values[None]}

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the tiles side by side, without the photo in one tile.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block. The patches of a token become channels of its place.
        """
        vision = model.model.vision_model
        refuse_early_block(early, len(vision.encoder.layers))
        watched = vision.embeddings.patch_embedding if early == 0 else vision.encoder.layers[early - 1]
        final, held = with_output_of(
            watched, lambda: model.model.get_image_features(pixel_values[None]).pooler_output[0]
        )
        held = held.flatten(2).transpose(1, 2) if early == 0 else held
        tiles = int(image_grid[0, 0])
        found = final.unflatten(0, (len(pixel_values), -1))
        rows, columns = self._rows_and_columns(tiles, sides, pixel_values.shape[-1])
        layout = len(image_grid), tiles, rows, columns
        shuffle = math.isqrt(held.shape[1] // found.shape[1])
        return VisionFeatures(side_by_side(found, *layout), side_by_side(merged(held, shuffle), *layout))

    def _rows_and_columns(self, tiles: int, sides: Sides, side: int) -> tuple[int, int]:
        """The layout of an image's tiles, whose number is known: that of the longest side which makes so many."""
        if tiles == 1:
            return 1, 1
        for longest in range(side, (tiles + 1) * side, side):
            rows, columns = _layout(*sides, longest, side)
            if _num_tiles(rows, columns) == tiles:
                return rows, columns
        raise AssertionError(f"{tiles} tiles of {side} px are no layout of an image of {sides}")


def _side(image_processor: Any) -> int:
    """Pixels of a side of a tile."""
    return int(image_processor.max_image_size["longest_edge"])


def _grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles of a height x width image."""
    return _layout(height, width, int(image_processor.size["longest_edge"]), _side(image_processor))


def _layout(height: int, width: int, longest: int, side: int) -> tuple[int, int]:
    """Rows and columns of tiles of an image that is resampled to a longest side, then to whole tiles."""
    shape = np.broadcast_to(np.zeros(1, np.uint8), (3, height, width))
    height, width = get_resize_output_image_size(shape, resolution_max_side=longest)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / side)
        return math.ceil(int(columns * side / ratio) / side), columns
    rows = math.ceil(height / side)
    return rows, math.ceil(int(rows * side * ratio) / side)


def _num_tiles(rows: int, columns: int) -> int:
    """Tiles that are shown: the photo in one besides where there are several."""
    return rows * columns + (rows * columns > 1)


def _tile_tokens(checkpoint: Checkpoint, side: int) -> int:
    """Tokens of a tile; ValueError where its patches do not make whole ones."""
    patch = int(checkpoint.config.get("vision_config", {}).get("patch_size", 16))
    shuffle = int(checkpoint.config.get("scale_factor", 4))
    cells = side // patch  # pixels that make no whole patch are left out, as the tower leaves them
    if cells % shuffle:
        raise ValueError(
            f"tiles of {checkpoint.folder} are {side} pixels, {cells} patches of {patch}, and {shuffle} by {shuffle} "
            "of them become a token; copy config.json and preprocessor_config.json of one model."
        )
    return (cells // shuffle) ** 2
