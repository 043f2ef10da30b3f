"""Folders with the config.json of released models at their full widths, a tiny tokenizer and the processor; no weights.

Widths as in the released config.json of Qwen/Qwen2.5-VL-3B-Instruct, -7B-, Qwen/Qwen3-VL-4B-Instruct and -8B-.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from envs.codecs.path_tokens import Codec
from policies.tiny_model import word_tokenizer


@dataclass(frozen=True)
class Released:
    """Widths of a released model."""

    family: str
    text: tuple[int, int, int, int, int]
    """Layers, width, inner width, query heads, key heads."""
    vocabulary: int
    tied: bool
    vision: tuple[int, int, int]
    """Blocks, width, inner width."""
    parameters: int
    """Parameters of the released files, each counted once."""


RELEASED = {
    "qwen2_5_vl_3b": Released("qwen2_5_vl", (36, 2048, 11008, 16, 2), 151936, True, (32, 1280, 3420), 3_754_622_976),
    "qwen2_5_vl_7b": Released("qwen2_5_vl", (28, 3584, 18944, 28, 4), 152064, False, (32, 1280, 3420), 8_292_166_656),
    "qwen3_vl_4b": Released("qwen3_vl", (36, 2560, 9728, 32, 8), 151936, True, (24, 1024, 4096), 4_437_815_808),
    "qwen3_vl_8b": Released("qwen3_vl", (36, 4096, 12288, 32, 8), 151936, False, (27, 1152, 4304), 8_767_123_696),
}


def config_of(name: str, layers: int | None = None, blocks: int | None = None, vocabulary: int | None = None) -> Any:
    """The config of a released model; with fewer layers, blocks and words where they are given."""
    released = RELEASED[name]
    depth, width, inner, heads, key_heads = released.text
    ids = word_tokenizer(Codec().words).get_vocab()
    three = released.family == "qwen3_vl"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e6 if three else 1e6}
    rope["mrope_section"] = [24, 20, 20] if three else [16, 24, 24]
    text: dict[str, Any] = {
        "vocab_size": vocabulary or released.vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rope_parameters": rope | ({"mrope_interleaved": True} if three else {}),
        "tie_word_embeddings": released.tied,
        "pad_token_id": ids["<|pad|>"],
        "eos_token_id": ids["<|end|>"],
    } | ({"head_dim": 128} if three else {})
    most, vision_width, vision_inner = released.vision
    depth = blocks or most
    vision = {"depth": depth, "hidden_size": vision_width, "intermediate_size": vision_inner, "num_heads": 16}
    vision |= {"out_hidden_size": width, "spatial_merge_size": 2, "temporal_patch_size": 2}
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": released.tied,
    }
    if not three:
        whole = [k for k in (7, 15, 23, 31) if k < depth]
        vision |= {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": whole}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared)
    stacked = [5, 11, 17] if most == 24 else [8, 16, 24]
    vision |= {"patch_size": 16, "num_position_embeddings": 2304}
    vision |= {"deepstack_visual_indexes": [k for k in stacked if k < depth]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **shared)


def kimi_vl_config() -> dict[str, Any]:
    """config.json of moonshotai/Kimi-VL-A3B-Instruct, what sizes need of it."""
    text = {"vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408}
    text |= {"num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 2}
    text |= {"n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None}
    text |= {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    text |= {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.446, "rope_theta": 8e5}
    vision = {"patch_size": 14, "num_attention_heads": 16, "num_hidden_layers": 27, "hidden_size": 1152}
    vision |= {"intermediate_size": 4304, "init_pos_emb_height": 64, "init_pos_emb_width": 64}
    return {"model_type": "kimi_vl", "text_config": text, "vision_config": vision, "auto_map": {"AutoConfig": "x.Y"}}


def write_kimi_vl_config_only(folder: Path) -> Path:
    """A folder with Kimi-VL's config.json, a tokenizer of words and the image processor's file, but no weights."""
    tokenizer = word_tokenizer(Codec().words)
    tokenizer.save_pretrained(folder)
    config = kimi_vl_config() | {"media_placeholder_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["KimiVLForConditionalGeneration"]}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 14, "in_token_limit": 4096}))
    return folder


LLAVA_PARAMETERS = 7_063_427_072
"""Parameters of the released files of llava-hf/llava-1.5-7b-hf."""


def write_llava_config_only(folder: Path) -> Path:
    """A folder with config.json of llava-hf/llava-1.5-7b-hf, a tokenizer of words and the image processor."""
    tokenizer = word_tokenizer(Codec().words)
    text = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 32, "max_position_embeddings": 4096}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, patch_size=14, image_size=336),
        text_config=LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=576,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    tokenizer.bos_token = "<|vision_start|>"
    tokenizer.save_pretrained(folder)
    LlavaImageProcessorPil(crop_size={"height": 336, "width": 336}, size={"shortest_edge": 336}).save_pretrained(folder)
    return folder


def write_config_only(folder: Path, name: str, **fewer: int) -> Path:
    """A folder with config.json, tokenizer and image processor, but no weights."""
    config = config_of(name, **fewer)
    config.architectures = [
        {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}[
            config.model_type
        ]
    ]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    word_tokenizer(Codec().words).save_pretrained(folder)
    patch = config.vision_config.patch_size
    size = {14: (3136, 12845056), 16: (65536, 16777216)}[patch]
    limits = {"shortest_edge": size[0], "longest_edge": size[1]}
    Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, size=limits).save_pretrained(folder)
    return folder
