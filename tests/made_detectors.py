"""Tiny random detectors of named things, in transformers' form, that find some boxes."""

from pathlib import Path

import torch
from transformers import (
    BertTokenizerFast,
    CLIPTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

WORDS = ("car", "red", "carpet", "st", "bernard", "dog", "a", "photo", "of", "blue", "##s")
_SEPARATORS = {101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
"""Ids by which Grounding DINO knows where names end."""
_SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "out_indices": [2, 3, 4],
}
_BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 1100,
}
_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_grounding_dino(folder: Path, max_text_len: int = 32, by_mmdetection: bool = False) -> Path:
    """Save a Grounding DINO, or MMDetection's of it, whose boxes differ; returns its folder."""
    torch.manual_seed(3)
    config = (MMGroundingDinoConfig if by_mmdetection else GroundingDinoConfig)(
        backbone_config=_SWIN,
        text_config=_BERT,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=12,
        max_text_len=max_text_len,
        disable_custom_kernels=True,
    )
    model = (MMGroundingDinoForObjectDetection if by_mmdetection else GroundingDinoForObjectDetection)(config)
    _spread(model)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "class_embed" in name and weights.dim() == 0:
                weights.zero_()
        model.model.decoder.layer_norm.weight.mul_(0.5 if by_mmdetection else 0.1)
    model.save_pretrained(folder)
    vocab = {f"[unused{i}]": i for i in range(1100)}
    for i, word in (_SEPARATORS | {0: "[PAD]", 100: "[UNK]"} | dict(enumerate(WORDS, 200))).items():
        vocab = {key: value for key, value in vocab.items() if value != i} | {word: i}
    BertTokenizerFast(vocab=vocab, do_lower_case=True).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 144}).save_pretrained(folder)
    return folder


def tiny_owl(folder: Path) -> Path:
    """Save an OWLv2; returns its folder."""
    torch.manual_seed(0)
    config = Owlv2Config(
        text_config=_TOWER | {"vocab_size": 600, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 599},
        vision_config=_TOWER | {"image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    _spread(model)
    model.save_pretrained(folder)
    alphabet = [*map(chr, range(33, 127)), *[chr(i) + "</w>" for i in range(33, 127)]]
    words = [word + "</w>" for word in ("car", "red", "carpet")]
    vocab = {token: i for i, token in enumerate(["!!pad", "<|startoftext|>", *alphabet, *words])} | {
        "<|endoftext|>": 599
    }
    CLIPTokenizerFast(vocab=vocab, merges=[], pad_token="!!pad", model_max_length=16).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Weights so large that boxes and tokens differ."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and "embed_positions" not in name:
                weights.normal_(0, 1.5 / weights[0].numel() ** 0.5)
