"""Kimi-VL's weights by their released names, from transformers' class for its successor (kimi_k25) and back.

The successor reads what Kimi-VL is made of, up to the names of the projector. What it writes has names that nothing
reads, so that the released ones are made here. Released: attention of the tower as one map, of which queries and keys
turn in pairs side by side (in memory: in halves); experts one by one (in memory: all of a layer as one tensor).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PROJECTOR = {
    r"^multi_modal_projector\.pre_norm": "mm_projector.pre_norm",
    r"^multi_modal_projector\.linear_1": "mm_projector.proj.0",
    r"^multi_modal_projector\.linear_2": "mm_projector.proj.2",
}
"""Names of Kimi-VL's projector as its successor calls them on disk."""
_NAMES = (
    (r"model\.language_model\.(.+)", r"language_model.model.\1"),
    (r"lm_head\.(.+)", r"language_model.lm_head.\1"),
    (r"model\.mm_projector\.pre_norm\.(.+)", r"multi_modal_projector.pre_norm.\1"),
    (r"model\.mm_projector\.in_proj\.(.+)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.out_proj\.(.+)", r"multi_modal_projector.linear_2.\1"),
    (r"model\.vision_tower\.patch_embed\.pos_emb\.position_embeddings", "vision_tower.patch_embed.pos_emb.weight"),
    (r"model\.vision_tower\.patch_embed\.proj\.(.+)", r"vision_tower.patch_embed.proj.\1"),
    (r"model\.vision_tower\.final_layernorm\.(.+)", r"vision_tower.encoder.final_layernorm.\1"),
    (r"model\.vision_tower\.layers\.(\d+)\.norm1\.(.+)", r"vision_tower.encoder.blocks.\1.norm0.\2"),
    (r"model\.vision_tower\.layers\.(\d+)\.norm2\.(.+)", r"vision_tower.encoder.blocks.\1.norm1.\2"),
    (r"model\.vision_tower\.layers\.(\d+)\.mlp\.fc1\.(.+)", r"vision_tower.encoder.blocks.\1.mlp.fc0.\2"),
    (r"model\.vision_tower\.layers\.(\d+)\.mlp\.fc2\.(.+)", r"vision_tower.encoder.blocks.\1.mlp.fc1.\2"),
    (r"model\.vision_tower\.layers\.(\d+)\.attn\.proj\.(.+)", r"vision_tower.encoder.blocks.\1.wo.\2"),
)
"""Names in memory, and as released, of weights that are the same tensor."""
_TOWER_MAP = re.compile(r"model\.vision_tower\.layers\.(\d+)\.attn\.([qkv])_proj\.(weight|bias)")
_EXPERTS = re.compile(r"(model\.language_model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)")


def released_weights(held: Mapping[str, Tensor], vision_heads: int) -> dict[str, Tensor]:
    """All weights by their released names; held: by the names in memory; vision_heads: of the tower's attention.

    Raises ValueError for a name that has no place.
    """
    found: dict[str, Tensor] = {}
    maps: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, weight in held.items():
        if match := _TOWER_MAP.fullmatch(name):
            number, part, kind = match.groups()
            maps.setdefault((number, kind), {})[part] = weight if part == "v" else _in_pairs(weight, vision_heads)
        elif match := _EXPERTS.fullmatch(name):
            found |= _one_by_one(_renamed(match[1]), match[2], weight)
        else:
            found[_renamed(name)] = weight
    for (number, kind), parts in maps.items():
        joined = torch.cat([parts[part] for part in "qkv"])
        found[f"vision_tower.encoder.blocks.{number}.wqkv.{kind}"] = joined
    return found


def _renamed(name: str) -> str:
    for held, released in _NAMES:
        match = re.fullmatch(held, name)
        if match:
            return match.expand(released)
    raise ValueError(f"{name} is no weight of Kimi-VL; give a model of that family.")


def _in_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys whose turns lie in halves of a head, as pairs side by side."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _one_by_one(prefix: str, name: str, weight: Tensor) -> dict[str, Tensor]:
    """The maps of all experts of a layer [E, out, in], each by its own name."""
    parts: dict[str, Tensor] = {}
    for number, expert in enumerate(weight):
        if name == "down_proj":
            parts[f"{prefix}.{number}.down_proj.weight"] = expert.clone()
        else:
            gate, up = expert.chunk(2)
            parts[f"{prefix}.{number}.gate_proj.weight"] = gate.clone()
            parts[f"{prefix}.{number}.up_proj.weight"] = up.clone()
    return parts
