"""Bytes that a pass keeps for its backward pass, and takes at its peak, counted on layers of the true widths.

A model of the released widths, with few layers, goes through the policy's own forward pass; what autograd saves is
counted by distinct storage, parameters left out. The difference between a model with one layer more and one without is
what a layer keeps, masks and positions that all layers share left out.

    python tests/saved_tensors.py qwen2_5_vl_7b
"""

import json
import math
import struct
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asking import ask
from released_sizes import RELEASED, config_of, write_config_only
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText

from envs.codecs.path_tokens import Codec
from policies.families.base import PromptRows
from policies.families.vision_language import Policy


@dataclass(frozen=True)
class Kept:
    """Bytes kept for the backward pass, and what for."""

    text_token: float
    """Bytes of a token in a text layer."""
    vision_patch: float
    """Bytes of a patch in a vision block."""
    tokens: int
    """Tokens of the pass."""
    patches: int
    """Patches of the pass."""


@dataclass(frozen=True)
class Shape:
    """What goes through."""

    side: int = 560
    """Side of the image, pixels."""
    answers: int = 8
    tokens: int = 64
    """Tokens of each answer."""


def small_policy(folder: Path, name: str, layers: int, blocks: int) -> Policy:
    """A policy at the widths of a released model, its weights zeros, in bfloat16."""
    write_config_only(folder, name, layers=layers, blocks=blocks, vocabulary=512)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config_of(name, layers, blocks, 512))
    write_zeros(folder / "model.safetensors", {name: tuple(each.shape) for name, each in model.named_parameters()})
    return Policy(folder, Codec(), dtype="bfloat16").train()


def write_zeros(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros in bfloat16, of which the disk holds the header alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def rows_of(policy: Policy, shape: Shape) -> PromptRows:
    """One group of equal answers about one square image."""
    image = np.zeros((shape.side, shape.side, 3), np.uint8)
    words = [token for token in range(4, 400) if token not in policy.processor.unsampled_tokens]
    answer = np.array([words[k % len(words)] for k in range(shape.tokens)], np.int64)
    return policy.rows([ask(image, "")], [[answer] * shape.answers])


def saved_bytes(policy: Policy, rows: PromptRows) -> int:
    """Bytes of the distinct storages that a forward pass saves, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    held: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # or a storage that is freed may give its address to another

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(rows).sum()
    return sum(held.values())


def measured(name: str, shape: Shape = Shape(), checkpointing: bool = False) -> Kept:
    """What a text layer and a vision block keep for the backward pass, by what one more of them keeps more."""
    with tempfile.TemporaryDirectory() as folder:
        policy = small_policy(Path(folder), name, layers=2, blocks=2)
    if checkpointing:
        policy.checkpoint_gradients()
    rows = rows_of(policy, shape)
    text, tower = policy.model.model.language_model, policy.vision_tower
    both = saved_bytes(policy, rows)
    text.layers = text.layers[:1]
    fewer_layers = saved_bytes(policy, rows)
    tower.blocks = tower.blocks[:1]
    fewer_blocks = saved_bytes(policy, rows)
    prompt, patches = rows.prompt_tokens.shape[1], len(rows.pixel_values)
    tokens = prompt + shape.answers * shape.tokens
    return Kept((both - fewer_layers) / tokens, (fewer_layers - fewer_blocks) / patches, tokens, patches)


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations have made and that are still there, and their peak."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        held = [each for one in policy.parameters() for each in (one, one.grad) if each is not None]
        self._own = {each.untyped_storage().data_ptr() for each in held}
        self._sizes: dict[Any, int] = {}
        self.live = self.peak = 0

    def _gone(self, reference: Any) -> None:
        self.live -= self._sizes.pop(reference)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self._own:
                reference = weakref.ref(each.untyped_storage(), self._gone)
                if reference not in self._sizes:
                    self._sizes[reference] = each.untyped_storage().nbytes()
                    self.live += self._sizes[reference]
                    self.peak = max(self.peak, self.live)
        return out


def peak_bytes(name: str, checkpointing: bool, frozen: bool, shape: Shape = Shape()) -> tuple[int, PromptRows]:
    """Most bytes at once while a pass with two layers and two blocks goes back, parameters and gradients left out."""
    with tempfile.TemporaryDirectory() as folder:
        policy = small_policy(Path(folder), name, layers=2, blocks=2)
    if checkpointing:
        policy.checkpoint_gradients()
    policy.vision_tower.requires_grad_(not frozen)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    rows = rows_of(policy, shape)
    with LiveBytes(policy) as live:
        policy(rows).sum().backward()
    return live.peak, rows


if __name__ == "__main__":
    for each in sys.argv[1:] or RELEASED:
        print(each, measured(each), measured(each, checkpointing=True))
