"""The two layouts in which Moondream 3 is published, turned into each other; nothing is computed.

The first is the model's own here (`model.text.blocks.0.attn.qkv.weight`), that of the preview's safetensors. The second
names parts otherwise (`text_model.transformer.h.0.mixer.Wqkv.weight`), may hold both temperature matrices of a layer as
one, and has the frequencies of coordinates and sizes transposed. Facts: m87-labs/kestrel.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

_H, _BLOCK = "text_model.transformer.h.", "model.text.blocks."
_VISUAL = "vision_encoder.encoder.model.visual."
_NAMES = (
    ("text_model.transformer.embd.wte.weight", "model.text.wte"),
    ("text_model.lm_head.ln.", "model.text.post_ln."),
    ("text_model.lm_head.linear.", "model.text.lm_head."),
    (f"{_H}N.ln.", f"{_BLOCK}N.ln."),
    (f"{_H}N.mixer.Wqkv.", f"{_BLOCK}N.attn.qkv."),
    (f"{_H}N.mixer.out_proj.", f"{_BLOCK}N.attn.proj."),
    (f"{_H}N.tau_wq", f"{_BLOCK}N.attn.tau.wq"),
    (f"{_H}N.tau_wv", f"{_BLOCK}N.attn.tau.wv"),
    (f"{_H}N.tau_alpha", f"{_BLOCK}N.attn.tau.alpha"),
    (f"{_H}N.gate.", f"{_BLOCK}N.mlp.router."),
    (f"{_H}N.mlp.experts.", f"{_BLOCK}N.mlp.fc1."),
    (f"{_H}N.mlp.output_experts.", f"{_BLOCK}N.mlp.fc2."),
    (f"{_H}N.mlp.fc1.", f"{_BLOCK}N.mlp.fc1."),
    (f"{_H}N.mlp.fc2.", f"{_BLOCK}N.mlp.fc2."),
    (f"{_VISUAL}patch_embed.linear.", "model.vision.patch_emb."),
    (f"{_VISUAL}pos_embed", "model.vision.pos_emb"),
    (f"{_VISUAL}norm.", "model.vision.post_ln."),
    (f"{_VISUAL}blocks.N.norm1.", "model.vision.blocks.N.ln1."),
    (f"{_VISUAL}blocks.N.norm2.", "model.vision.blocks.N.ln2."),
    (f"{_VISUAL}blocks.N.attn.", "model.vision.blocks.N.attn."),
    (f"{_VISUAL}blocks.N.mlp.", "model.vision.blocks.N.mlp."),
    ("vision_encoder.projection.mlp.", "model.vision.proj_mlp."),
    ("region_model.coordinate_encoder.", "model.region.coord_encoder."),
    ("region_model.coordinate_head.", "model.region.coord_decoder."),
    ("region_model.size_encoder.", "model.region.size_encoder."),
    ("region_model.size_head.", "model.region.size_decoder."),
    ("region_model.ln.", "model.region.ln."),
    ("region_model.coordinate_features.weight", "model.region.coord_features"),
    ("region_model.size_features.weight", "model.region.size_features"),
)
"""Beginnings of names in the second layout and in the first; N is the number of a block. One without a point at its end
is a whole name."""
_EXPERTS = ("experts.", "output_experts.")
_TRANSPOSED = ("model.region.coord_features", "model.region.size_features")
_JOINED = re.compile(r"text_model\.transformer\.h\.\d+\.tau_wqwv")
_SECOND, _FIRST = "second", "first"
_COMPILED = "._orig_mod"
"""What torch.compile puts into names."""


def is_second(names: Iterable[str]) -> bool:
    """Whether names are of the second layout."""
    return any(name.startswith(("text_model.", "vision_encoder.", "region_model.")) for name in names)


def to_first(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the second layout by the names of the first, each used once.

    Raises ValueError for a name that has no place, or two that have the same.
    """
    found: dict[str, Tensor] = {}
    for stored, weight in weights.items():
        for name, tensor in _parted(stored.replace(_COMPILED, ""), weight):
            own = _renamed(name, _SECOND)
            if own in found:
                raise ValueError(
                    f"{stored} and another weight are both {own} of Moondream 3; give the files of one checkpoint."
                )
            found[own] = tensor.t().contiguous() if own in _TRANSPOSED else tensor
    return found


def _parted(name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """A weight, or the two that are stored as one."""
    if not _JOINED.fullmatch(name):
        return [(name, weight)]
    return [(name.removesuffix("wqwv") + own, part) for own, part in zip(("wq", "wv"), weight.chunk(2), strict=True)]


def to_second(weights: Mapping[str, Tensor], joined: bool = False) -> dict[str, Tensor]:
    """Weights of the first layout by the names of the second; joined: both temperature matrices of a layer as one.

    Raises ValueError for a name that has no place.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        # What the first calls alike are the maps of a layer, and those of all experts of one, on an axis more.
        own = _renamed(name, _FIRST, experts=weight.dim() == 3 and ".mlp." in name)
        found[own] = weight.t().contiguous() if name in _TRANSPOSED else weight
    if joined:
        for name in [name for name in found if name.endswith(".tau_wq")]:
            queries, values = found.pop(name), found.pop(name.removesuffix("q") + "v")
            found[name.removesuffix("wq") + "wqwv"] = torch.cat([queries, values])
    return found


def _renamed(name: str, of: str, experts: bool = False) -> str:
    """A name of the layout `of` in the other one."""
    for pair in _NAMES:
        own, other = pair if of == _SECOND else pair[::-1]
        if of == _FIRST and experts != pair[0].endswith(_EXPERTS) and own.startswith(f"{_BLOCK}N.mlp.fc"):
            continue
        match = _pattern(own).fullmatch(name)
        if match:
            block, end = match.group("block") if "N" in own.split(".") else "", match.group("end")
            return ".".join(block if part == "N" else part for part in other.split(".")) + end
    raise ValueError(f"{name} is no weight of Moondream 3 in a published layout; give a checkpoint of that model.")


@cache
def _pattern(beginning: str) -> re.Pattern[str]:
    parts = (r"(?P<block>\d+)" if part == "N" else re.escape(part) for part in beginning.split("."))
    return re.compile(r"\.".join(parts) + (r"(?P<end>.+)" if beginning.endswith(".") else r"(?P<end>)"))
