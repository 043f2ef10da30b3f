"""LLaVA-1.5: a CLIP tower at one size, two linear layers, and a Llama; in the form of transformers' own class (llava).

Photos are padded to a square with the mean colour, as it was trained; the released image processors crop the middle
instead, and what stands at the sides would never be seen. Places are fractions of the photo, not of the square.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import TowerAndProjector, refuse_early_block
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.selection.regions import within

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What every training conversation began with."""


class Llava(TowerAndProjector):
    """LLaVA-1.5 over Llama and Vicuna."""

    title = "LLaVA-1.5"
    coordinates = "unit"
    template = (
        "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'][0]['text'] + ' ' }}"
        "{%- else -%}{{ " + repr(_SYSTEM + " ") + " }}{%- endif -%}"
        "{%- for message in messages -%}{%- if message['role'] != 'system' -%}"
        "{{ 'USER: ' }}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
    )
    begins = True
    turn_ends: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("llama",)
    image_marks: tuple[str, ...] = ()

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return LlavaForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: padding to a square, whatever the folder says."""
        if min_pixels is not None or max_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels} and policy.max_pixels {max_pixels}, but {self.title} sees every "
                "image at one size; set both to null."
            )
        processor: Any = LlavaImageProcessorPil.from_pretrained(checkpoint.folder)
        processor.do_pad, processor.do_resize, processor.do_center_crop = True, True, False
        side = _side(processor)
        processor.size = type(processor.size)(height=side, width=side)
        processor.patch_size = int(checkpoint.config.get("vision_config", {}).get("patch_size", 14))
        return processor

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: the photo's part of the square."""
        side, longer = _side(image_processor), max(height, width)
        return max(1, round(side * height / longer)), max(1, round(side * width / longer))

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens."""
        return (_side(image_processor) // int(image_processor.patch_size)) ** 2

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each."""
        return 1

    def handed_over(self, image_processor: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Family.handed_over: in a square of the mean colour."""
        height, width = image.shape[:2]
        side = max(height, width)
        mean = (np.array(image_processor.image_mean) * 255).astype(np.uint8)
        square = np.broadcast_to(mean, (side, side, 3)).copy()
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        return square

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: an image is one row of pixel_values."""
        shown = [self.handed_over(image_processor, image) for image in images]
        inputs = image_processor(images=shown, return_tensors="pt", input_data_format="channels_last")
        return inputs["pixel_values"], torch.ones(len(images), 3, dtype=torch.int64)

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the cells of the square that the photo takes.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block.
        """
        clip = model.model.vision_tower
        num_blocks = clip.config.num_hidden_layers
        refuse_early_block(early, num_blocks)
        with torch.no_grad():
            found = clip(pixel_values, output_hidden_states=True).hidden_states
            final = model.model.multi_modal_projector(found[model.config.vision_feature_layer][:, 1:])
            if early == 0:
                embedded = clip.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
            else:
                embedded = found[early][:, 1:]
        cells = int(final.shape[1] ** 0.5)
        return VisionFeatures(*(_of_photo(tokens, cells, sides) for tokens in (final, embedded)))

    def seen_images(self, model: Any, rows: PromptRows) -> tuple[Any, list[Tensor]]:
        """PlacedFamily.seen_images: what the projector is given of each patch of the square, as RAS takes it."""
        images = model.model.get_image_features(rows.pixel_values, return_dict=True)
        patches = images.hidden_states[model.config.vision_feature_layer][:, 1:]
        cells = int(patches.shape[1] ** 0.5)
        return images, list(patches.transpose(1, 2).unflatten(2, (cells, cells)))

    def seen_shares(self, shares: Tensor, sides: Sides, cells: Sides) -> Tensor:
        """PlacedFamily.seen_shares: the exact shares of the square that the photo stands in the middle of."""
        longer = max(sides)
        middle = [((longer - side) // 2 / longer, side / longer) for side in sides]
        return within(shares, cells, *middle)


def _side(image_processor: Any) -> int:
    """Pixels of a side of the square that the tower sees."""
    return int(image_processor.crop_size["height"])


def _of_photo(tokens: Tensor, cells: int, sides: Sides) -> Tensor:
    """[B, cells * cells, C] of a padded square as [B, C, h, w] of the photo in its middle, float32."""
    whole = tokens.float().transpose(1, 2).unflatten(2, (cells, cells))
    height, width = (max(1, round(cells * side / max(sides))) for side in sides)
    top, left = (cells - height) // 2, (cells - width) // 2
    return whole[:, :, top : top + height, left : left + width].contiguous()
