"""Widths and parameter counts of a model, from its config.json alone: it is built on the meta device, without a weight.

So a plan of memory and time needs a folder with config.json, tokenizer and image processor, and no weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from policies.decoders.box_guided import DecoderSizes, DrawingOperations
from policies.decoders.processor import BoxMaskProcessor
from policies.families.box_decoder import decoder_for
from policies.lora import add_adapters
from policies.processor import Processor
from policies.selection.head import MaskTokens, SelectionHead, mask_features
from policies.selection.numbers import NumbersProcessor
from policies.selection.processor import SelectionProcessor
from policies.settings import LoraSettings


@dataclass(frozen=True)
class TextSizes:
    """The language model."""

    layers: int
    """Number of its layers."""
    width: int
    """Width of the hidden states."""
    inner: int
    """Width inside the feed-forward part."""
    heads: int
    """Query heads of a layer."""
    key_heads: int
    """Key and value heads of a layer."""
    head_width: int
    """Width of one head."""
    vocabulary: int
    """Tokens that have logits."""
    normed_heads: bool
    """Whether queries and keys are normed, as in Qwen3 and Gemma 3."""
    attending: int
    """Layers that attend to the tokens before; others hold a state."""
    cached: int
    """Numbers that are held of a token so that others may attend to it, in all layers together: keys and values, or
    latents."""
    states: int = 0
    """Numbers that layers without keys hold of an answer, whatever its length, in all of them together."""

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.key_heads * self.head_width


@dataclass(frozen=True)
class VisionSizes:
    """The blocks of the vision tower."""

    blocks: int
    """Number of its blocks."""
    width: int
    """Width of a patch's state."""
    inner: int
    """Width inside the feed-forward part."""
    heads: int
    """Heads of a block."""
    gated: bool
    """Whether the feed-forward part has a gate beside it, as in Qwen2.5-VL."""
    whole_blocks: int
    """Blocks in which a patch attends to the whole image."""
    window_patches: int
    """Patches of a window, to which it attends in the other blocks; 0 where there are none."""


