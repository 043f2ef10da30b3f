"""Tiny random SAMs in transformers' form, whose masks differ by the prompt."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
    SamConfig,
    SamModel,
)
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


def tiny_sam2(folder: Path, for_video: bool = False) -> Path:
    """Save a tiny random SAM 2, as an image model or as the published ones are, for video; returns its folder."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    sizes = {"image_size": 64, "patch_size": 16}
    parts = _later_parts(sizes, vision)
    torch.manual_seed(2)
    whole = Sam2VideoModel(Sam2VideoConfig(**parts, **_memory(64))) if for_video else Sam2Model(Sam2Config(**parts))
    _save_later(whole, folder)
    return folder


def tiny_sam3(folder: Path, for_video: bool = False) -> Path:
    """Save the part of a tiny random SAM 3 that takes boxes and points, or as the published one is, all of it with the
    parts that follow words and videos; returns its folder."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    torch.manual_seed(0)
    parts = _later_parts({"image_size": 56, "patch_size": 14}, vision)
    if not for_video:
        _save_later(Sam3TrackerModel(Sam3TrackerConfig(**parts)), folder, side=56)
        return folder
    layers = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"model_type": "clip_text_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    detector = {
        "vision_config": vision,
        "text_config": text | {"num_attention_heads": 2, "vocab_size": 99, "projection_dim": 16},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": layers | {"num_queries": 4},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }
    whole = Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=parts | _memory(56)))
    _save_later(whole, folder, side=56)
    # save_pretrained would write the tracker's prefix twice, which no published file has.
    save_file({name: tensor.clone() for name, tensor in whole.state_dict().items()}, folder / "model.safetensors")
    return folder


def _memory(side: int) -> dict[str, Any]:
    """Settings of the parts of a model that remember frames of a video."""
    return {
        "image_size": side,
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }


def _later_parts(sizes: dict[str, int], vision: dict[str, Any]) -> dict[str, Any]:
    decoder = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 8}
    prompts = {"hidden_size": 32, "mask_input_channels": 4, **sizes}
    return {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}


def _save_later(model: Any, folder: Path, side: int = 64) -> None:
    """Save a SAM 2 or 3 with weights that tell prompts apart, and what its image processor's file would say."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and "pos_embed" not in name:
                weights.normal_(0, 2 / weights[0].numel() ** 0.5)
            if "point_embed" in name or "no_memory_embedding" in name:
                weights.normal_(0, 1)
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    said = {"size": size, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Sam2ImageProcessor"} | said))
