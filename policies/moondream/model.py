"""Moondream 3 as a model of transformers: vision tower, language model, coordinates and sizes.

Its parameters have the names of the released safetensors (`model.vision...`, `model.text...`, `model.region...`); the
other released layout is turned into these (policies/moondream/layouts.py). Untested against the released weights, which
were not at hand; the structure is that of the public sources, each point in which these differ a setting
(policies/moondream/config.py).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import ModelOutput

from policies.moondream.config import MoondreamConfig
from policies.moondream.region import MoondreamRegion
from policies.moondream.text import ExpertWeights, MoondreamText, Tau
from policies.moondream.vision import MoondreamVision


@dataclass
class ImageFeatures(ModelOutput):
    """What the language model sees of images."""

    pooler_output: Tensor | None = None
    """[B, n, dim]."""


@dataclass
class TextStates(ModelOutput):
    """What a pass gives."""

    last_hidden_state: Tensor | None = None
    """[B, L, dim], before the final norm."""
    past_key_values: Any = None
    """Keys and values [B, H, L, d] of each layer, where they were asked for."""


class MoondreamModel(nn.Module):
    """The three parts together, without the choice of what is said next."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__()
        self.vision = MoondreamVision(config.vision, config.text.dim)
        self.text = MoondreamText(config.text)
        self.region = MoondreamRegion(config)

    def get_image_features(self, pixel_values: Tensor, image_grid: Tensor) -> ImageFeatures:
        """Tokens of B images; pixel_values: all their crops, image_grid: [B, 3] as (1, rows, columns)."""
        tilings = [(rows, columns) for _, rows, columns in image_grid.tolist()]
        return ImageFeatures(pooler_output=self.vision.image_tokens(pixel_values, tilings))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        pixel_values: Tensor,
        image_grid: Tensor,
        bins: Tensor | None = None,
        use_cache: bool = False,
        **attention: Any,
    ) -> TextStates:
        """States of rows [B, L], each with an image right behind its first token.

        bins: [B, L, 3] what stands for coordinates and sizes, -1 where neither; None: nowhere. attention: as
        policies/sharing/attention.py takes it.
        """
        embedded = self.text.embedded(input_ids)
        if bins is not None:
            (places,) = (bins != -1).any(-1).flatten().nonzero(as_tuple=True)
            flat, own = embedded.flatten(0, 1), bins.flatten(0, 1)[places]
            embedded = flat.index_put((places,), self.region(flat[places], own)).view_as(embedded)
        images: Any = self.get_image_features(pixel_values, image_grid).pooler_output
        of_image = (position_ids >= 1) & (position_ids <= images.shape[1])
        embedded = embedded.masked_scatter(of_image[..., None], images.to(embedded.dtype))
        states, held = self.text(embedded, position_ids, keep=use_cache, **attention)
        return TextStates(last_hidden_state=states, past_key_values=held if use_cache else None)


class MoondreamForSegmentation(PreTrainedModel):
    """The whole model."""

    config_class = MoondreamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["TextBlock", "VisionBlock"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__(config)
        self.model = MoondreamModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model, whose parameter `wte` the embedding is."""
        return self.model.text

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.text.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.model.text.lm_head = new_embeddings

    def enable_input_require_grads(self) -> None:
        """Nothing: layers are computed again in the way that needs no gradient of their inputs (not reentrant)."""

    @property
    def lm_head(self) -> nn.Module:
        """The head."""
        return self.model.text.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights: N(0, 1 / fan-in), residual outputs scaled down by the number of layers."""
        match module:
            case nn.Linear():
                module.weight.normal_(std=module.in_features**-0.5)
                module.bias.zero_()
            case nn.LayerNorm():
                module.weight.fill_(1.0)
                module.bias.zero_()
            case ExpertWeights():
                module.weight.normal_(std=module.weight.shape[-1] ** -0.5)
            case Tau():  # queries and values as they are: 0 + 0.5 + sigmoid(0)
                for parameter in (module.wq, module.wv, module.alpha):
                    parameter.zero_()
            case MoondreamText():
                module.wte.normal_(std=module.wte.shape[1] ** -0.5)
            case MoondreamVision():
                module.pos_emb.normal_(std=0.02)
            case MoondreamRegion():
                module.coord_features.normal_()
                module.size_features.normal_()


AutoModelForImageTextToText.register(MoondreamConfig, MoondreamForSegmentation)
