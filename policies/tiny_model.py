"""A new, untrained checkpoint small enough for two CPU cores: the very classes of Qwen3-VL, with a word-level
tokenizer.

What made so small a model learn: weights N(0, 1 / fan-in) with residual outputs scaled down, and two-dimensional
sine positions in
the vision tower (transformers' default of 0.02 for all barely trains at this width).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from policies.settings import TinySizes

_SPECIAL = {
    "pad": "<|pad|>",
    "end": "<|end|>",
    "unknown": "<|unknown|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "answer": "<|answer|>",
}
_MORE_SPECIAL = ("vision_start", "vision_end", "image", "video", "answer")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def write_untrained(
    folder: Path,
    words: Sequence[str],
    sizes: TinySizes,
    seed: int,
    signs: Sequence[str] = (),
    begin_from: Path | None = None,
) -> None:
    """Write a Hugging Face folder with random weights and a tokenizer of `words` and `signs` (see `word_tokenizer`).

    begin_from: folder of a model of these sizes whose weights take the place of random ones, those of words that both
    have included. Equal arguments write equal files. Raises ValueError where that model has other sizes.
    """
    tokenizer = word_tokenizer(words, signs)
    config = _config(sizes, tokenizer)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        _initialise(model, sizes)
        if begin_from is not None:
            _take_over(model, tokenizer.get_vocab(), begin_from)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = sizes.image_size**2
    Qwen2VLImageProcessorPil(
        patch_size=sizes.patch_size,
        merge_size=1,
        temporal_patch_size=1,
        size={"shortest_edge": pixels, "longest_edge": pixels},
    ).save_pretrained(folder)


def word_tokenizer(
    words: Sequence[str], signs: Sequence[str] = (), special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at spaces; ids are special tokens first, then `words` and `signs` in their order, repeats
    once.

    special: special tokens beside those that every tiny model has. signs: pieces of text that are a token wherever they
    stand, the longest first, spaces in them included. A text of signs alone then comes back as it was written, spaces
    and all.
    """
    known = dict.fromkeys([*_SPECIAL.values(), *special, *words, *signs])
    vocabulary = {word: k for k, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unknown"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if signs:
        pieces = "|".join(re.escape(sign) for sign in sorted(signs, key=len, reverse=True))
        between_words = pre_tokenizers.Split(Regex(r"(?<=\w) +(?=\w)"), "removed")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pieces), "isolated"), between_words]
        )
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL["pad"],
        eos_token=_SPECIAL["end"],
        unk_token=_SPECIAL["unknown"],
        additional_special_tokens=[*(_SPECIAL[k] for k in _MORE_SPECIAL), *special],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    head = sizes.text_width // sizes.text_heads
    vocabulary = tokenizer.get_vocab()
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.text_width,
            "intermediate_size": 3 * sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "num_key_value_heads": sizes.text_heads,
            "head_dim": head,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "pad_token_id": vocabulary[_SPECIAL["pad"]],
            "eos_token_id": vocabulary[_SPECIAL["end"]],
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_width,
            "intermediate_size": 3 * sizes.vision_width,
            "num_heads": sizes.vision_heads,
            "patch_size": sizes.patch_size,
            "temporal_patch_size": 1,
            "spatial_merge_size": 1,
            "out_hidden_size": sizes.text_width,
            "num_position_embeddings": (sizes.image_size // sizes.patch_size) ** 2,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=vocabulary[_SPECIAL["image"]],
        video_token_id=vocabulary[_SPECIAL["video"]],
        vision_start_token_id=vocabulary[_SPECIAL["vision_start"]],
        vision_end_token_id=vocabulary[_SPECIAL["vision_end"]],
        tie_word_embeddings=True,
    )


def _initialise(model: Qwen3VLForConditionalGeneration, sizes: TinySizes) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            fan_in = module.weight[0].numel()
            layers = sizes.vision_layers if "visual" in name else sizes.text_layers
            residual = name.endswith(("o_proj", "down_proj", "attn.proj", "linear_fc2")) and "merger" not in name
            module.weight.normal_(std=fan_in**-0.5 / ((2 * layers) ** 0.5 if residual else 1.0))
            if module.bias is not None:
                module.bias.zero_()
    # The output head is tied to it, so the embedding follows the rule of a linear layer.
    model.model.language_model.embed_tokens.weight.normal_(std=sizes.text_width**-0.5)
    side = sizes.image_size // sizes.patch_size
    model.model.visual.pos_embed.weight.copy_(sine_positions(side, sizes.vision_width))


def _take_over(model: nn.Module, vocabulary: Mapping[str, int], folder: Path) -> None:
    """Copy the weights of another tiny model, the embedding word by word."""
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    held = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, parameter in model.named_parameters():
        other = held.get(name.removeprefix("model."))
        if other is None or (other.shape != parameter.shape and "embed_tokens" not in name):
            raise ValueError(
                f"tiny.begin_from is {folder}, where {name} has shape {None if other is None else tuple(other.shape)} "
                f"and in the new model {tuple(parameter.shape)}; give both the same sizes under `tiny`."
            )
        if "embed_tokens" in name:
            shared = [word for word in vocabulary if word in known]
            parameter[[vocabulary[word] for word in shared]] = other[[known[word] for word in shared]]
        else:
            parameter.copy_(other)


def sine_positions(side: int, width: int) -> Tensor:
    """[side * side, width] sines and cosines of row and column at widths/4 frequencies, row-major."""
    frequencies = 10.0 ** -torch.linspace(0, 1, width // 4) * torch.pi / 2
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, -1)
