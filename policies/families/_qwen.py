"""Qwen2.5-VL and Qwen3-VL: what differs between them, and from other families.

Both resize an image to whole merged patches within limits of its area, and put one token for each of them into the
prompt. Facts: the families' released folders and transformers' classes (qwen2_5_vl, qwen3_vl).
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import save_torch_state_dict
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from policies.checkpoint import Checkpoint
from policies.families._auto import AutoFamily
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.vision import attention as vision_attention
from policies.vision.features import tower_features
from policies.vision.patch_embedding import embed_patches_by_product

_MOST_RATIO = 200
"""Largest ratio of an image's sides, longer over shorter: the image processor raises for more."""
_TURNS = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_SYSTEM_LINE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}"
)


class _Qwen(AutoFamily):
    """What the two have in common."""

    turn_ends: tuple[str, ...] = ("<|im_end|>",)
    thinking_marks = ("<think>", "</think>")
    begins = False
    image_marks: tuple[str, ...] = ()

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> Any:
        """Family.image_processor."""
        processor = _read_processor(checkpoint)
        if not processor.do_resize:
            raise ValueError(
                f"the image processor of {checkpoint.folder} has do_resize false, so that most images would stop a "
                "run; set it to true in preprocessor_config.json: images that fit its limits are not changed by it."
            )
        least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        least, most = least if min_pixels is None else min_pixels, most if max_pixels is None else max_pixels
        if min_pixels is not None and min_pixels > processor.size["longest_edge"]:
            raise ValueError(
                f"policy.min_pixels is {min_pixels}, and {checkpoint.folder} shows an image in "
                f"{processor.size['longest_edge']} pixels at most; set it to that or less."
            )
        place = (processor.patch_size * processor.merge_size) ** 2
        if max_pixels is not None and max_pixels < place:
            raise ValueError(
                f"policy.max_pixels is {max_pixels}, less than one image token of {self.title} shows ({place}); set it "
                f"to {place} x the tokens that an image may take, such as {1280 * place}."
            )
        if least > most:
            raise ValueError(
                f"an image may have at least {least} pixels (policy.min_pixels or the checkpoint's own) and at most "
                f"{most} (policy.max_pixels or the checkpoint's own); set policy.min_pixels to {most} or less, or "
                f"policy.max_pixels to {least} or more."
            )
        processor.size["shortest_edge"], processor.size["longest_edge"] = least, most
        return processor

    title: str

    def shown_size(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size."""
        height, width = _thick(image_processor, height, width)
        factor = image_processor.patch_size * image_processor.merge_size
        size = image_processor.size
        shown: tuple[int, int] = smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])
        return shown

    def image_tokens(self, image_processor: Any, height: int, width: int) -> int:
        """Family.image_tokens."""
        height, width = self.shown_size(image_processor, height, width)
        return height * width // (image_processor.patch_size * image_processor.merge_size) ** 2

    def handed_over(self, image_processor: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Family.handed_over: the shorter side stretched where it is too thin.

        The processor resamples anyway, each side to whole patches, and answers are in pixels of the image itself.
        """
        height, width = _thick(image_processor, *image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def patches(self, image_processor: Any, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches."""
        shown = [self.handed_over(image_processor, image) for image in images]
        inputs = image_processor(images=shown, return_tensors="pt", input_data_format="channels_last")
        return inputs["pixel_values"], inputs["image_grid_thw"]

    def patches_each(self, image_processor: Any) -> int:
        """Family.patches_each: a merged square of them."""
        return int(image_processor.merge_size) ** 2

    def engine_limits(self, image_processor: Any) -> dict[str, int]:
        """Family.engine_limits."""
        size = image_processor.size
        return {"min_pixels": int(size["shortest_edge"]), "max_pixels": int(size["longest_edge"])}

    def stored_limits(self, image_processor: Any) -> dict[str, Any]:
        """Family.stored_limits: by both names that releases of transformers read."""
        limits = self.engine_limits(image_processor)
        size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
        return {**limits, "size": size}

    def placeholder(self, config: Any) -> int:
        """Family.placeholder."""
        return int(config.image_token_id)

    def image_end(self, config: Any) -> int | None:
        """Family.image_end."""
        return int(config.vision_end_token_id)

    def tower(self, model: Any) -> nn.Module:
        """Family.tower: the mergers (Qwen3-VL's deepstack ones too) included."""
        tower: nn.Module = model.model.visual
        return tower

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """Family.projector: the merger, and in Qwen3-VL those of early blocks."""
        parts = dict(model.model.visual.named_children())
        return [parts[name] for name in ("merger", "deepstack_merger_list") if name in parts]

    def prepare(self, model: Any) -> None:
        """Family.prepare: windows and images go through the tower in few calls."""
        model.model.visual.config._attn_implementation = vision_attention.NAME
        embed_patches_by_product(model.model.visual)

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """Family.image_inputs."""
        return {"pixel_values": rows.pixel_values, "image_grid_thw": rows.image_grid}

    def positions(self, model: Any, rows: PromptRows) -> tuple[Tensor, Tensor]:
        """Family.positions: along three axes."""
        positions, _ = model.model.get_rope_index(
            rows.prompt_tokens,
            mm_token_type_ids=(rows.prompt_tokens == self.placeholder(model.config)).int(),
            image_grid_thw=rows.image_grid,
            attention_mask=rows.prompt_mask,
        )
        last = positions.masked_fill(~rows.prompt_mask, 0).amax(dim=(0, 2))
        return positions, last + 1

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: the processor resizes images, so that its grid spans them."""
        return tower_features(model.model.visual, pixel_values, image_grid, early)

    def seen_images(self, model: Any, rows: PromptRows) -> tuple[Any, list[Tensor]]:
        """PlacedFamily.seen_images: what the merger makes of each merged square."""
        images = model.model.get_image_features(rows.pixel_values, rows.image_grid, return_dict=True)
        sizes = (rows.image_grid[:, 1:] // int(model.config.vision_config.spatial_merge_size)).tolist()
        each = zip(images.pooler_output, sizes, strict=True)
        return images, [cells.unflatten(0, tuple(size)).permute(2, 0, 1) for cells, size in each]

    def seen_shares(self, shares: Tensor, sides: Sides, cells: Sides) -> Tensor:
        """PlacedFamily.seen_shares: the grid spans the image."""
        return shares


class Qwen2_5VL(_Qwen):
    """Qwen2.5-VL, which writes places in pixels of the resized image."""

    title = "Qwen2.5-VL"
    coordinates = "resized_px"
    texts: tuple[str, ...] = ("qwen2_5_vl_text",)
    template = _SYSTEM_LINE + _TURNS

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)


class Qwen3VL(_Qwen):
    """Qwen3-VL, which writes places in thousandths of each side."""

    title = "Qwen3-VL"
    coordinates = "thousandths"
    texts: tuple[str, ...] = ("qwen3_vl_text",)
    template = _TURNS

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        return Qwen3VLForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL whose layers have experts, such as 30B-A3B."""

    title = "Qwen3-VL-MoE"
    texts: tuple[str, ...] = ("qwen3_vl_moe_text",)

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network; ValueError for widths by which the layout of experts cannot be told."""
        text = self.config(checkpoint).get_text_config()
        if not 0 < text.num_experts_per_tok <= text.num_experts:
            raise ValueError(
                f"{checkpoint.folder}/config.json lets a token use {text.num_experts_per_tok} of {text.num_experts} "
                "experts; copy it anew from where the model came from."
            )
        if text.hidden_size in (text.moe_intermediate_size, 2 * text.moe_intermediate_size):
            raise ValueError(
                f"experts of {checkpoint.folder} have the width {text.moe_intermediate_size} in a model of "
                f"{text.hidden_size}, and transformers tells the layout of published experts by their shape alone; "
                "give a model of other widths."
            )
        return Qwen3VLMoeForConditionalGeneration.from_pretrained(checkpoint.folder, **loading)

    def save_weights(self, model: Any, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        """Family.save_weights: experts in the layout of published files, which transformers turns while it loads."""
        held = dict(model.state_dict() if weights is None else weights)
        turned = {
            name: weight.transpose(1, 2).contiguous() if ".mlp.experts." in name else weight
            for name, weight in held.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(turned, str(folder))


def _thick(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Size of an image whose ratio the image processor takes.

    A longer side that the processor would shrink is shrunk here already, so that memory stays bounded.
    """
    longer, shorter = max(height, width), min(height, width)
    if longer <= _MOST_RATIO * shorter:
        return height, width
    shown = min(longer, isqrt(_MOST_RATIO * int(image_processor.size["longest_edge"])))
    thin = -(-shown // _MOST_RATIO)
    return (shown, thin) if height == longer else (thin, shown)


def _read_processor(checkpoint: Checkpoint) -> Any:
    """The image processor of a folder; ValueError where its values are none, or cut images otherwise than the tower."""
    try:
        processor: Any = Qwen2VLImageProcessorPil.from_pretrained(checkpoint.folder)
        limits = [processor.size["shortest_edge"], processor.size["longest_edge"]]
        sides = {"patch_size": processor.patch_size, "merge_size": processor.merge_size}
        counts = [*limits, *sides.values(), processor.temporal_patch_size]
        wrong = [value for value in counts if not isinstance(value, int) or value < 1]
    except (TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the image processor of {checkpoint.folder} cannot be read ({type(error).__name__}: {error}); copy "
            "preprocessor_config.json anew from where the model came from."
        ) from error
    tower = checkpoint.config.get("vision_config")
    expected = tower if isinstance(tower, dict) else {}
    for name, key in (("patch_size", "patch_size"), ("merge_size", "spatial_merge_size")):
        if not wrong and sides[name] != expected.get(key, sides[name]):
            raise ValueError(
                f"the image processor of {checkpoint.folder} has {name} {sides[name]} and the model's vision tower "
                f"{expected[key]}; copy preprocessor_config.json of this very model."
            )
    if wrong:
        raise ValueError(
            f"the image processor of {checkpoint.folder} has {wrong[0]!r} where a whole number above 0 belongs (size, "
            "patch_size, merge_size, temporal_patch_size); copy preprocessor_config.json anew."
        )
    return processor
