"""PaliGemma 2 in the form of transformers' own class (paligemma over gemma2): a SigLIP tower at one size, one linear
layer, and a Gemma 2 that reads its whole prompt in both directions and writes its answer in order.

A photo is stretched to a square. Scores and logits have soft caps, every other layer of an answer sees a window, and
positions begin with 1. There is no chat: a task in a word or two, such as `segment dog`, ends in a line feed. Facts:
transformers' classes (paligemma, gemma2, siglip) and the model cards (arXiv 2412.03555).
"""

from typing import Any

from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, SiglipImageProcessorPil

from policies.checkpoint import Checkpoint
from policies.families._square import SquareImages
from policies.families._tower_and_projector import refuse_early_block, side_by_side, with_output_of
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.sharing.attention import Heads
from policies.sharing.windowed import WINDOW, WindowedDecoder


class PaliGemma(SquareImages):
    """PaliGemma 2 of 3B, 10B and 28B, at 224 and 448 pixels."""

    title = "PaliGemma 2"
    coordinates = "thousandths"
    template = (
        "{%- for message in messages -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- endif -%}{%- endfor -%}{%- endfor -%}{{ '<bos>' }}"
        "{%- for message in messages -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{{ part['text'] | trim }}"
        "{%- if message['role'] == 'system' -%}{{ ' ' }}{%- endif -%}{%- endif -%}"
        "{%- endfor -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '\n' }}{%- endif -%}"
    )
    begins = False
    turn_ends: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("gemma2",)
    image_marks: tuple[str, ...] = ()
    layer_kinds: tuple[str, ...] = ("full_attention", WINDOW)
    caps = True
    whole_prompts = True

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config; ValueError for a window or caps that are none."""
        config = super().config(checkpoint)
        text = config.get_text_config()
        if text.model_type not in self.texts:
            return config  # told by name where layers are looked at
        self.refuse_no_window(checkpoint, text)
        for name, cap in (("attn", text.attn_logit_softcapping), ("final", text.final_logit_softcapping)):
            if not isinstance(cap, (int, float)) or cap <= 0:
                raise ValueError(
                    f"text_config.{name}_logit_softcapping of {checkpoint.folder}/config.json is {cap!r}, and "
                    f"{self.title} has a cap above 0 there; copy config.json of this very model."
                )
        return config

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return PaliGemmaForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor: stretching to a square."""
        self.refuse_limits(min_pixels, max_pixels)
        processor: Any = SiglipImageProcessorPil.from_pretrained(checkpoint.folder)
        vision = self.config(checkpoint).vision_config
        seen = int(vision.image_size)
        self.refuse_other_size(checkpoint, processor, seen)
        processor.do_resize, processor.image_tokens = True, (seen // int(vision.patch_size)) ** 2
        return processor

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each."""
        return 1

    def heads(self, model: Any) -> Heads:
        """Family.heads: some layers of an answer see a window, all of a prompt see all of it."""
        window = int(model.config.get_text_config().sliding_window)
        return super().heads(model)._replace(window=window, together_near=False)

    def outputs(self, model: Any, **inputs: Any) -> Any:
        """Family.outputs: as PaliGemmaModel, which makes masks of its own and takes none for each kind of layer."""
        input_ids, pixel_values = inputs.pop("input_ids"), inputs.pop("pixel_values")
        image = input_ids == self.placeholder(model.config)
        # The placeholder may be no row of the embedding.
        embedded = model.get_input_embeddings()(input_ids.masked_fill(image, 0))
        features = model.model.get_image_features(pixel_values).pooler_output.to(embedded.dtype)
        return self.language_model(model)(inputs_embeds=embedded.masked_scatter(image[..., None], features), **inputs)

    def logit_cap(self, model: Any) -> float:
        """Family.logit_cap."""
        return float(model.config.get_text_config().final_logit_softcapping)

    def together(self, model: Any, rows: PromptRows) -> Tensor:
        """Family.together: all of a prompt."""
        return rows.prompt_mask

    def positions(self, model: Any, rows: PromptRows) -> tuple[Tensor, Tensor]:
        """Family.positions: by order alone, from 1."""
        positions, following = super().positions(model, rows)
        return positions + 1, following + 1

    def decoder(self, model: Any) -> WindowedDecoder:
        """Family.decoder."""
        return WindowedDecoder(self.language_model(model), together_near=False)

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the grid of the square.

        early: 0 the patch embedding, before positions and blocks, k the output of block k, counted from 1; ValueError
        where the tower has no such block.
        """
        vision = model.model.vision_tower
        refuse_early_block(early, len(vision.encoder.layers))
        watched = vision.embeddings.patch_embedding if early == 0 else vision.encoder.layers[early - 1]
        final, held = with_output_of(watched, lambda: model.model.get_image_features(pixel_values).pooler_output)
        held = held.flatten(2).transpose(1, 2) if early == 0 else held
        whole = len(pixel_values), 1, 1, 1  # one tile an image
        return VisionFeatures(side_by_side(final, *whole), side_by_side(held, *whole))
