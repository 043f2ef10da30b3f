"""Gemma 3 in the form of transformers' own class (gemma3): a SigLIP tower at one size, pooled to 256 tokens, and layers
of which most see a window of the text.

A photo is stretched to a square, which changes nothing about places in thousandths of each side. The tokens of an image
see each other in both directions; all else is in order. Crops of very wide photos (pan and scan) are left off, as they
are in the released folders. Facts: the released folders and transformers' classes (gemma3, siglip).
"""

import logging
import math
from typing import Any

from torch import Tensor
from transformers import Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from policies.checkpoint import Checkpoint
from policies.families._square import SquareImages
from policies.families._tower_and_projector import (
    merged,
    refuse_early_block,
    side_by_side,
    with_output_of,
)
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.sharing.attention import Heads
from policies.sharing.windowed import WINDOW, WindowedDecoder

log = logging.getLogger(__name__)

_BEGINS = "<start_of_image>"
"""What templates write for an image."""
_IMAGE = f"\n\n{_BEGINS}<image_soft_token><end_of_image>\n\n"
"""What stands for an image in a prompt, one token in place of all."""


class Gemma3(SquareImages):
    """Gemma 3 of 4B and more, which sees; the smallest reads text alone."""

    title = "Gemma 3"
    coordinates = "thousandths"
    template = (
        "{%- for message in messages -%}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' "
        "if message['role'] != 'system' and (loop.first or messages[0]['role'] != 'system' or loop.index > 2) }}"
        "{%- if message['role'] == 'system' -%}{{ '<start_of_turn>user\n' }}{%- endif -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}"
        "{%- else -%}{{ part['text'] | trim }}{%- endif -%}"
        "{%- endfor -%}"
        "{{ '\n\n' if message['role'] == 'system' else '<end_of_turn>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    )
    begins = True
    turn_ends: tuple[str, ...] = ("<end_of_turn>",)
    texts: tuple[str, ...] = ("gemma3_text",)
    image_marks: tuple[str, ...] = ()
    image_text: tuple[str, str] | None = (_BEGINS, _IMAGE)
    layer_kinds: tuple[str, ...] = ("full_attention", WINDOW)

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config; ValueError for text that is read both ways, and for sizes that make no image or no window."""
        config = super().config(checkpoint)
        _pooled(checkpoint, config)
        self.refuse_no_window(checkpoint, config.get_text_config())
        if config.get_text_config().use_bidirectional_attention:
            raise ValueError(
                f"text_config.use_bidirectional_attention of {checkpoint.folder}/config.json is true, and such a model "
                "writes no answers; give one that reads its text in order."
            )
        return config

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return Gemma3ForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: stretching to a square, without crops."""
        self.refuse_limits(min_pixels, max_pixels)
        processor: Any = Gemma3ImageProcessorPil.from_pretrained(checkpoint.folder)
        config = self.config(checkpoint)
        self.refuse_other_size(checkpoint, processor, int(config.vision_config.image_size))
        if processor.do_pan_and_scan:
            log.warning("%s cuts wide photos into crops (do_pan_and_scan): they are left off here", checkpoint.folder)
        processor.do_resize, processor.do_pan_and_scan = True, False
        processor.image_tokens, processor.pooled = int(config.mm_tokens_per_image), _pooled(checkpoint, config)
        return processor

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each: those that are pooled."""
        return int(image_processor.pooled) ** 2

    def heads(self, model: Any) -> Heads:
        """Family.heads: some layers see a window."""
        return super().heads(model)._replace(window=int(model.config.get_text_config().sliding_window))

    def together(self, model: Any, rows: PromptRows) -> Tensor:
        """Family.together: the tokens of the image."""
        return rows.prompt_mask & (rows.prompt_tokens == self.placeholder(model.config))

    def decoder(self, model: Any) -> WindowedDecoder:
        """Family.decoder."""
        return WindowedDecoder(self.language_model(model))

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the pooled grid of the square.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block. The patches of a token become channels of its place.
        """
        vision = model.model.vision_tower
        refuse_early_block(early, len(vision.encoder.layers))
        watched = vision.embeddings.patch_embedding if early == 0 else vision.encoder.layers[early - 1]
        final, held = with_output_of(watched, lambda: model.model.get_image_features(pixel_values).pooler_output)
        held = held.flatten(2).transpose(1, 2) if early == 0 else held
        pooled = math.isqrt(held.shape[1] // final.shape[1])
        whole = len(pixel_values), 1, 1, 1  # one tile an image
        return VisionFeatures(side_by_side(final, *whole), side_by_side(merged(held, pooled), *whole))


def _pooled(checkpoint: Checkpoint, config: Any) -> int:
    """Patches of a side that become one token; ValueError where the patches of an image do not make its tokens."""
    side, patch, tokens = config.vision_config.image_size, config.vision_config.patch_size, config.mm_tokens_per_image
    patches = side // patch if patch > 0 else 0
    cells = math.isqrt(max(tokens, 0))
    if cells**2 != tokens or cells == 0 or patches < cells or patches % cells:
        raise ValueError(
            f"config.json of {checkpoint.folder} says {tokens} tokens an image (mm_tokens_per_image), and {patches} by "
            f"{patches} patches are not pooled to so many; copy config.json of this very model."
        )
    return patches // cells
