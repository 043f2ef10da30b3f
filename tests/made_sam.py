"""A tiny random SAM in transformers' form, whose masks differ by the point that it is asked at."""

from pathlib import Path

import torch
from transformers import SamConfig, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

_VISION = {
    "hidden_size": 16,
    "output_channels": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 2,
    "global_attn_indexes": [0],
    "mlp_dim": 16,
    "num_pos_feats": 8,
}
_PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
_DECODER = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 8, "iou_head_depth": 2}


def tiny_sam(folder: Path) -> Path:
    """Save one in a folder; returns it."""
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config=_VISION, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 3 / weights[0].numel() ** 0.5)
        for label in model.prompt_encoder.point_embed:
            label.weight.normal_(0, 1)
    model.save_pretrained(folder)
    sizes = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size=sizes[0], mask_size={"longest_edge": 16}, mask_pad_size=sizes[1]
    ).save_pretrained(folder)
    return folder