class TrainingChoice(Protocol):
    """Which parameters learn, as TrainingSettings of rl/config/learner.py has it."""

    freeze_vision: bool
    freeze_projector: bool | None
    lora: LoraSettings | None


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; those that two parts share count once."""

    tower: int
    """Vision tower, what joins it to the language model included."""
    projector: int
    """Modules of the tower that join it to the language model."""
    layers: int
    """Layers of the language model and its last norm."""
    embedding: int
    """Token embedding."""
    head: int
    """Output head; 0 where it is the embedding."""
    adapters: int = 0
    """Parameters of adapters, which the others do not count."""
    idle: int = 0
    """Parameters of the experts that a token does not go to; among those of layers."""
    selection: int = 0
    """What makes tokens of candidate masks, and judges them where the policy chooses in one pass; 0 for policies
    without candidates."""
    decoder: int = 0
    """What draws masks in boxes; 0 for policies that draw nothing."""
    learning_decoder: bool = True
    """Whether it learns: unless policy.freeze_decoder."""
    encoders: int = 0
    """Further encoders of masks, which are frozen and no part of the model: each process holds them beside it."""

    def trained(self, learner: TrainingChoice) -> int:
        """How many of them learn."""
        beside = self.selection + self.decoder * self.learning_decoder
        if learner.lora is not None:
            return self.adapters + self.tower * learner.lora.train_vision + beside
        frozen = learner.freeze_vision
        projector = frozen if learner.freeze_projector is None else learner.freeze_projector
        still = (self.tower - self.projector) * frozen + self.projector * projector
        return self.all - still - self.decoder * (not self.learning_decoder)

    @property
    def all(self) -> int:
        """All of the model, without adapters."""
        return self.tower + self.layers + self.embedding + self.head + self.selection + self.decoder

    @property
    def largest(self) -> int:
        """The largest single matrix: that of the vocabulary."""
        return max(self.embedding, self.head)


@dataclass(frozen=True)
class ModelSizes:
    """What a plan asks about a model."""

    title: str
    """Family for people, such as Qwen2.5-VL."""
    text: TextSizes
    vision: VisionSizes
    parameters: ParameterCounts
    drawing: DrawingOperations | None = None
    """What its decoder takes to draw masks; None without one."""


@dataclass(frozen=True)
class Beside:
    """What a policy has beside its model, as its settings and its folder say."""

    encoders: Sequence[tuple[int, int]] = ()
    """Channels and parameters of each further encoder of masks."""
    decoder: DecoderSizes = field(default_factory=DecoderSizes)
    """Of a policy that draws masks in boxes."""
    learning_decoder: bool = True
    """Whether its decoder learns."""


def model_sizes(processor: Processor, lora: LoraSettings | None = None, beside: Beside = Beside()) -> ModelSizes:
    """Sizes of the model that a processor belongs to, with those of adapters where it is to have some.

    Raises ValueError where transformers makes no model of its config, or learned.lora names layers that there are not.
    """
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(processor.config)
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no model can be made of the {processor.family.title} config.json ({type(error).__name__}: {error}); copy "
            "it anew from where the model came from."
        ) from error
    return ModelSizes(
        processor.family.title,
        _text_sizes(processor.config.get_text_config().to_dict()),
        _vision_sizes(processor.config.vision_config.to_dict()),
        _with_parts(_parameter_counts(processor, model, lora), processor, model, beside),
        _drawing(processor, beside),
    )


def _drawing(processor: Processor, beside: Beside) -> DrawingOperations | None:
    if not isinstance(processor, BoxMaskProcessor):
        return None
    with torch.device("meta"):
        return decoder_for(processor.config, beside.decoder).operations()


def _with_parts(counts: ParameterCounts, processor: Processor, model: Any, beside: Beside) -> ParameterCounts:
    """Counts with those of the parts that the policy of a processor has beside its model."""
    if isinstance(processor, BoxMaskProcessor):
        with torch.device("meta"):
            decoder = _count(decoder_for(processor.config, beside.decoder).parameters())
        rows = len(processor.mask_words) * (2 if counts.head else 1) if counts.adapters else 0
        adapters = counts.adapters + rows * model.get_input_embeddings().weight.shape[1]
        return replace(counts, decoder=decoder, learning_decoder=beside.learning_decoder, adapters=adapters)
    selection = _selection(processor, model, [width for width, _ in beside.encoders])
    return replace(counts, selection=selection, encoders=sum(number for _, number in beside.encoders))


def _selection(processor: Processor, model: Any, encoders: Sequence[int]) -> int:
    """Parameters of what a policy over candidate masks has beside the model."""
    if not isinstance(processor, SelectionProcessor | NumbersProcessor):
        return 0
    made = SelectionHead if isinstance(processor, SelectionProcessor) else MaskTokens
    with torch.device("meta"):
        head = made(mask_features(processor.config), model.get_input_embeddings().weight.shape[1], encoders)
    return _count(head.parameters())


def _parameter_counts(processor: Processor, model: Any, lora: LoraSettings | None) -> ParameterCounts:
    tower, projector = processor.family.tower(model), processor.family.projector(model)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    whole, of_tower = _count(model.parameters()), _count(tower.parameters())
    of_projector = _count(each for module in projector for each in module.parameters())
    of_head = 0 if head is embedding else head.numel()
    adapters = 0
    if lora is not None:
        add_adapters(model, tower, lora)
        adapters = _count(each for each in model.parameters() if each.requires_grad)
    layers = whole - of_tower - embedding.numel() - of_head
    idle = _idle(processor.config.get_text_config().to_dict(), model)
    return ParameterCounts(of_tower, of_projector, layers, embedding.numel(), of_head, adapters, idle)


def _idle(config: dict[str, Any], model: Any) -> int:
    """Parameters of the experts that a token does not go to, of a model whose experts lie in one tensor a map."""
    experts = int(config.get("n_routed_experts") or config.get("num_experts") or 0)
    if not experts:
        return 0
    held = _count(each for each in model.parameters() if each.ndim == 3 and len(each) == experts)
    return held * (experts - int(config["num_experts_per_tok"])) // experts


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _text_sizes(config: dict[str, Any]) -> TextSizes:
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    key_heads, head_width = (
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or width // heads),
    )
    kinds, latent = config.get("layer_types") or [], int(config.get("kv_lora_rank") or 0)
    attending = int(config["num_hidden_layers"]) - list(kinds).count("linear_attention")
    # Of latents the key has the part that turns besides, once for all heads.
    each = 2 * latent + int(config.get("qk_rope_head_dim") or 0) if latent else 2 * key_heads * head_width
    return TextSizes(
        layers=int(config["num_hidden_layers"]),
        width=width,
        inner=int(config["intermediate_size"]),
        heads=heads,
        key_heads=key_heads,
        head_width=head_width,
        vocabulary=int(config["vocab_size"]),
        normed_heads=str(config.get("model_type", "")).startswith(("qwen3", "gemma3")),
        attending=attending,
        cached=attending * each,
        states=_states(config, list(kinds).count("linear_attention")),
    )


def _states(config: dict[str, Any], layers: int) -> int:
    """Numbers of `layers` layers of a state: a matrix a head, and the last inputs of the convolution."""
    if not layers:
        return 0
    keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    heads, width = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    tails = (2 * keys + heads * width) * (int(config["linear_conv_kernel_dim"]) - 1)
    return layers * (heads * int(config["linear_key_head_dim"]) * width + tails)


def experts_of_token(config: Any) -> int:
    """Experts that a token goes to, in all layers together, at most; 0 for a model without."""
    text = config.get_text_config().to_dict()
    mixture = text.get("moe") or {}
    each = text.get("num_experts_per_tok") or mixture.get("experts_per_token") or 0
    return int(each) * int(text.get("num_hidden_layers") or text.get("n_layers") or 0)


def _vision_sizes(config: dict[str, Any]) -> VisionSizes:
    """CLIP's config calls blocks and heads otherwise than Qwen's."""
    blocks = int(config.get("depth") or config["num_hidden_layers"])
    patch = config["patch_size"]  # InternVL's has two sides
    windows = int(config.get("window_size") or 0) // int(patch[0] if isinstance(patch, list | tuple) else patch)
    return VisionSizes(
        blocks=blocks,
        width=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        heads=int(config.get("num_heads") or config["num_attention_heads"]),
        gated=windows > 0,
        whole_blocks=len(config["fullatt_block_indexes"]) if windows else blocks,
        window_patches=windows**2,
    )
