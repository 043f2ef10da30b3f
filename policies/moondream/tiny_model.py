"""A new, untrained Moondream small enough for two CPU cores: the model itself, with a tokenizer of words.

Its first layer is dense, the others have four experts of which a token uses two, together as large as the dense layers
of the other tiny model (policies/tiny_model.py). Crops are as large as its images, so that one is enough.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policies.moondream.config import MoondreamConfig
from policies.moondream.model import MoondreamForSegmentation
from policies.settings import TinySizes
from policies.tiny_model import sine_positions, word_tokenizer

_COORDINATE, _SIZE = "<|coordinate|>", "<|size|>"
_EXPERTS, _EACH = 4, 2


def write_untrained(folder: Path, words: Sequence[str], sizes: TinySizes, seed: int, box_bins: int) -> None:
    """Write a folder with random weights and a tokenizer of `words`; box_bins: steps of coordinates and of sizes.

    Equal arguments write equal files.
    """
    tokenizer = word_tokenizer(words, special=[_COORDINATE, _SIZE])
    tokenizer.chat_template = None
    token = tokenizer.convert_tokens_to_ids
    tokens = {
        "bos_id": token("<|vision_start|>"),
        "eos_id": token("<|end|>"),
        "coord_id": token(_COORDINATE),
        "size_id": token(_SIZE),
        "templates": {"segment": {"prefix": [token("<|vision_end|>")], "suffix": [token("<|answer|>")]}},
    }
    torch.manual_seed(seed)
    parts = {**_sizes(sizes, len(tokenizer), box_bins + 1), "tokenizer": tokens}
    model = MoondreamForSegmentation(MoondreamConfig(parts))
    with torch.no_grad():
        _initialise(model, sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sizes(sizes: TinySizes, vocabulary: int, bins: int) -> dict[str, dict[str, Any]]:
    """Sizes by part of the model."""
    width = sizes.text_width
    moe = {"num_experts": _EXPERTS, "start_layer": 1, "experts_per_token": _EACH}
    text = {
        "dim": width,
        "ff_dim": 9 * width // 2,  # two matrices, as large as the three of a gated layer
        "n_layers": sizes.text_layers,
        "n_heads": sizes.text_heads,
        "vocab_size": vocabulary,
        "max_context": 1024,
        "rope_theta": 10_000.0,
        "prefix_attn": 1 + (sizes.image_size // sizes.patch_size) ** 2,
        "moe": {**moe, "expert_inner_dim": 3 * width // _EXPERTS},
    }
    vision = {
        "enc_dim": sizes.vision_width,
        "enc_ff_dim": 3 * sizes.vision_width,
        "enc_n_layers": sizes.vision_layers,
        "enc_n_heads": sizes.vision_heads,
        "enc_patch_size": sizes.patch_size,
        "crop_size": sizes.image_size,
        "max_crops": 1,
        "overlap_margin": 0,
        "proj_inner_dim": 2 * width,
    }
    region = {"coord_feat_dim": width // 2, "coord_out_dim": bins, "size_feat_dim": width, "size_out_dim": 2 * bins}
    return {"text": text, "vision": vision, "region": region}


def _initialise(model: MoondreamForSegmentation, sizes: TinySizes) -> None:
    """What made so small a model learn: residual outputs scaled down, and positions along both axes."""
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            layers = sizes.vision_layers if ".vision." in name else sizes.text_layers
            parameter.mul_((2 * layers) ** -0.5)
    model.model.vision.pos_emb.copy_(sine_positions(model.config.vision.grid, sizes.vision_width)[None])
