"""Kimi-VL: a tower that sees photos at their own size, and a language model of experts with latent attention.

Its folders name code of their own, which is never run: transformers' class of its successor (kimi_k25) is the same
network up to names, the tokenizer is made of its files (policies/kimi/tokenizer.py), and a photo is cut as its code
cuts it (policies/kimi/images.py). Of the router only the weights learn: the bias by which experts are chosen stays, and
travels and is proved with the weights. Facts: the released folders as vLLM, ms-swift and transformers read them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration, PreTrainedTokenizerFast

from policies.checkpoint import Checkpoint
from policies.families._tower_and_projector import TowerAndProjector, refuse_early_block, with_output_of
from policies.families.base import PromptRows, VisionFeatures
from policies.family import Sides
from policies.kimi.decode import LatentDecoder, latent_cache
from policies.kimi.images import KimiImages, on_photo
from policies.kimi.tokenizer import kimi_tokenizer
from policies.kimi.weights import PROJECTOR, released_weights
from policies.sharing.attention import Heads


class KimiVL(TowerAndProjector):
    """Kimi-VL, Instruct and Thinking."""

    title = "Kimi-VL"
    coordinates = "unit"
    takes_code = True
    template = (
        "{%- for message in messages -%}"
        "{%- if loop.first and message['role'] != 'system' -%}"
        "{{ '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}{%- endif -%}"
        "{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}"
        "{{ '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' }}"
        "{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{{ '<|im_end|>' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_assistant|>assistant<|im_middle|>' }}{%- endif -%}"
    )
    begins = False
    turn_ends: tuple[str, ...] = ("<|im_end|>",)
    texts: tuple[str, ...] = ("deepseek_v3",)
    thinking_marks = ("◁think▷", "◁/think▷")
    image_marks: tuple[str, ...] = ()

    def config(self, checkpoint: Checkpoint) -> Any:
        """Family.config: Kimi-VL's as that of its successor, whose head would be tied by default."""
        held = checkpoint.config
        vision, text = dict(held.get("vision_config") or {}), dict(held.get("text_config") or {})
        known = ("patch_size", "num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size")
        tower = {name: vision[name] for name in known if name in vision}
        tower["merge_kernel_size"] = tuple(vision.get("merge_kernel_size", (2, 2)))
        for side in ("height", "width"):
            tower[f"pos_emb_{side}"] = vision.get(f"init_pos_emb_{side}", 64)
        _refuse_other_routers(checkpoint, text)
        text["model_type"] = "deepseek_v3"
        text.pop("auto_map", None)
        tied = bool(held.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
        text["tie_word_embeddings"] = tied
        return Kimi_K25Config(
            text_config=text,
            vision_config=tower,
            projection_hidden_size=tower.get("hidden_size", 1152),
            image_token_id=int(held.get("media_placeholder_token_id", 163605)),
            tie_word_embeddings=tied,
        )

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """Family.tokenizer: of tiktoken.model, or of tokenizer.json where somebody made one."""
        if (checkpoint.folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
        return kimi_tokenizer(checkpoint.folder)

    def network(self, checkpoint: Checkpoint, **loading: Any) -> Any:
        """Family.network."""
        config = self.config(checkpoint)
        _refuse_other_names(checkpoint, config)
        return Kimi_K25ForConditionalGeneration.from_pretrained(
            checkpoint.folder, config=config, key_mapping=PROJECTOR, **loading
        )

    def prepare(self, model: Any) -> None:
        """Family.prepare: the routers' biases become parameters that do not learn, so that they travel too; the tower
        takes pixels in its own number format."""
        model.model.vision_tower.patch_embed.register_forward_pre_hook(_in_own_format)
        for layer in self.language_model(model).layers:
            gate = dict(layer.mlp.named_children()).get("gate")
            if gate is not None and "e_score_correction_bias" in dict(gate.named_buffers()):
                bias = gate.e_score_correction_bias
                del gate.e_score_correction_bias
                gate.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def save_weights(self, model: Any, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        """Family.save_weights: by their released names."""
        held = dict(model.state_dict() if weights is None else weights)
        heads = int(model.config.vision_config.num_attention_heads)
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(released_weights(held, heads), str(folder))

    def tower(self, model: Any) -> nn.Module:
        """Family.tower."""
        return nn.ModuleDict({"vision_tower": model.model.vision_tower, "mm_projector": model.model.mm_projector})

    def projector(self, model: Any) -> Sequence[nn.Module]:
        """Family.projector."""
        return [model.model.mm_projector]

    def heads(self, model: Any) -> Heads:
        """Family.heads: keys are wider than values."""
        attention = self.language_model(model).layers[0].self_attn
        return Heads(1, int(attention.qk_head_dim), model.dtype, int(attention.v_head_dim))

    def lay_out(self, model: Any) -> None:
        """Family.lay_out: nothing; its maps have inputs of their own."""

    def cached(self, layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Family.cached: latents, once for all heads."""
        return latent_cache(layers)

    def decoder(self, model: Any) -> Any:
        """Family.decoder."""
        return LatentDecoder(self.language_model(model))

    def image_processor(self, checkpoint: Checkpoint, min_pixels: int | None, max_pixels: int | None) -> KimiImages:
        """Family.image_processor; max_pixels bounds the number of patches."""
        if min_pixels is not None:
            raise ValueError(
                f"policy.min_pixels is {min_pixels}, but {self.title} never enlarges a photo; set it to null."
            )
        held, known = checkpoint.json("preprocessor_config.json"), KimiImages()
        names = ("patch_size", "in_token_limit", "image_mean", "image_std")
        images = KimiImages(**{name: held[name] for name in names if name in held})
        shown, seen = images.patch_size, int(checkpoint.config.get("vision_config", {}).get("patch_size", 14))
        if shown != seen:
            raise ValueError(
                f"preprocessor_config.json of {checkpoint.folder} cuts patches of {shown} pixels, and the model's "
                f"vision tower sees {seen}; copy both files of one model."
            )
        images.merge = int(checkpoint.config.get("vision_config", {}).get("merge_kernel_size", (known.merge,))[0])
        place = (images.patch_size * images.merge) ** 2
        if max_pixels is not None and max_pixels < place:
            raise ValueError(
                f"policy.max_pixels is {max_pixels}, less than one image token of {self.title} shows ({place}); set it "
                f"to {place} x the tokens that an image may take, such as {1024 * place}."
            )
        if max_pixels is not None:
            images.in_token_limit = min(images.in_token_limit, max_pixels // images.patch_size**2)
        return images

    def shown_size(self, image_processor: KimiImages, height: int, width: int) -> tuple[int, int]:
        """Family.shown_size: the photo without its padding."""
        return image_processor.shown(height, width)

    def image_tokens(self, image_processor: KimiImages, height: int, width: int) -> int:
        """Family.image_tokens."""
        padded, place = image_processor.padded(height, width), image_processor.patch_size * image_processor.merge
        return padded[0] * padded[1] // place**2

    def patches_each(self, image_processor: KimiImages) -> int:
        """Family.patches_each."""
        return image_processor.merge**2

    def stored_limits(self, image_processor: KimiImages) -> dict[str, Any]:
        """Family.stored_limits."""
        return {"in_token_limit": image_processor.in_token_limit}

    def patches(self, image_processor: KimiImages, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Family.patches: a patch is one row of pixel_values."""
        each = [image_processor.patches(image) for image in images]
        grid = torch.tensor([(1, *sides) for _, sides in each], dtype=torch.int64)
        return torch.cat([patches for patches, _ in each]), grid

    def image_inputs(self, rows: PromptRows) -> dict[str, Tensor]:
        """Family.image_inputs."""
        return {"pixel_values": rows.pixel_values, "image_grid_thw": rows.image_grid}

    def features(
        self, model: Any, pixel_values: Tensor, image_grid: Tensor, sides: Sides, early: int
    ) -> VisionFeatures:
        """Family.features: of the photo without its padding, on as many cells as tokens.

        early: 0 the patch embedding with positions, k the output of block k, counted from 1; ValueError where the
        tower has no such block. The patches of a token become channels of its place.
        """
        tower = model.model.vision_tower
        refuse_early_block(early, len(tower.layers))
        watched = tower.patch_embed if early == 0 else tower.layers[early - 1]
        final, held = with_output_of(
            watched, lambda: torch.cat([*model.model.get_image_features(pixel_values, image_grid).pooler_output])
        )
        merge, (_, rows, columns) = int(tower.merge_kernel_size[0]), image_grid[0].tolist()
        num, size = len(image_grid), tower.config.patch_size
        squares = held.view(num, rows // merge, merge, columns // merge, merge, -1).permute(0, 1, 3, 2, 4, 5).flatten(3)
        maps = final.view(num, rows // merge, columns // merge, -1), squares
        padded = rows * size, columns * size
        shown = _shown(sides, padded, size * merge)
        return VisionFeatures(*(on_photo(each.permute(0, 3, 1, 2), shown, padded) for each in maps))


def _refuse_other_routers(checkpoint: Checkpoint, text: Mapping[str, Any]) -> None:
    """Raise ValueError for experts that are chosen otherwise than this network chooses them."""
    for name, known in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        if text.get(name, known) != known:
            raise ValueError(
                f"text_config.{name} of {checkpoint.folder}/config.json is {text[name]!r}, and experts are known here "
                f"to be chosen by {known}; copy config.json of this very model."
            )
    experts, each = text.get("n_routed_experts"), text.get("num_experts_per_tok")
    if isinstance(experts, int) and isinstance(each, int) and not 0 < each <= experts:
        raise ValueError(
            f"text_config.num_experts_per_tok of {checkpoint.folder}/config.json is {each}, of {experts} experts; copy "
            "config.json of this very model."
        )


def _in_own_format(embedding: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a patch embedding, its pixels in the number format of its weights."""
    return inputs[0].to(embedding.proj.weight.dtype), *inputs[1:]


def _refuse_other_names(checkpoint: Checkpoint, config: Kimi_K25Config) -> None:
    """Raise ValueError for a folder with weights of other names than its config asks for; of experts one by one."""
    if not checkpoint.whole:
        return
    with torch.device("meta"):
        held = Kimi_K25ForConditionalGeneration(config).state_dict()
    tied = {"language_model.lm_head.weight"} if config.tie_word_embeddings else set()
    vision: Any = config.vision_config
    wanted = set(released_weights(held, int(vision.num_attention_heads))) - tied
    stored = set(checkpoint.stored_shapes()) - tied
    for names, what in ((wanted - stored, "lack"), (stored - wanted, "have, and nothing reads,")):
        if names:
            raise ValueError(
                f"the weights of {checkpoint.folder} {what} {len(names)} parameters of a Kimi-VL model, such as "
                f"{min(names)}; copy its files anew, or give the checkpoint that it was trained from."
            )


def _shown(sides: Sides, padded: Sides, place: int) -> tuple[float, float]:
    """The photo's own part of what is shown, pixels: `padded` less what fills the last places.

    As it is where that fits; else by the middle of the scales that fit, less than a place apart.
    """
    least = max((whole - place) / side for side, whole in zip(sides, padded, strict=True))
    most = min(whole / side for side, whole in zip(sides, padded, strict=True))
    scale = 1.0 if least < 1 <= most else (least + most) / 2
    return min(padded[0], sides[0] * scale), min(padded[1], sides[1] * scale)
