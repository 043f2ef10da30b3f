"""Qwen3-VL with random weights, to measure on: the tiny one, or one in the shape of a released size.

The shapes are those of the released configs (Qwen/Qwen3-VL-2B-Instruct, -4B-, -8B-); the tokenizer is the tiny model's,
in an embedding of the full vocabulary.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from envs.codecs.base import AnswerCodec
from envs.codecs.path_tokens import Codec
from envs.datasets._scene import SPATIAL_WORDS
from envs.datasets.cutout_scenes import Env
from envs.plugin import Plugin
from policies.families import vision_language
from policies.processor import Processor
from policies.settings import AS_IT_IS, Asking
from policies.tiny_model import TinySizes, word_tokenizer, write_untrained
from rl.bench.side_by_side import Workload


class Policy(vision_language.Policy):
    """The policy of vision_language.py whose end token, too, cannot be sampled; the learner sees it so as well."""

    @classmethod
    def make_processor(cls, checkpoint: Path, codec: AnswerCodec, asking: Asking = AS_IT_IS) -> Processor:
        """The processor of a folder, the end token among those that are not sampled."""
        processor = super().make_processor(checkpoint, codec, asking)
        # Not those that no text has, most of a vocabulary whose words are the tiny model's: they cost nothing here.
        processor.unsampled_tokens = sorted(processor.tokenizer.all_special_ids)
        return processor


@dataclass(frozen=True)
class Shape:
    """What differs between the released sizes."""

    text_width: int
    text_hidden: int
    """Width inside the language model's feed-forward parts."""
    text_layers: int
    text_heads: int
    tied: bool
    """Whether the output head is the embedding."""
    vision_width: int
    vision_hidden: int
    vision_layers: int
    deepstack: tuple[int, ...]
    """Vision layers whose output reaches the language model too."""


SHAPES = {
    "2b": Shape(2048, 6144, 28, 16, True, 1024, 4096, 24, (5, 11, 17)),
    "4b": Shape(2560, 9728, 36, 32, True, 1024, 4096, 24, (5, 11, 17)),
    "8b": Shape(4096, 12288, 36, 32, False, 1152, 4304, 27, (8, 16, 24)),
}
TINY = "tiny"
DTYPES = ("float32", "bfloat16")
_VOCABULARY = 151_936
_TINY_PATCH, _PATCH, _MERGE = 8, 16, 2


@dataclass(frozen=True)
class ModelChoice:
    """Which model to measure on."""

    model: str = TINY
    """tiny, or a key of SHAPES."""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.model not in (TINY, *SHAPES) or self.dtype not in DTYPES:
            raise ValueError(
                f"the model is {self.model!r} in {self.dtype!r}; it must be {TINY}, {', '.join(SHAPES)}, in "
                f"{' or '.join(DTYPES)}."
            )

    def image_size(self, workload: Workload) -> int:
        """Side of the images, pixels, that makes the workload's image tokens."""
        return workload.side * (_TINY_PATCH if self.model == TINY else _PATCH * _MERGE)

    def env(self, workload: Workload) -> Plugin:
        """Scenes of that size, as many as there are groups."""
        settings = {"image_size": self.image_size(workload), "num_scenes": workload.groups}
        return Plugin("envs.datasets", "Env", "cutout_scenes", settings)

    def write(self, folder: Path, workload: Workload) -> Plugin:
        """Write a Hugging Face folder with random weights, the same in every run; the plugin of its policy."""
        _quiet()
        side = self.image_size(workload)
        if self.model == TINY:
            write_untrained(folder, _words(), TinySizes(image_size=side, patch_size=_TINY_PATCH), seed=0)
        else:
            _write_shape(folder, SHAPES[self.model], side, self.dtype)
        settings = {"checkpoint": folder, "codec": Codec(), "dtype": self.dtype}
        return Plugin("rl.bench", "Policy", "random_qwen", settings)

    def policy(self, folder: Path, workload: Workload) -> Policy:
        """The policy itself, on the GPU where there is one."""
        policy: Policy = self.write(folder, workload).build()
        return policy.to("cuda" if torch.cuda.is_available() else "cpu")


def _quiet() -> None:
    """Nothing on stdout but what was asked for: where it is installed, transformers loads DeepSpeed, which warns."""
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _words() -> list[str]:
    phrases = Env("train").names + Env("held_out_names").names
    return Codec().words + sorted({word for phrase in phrases for word in phrase.split()} | SPATIAL_WORDS)


def _write_shape(folder: Path, shape: Shape, side: int, dtype: str) -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    with torch.device(device):
        Qwen3VLForConditionalGeneration(released_config(shape)).save_pretrained(folder)
    torch.set_default_dtype(before)
    word_tokenizer(_words()).save_pretrained(folder)
    size = {"shortest_edge": side**2, "longest_edge": side**2}
    Qwen2VLImageProcessorPil(patch_size=_PATCH, merge_size=_MERGE, temporal_patch_size=2, size=size).save_pretrained(
        folder
    )


def released_config(shape: Shape) -> Qwen3VLConfig:
    """The config of a released size, special tokens where the tiny tokenizer has them."""
    ids = word_tokenizer(_words()).get_vocab()
    return Qwen3VLConfig(
        text_config={
            "vocab_size": _VOCABULARY,
            "hidden_size": shape.text_width,
            "intermediate_size": shape.text_hidden,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": shape.text_heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": shape.tied,
            "pad_token_id": ids["<|pad|>"],
            "eos_token_id": ids["<|end|>"],
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_hidden,
            "num_heads": 16,
            "patch_size": _PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": _MERGE,
            "out_hidden_size": shape.text_width,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(shape.deepstack),
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )
