"""A Moondream of two layers and 32 px for tests, and its forward pass written again, slowly, from the formulas."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.codecs.svg_path import Codec
from policies.families.moondream import Policy
from policies.moondream.tiny_model import write_untrained
from policies.settings import TinySizes

WORDS = ("the", "upper", "left", "banana", "dog", "find")


def codec(bins: int = 63) -> Codec:
    """Boxes by centre in so many steps, paths on a grid of 32 without curves."""
    return Codec(boxes="centre", box_bins=bins, path_bins=32, max_vertices=16, curves=False)


def write_toy(folder: Path, bins: int = 63, words: tuple[str, ...] = ()) -> None:
    """A folder with random weights, all of them of some size: also those that a new model begins with at 0."""
    sizes = TinySizes(image_size=32, text_width=32, text_layers=2, text_heads=2, vision_width=16, vision_layers=2)
    sizes = TinySizes(**(vars(sizes) | {"vision_heads": 2}))
    write_untrained(folder, [*(words or codec(bins).words), *WORDS], sizes, seed=1, box_bins=bins)
    policy = Policy(folder, codec(bins))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name.endswith((".bias", "tau.wq", "tau.wv", "tau.alpha")):
                parameter.normal_(std=0.3)
    policy.save(folder)


def toy(folder: Path, bins: int = 63) -> Policy:
    """The policy of a folder that `write_toy` wrote."""
    return Policy(folder, codec(bins), question="find {phrase}")


def slow_states(policy: Policy, tokens: np.ndarray, bins: np.ndarray, image: Tensor) -> Tensor:
    """[L, dim] before the final norm, of one row of tokens [L] and bins [L, 3] by loops; image: [n, dim] its tokens,
    which stand behind the first."""
    model, text = policy.model.model, policy.model.config.text
    held = model.region
    inputs = []
    for place, (token, own) in enumerate(zip(tokens.tolist(), bins.tolist(), strict=True)):
        if 1 <= place <= len(image):
            inputs.append(image[place - 1])
        elif own[0] >= 0:
            angles = 2 * math.pi * own[0] / (held.num_bins[0] - 1) * held.coord_features[0]
            inputs.append(held.coord_encoder(torch.cat([angles.cos(), angles.sin()])))
        elif own[1] >= 0:
            sizes = [2 ** (10 * number / (held.num_bins[1] - 1) - 10) for number in own[1:]]
            angles = 2 * math.pi * (sizes[0] * held.size_features[0] + sizes[1] * held.size_features[1])
            inputs.append(held.size_encoder(torch.cat([angles.cos(), angles.sin()])))
        else:
            inputs.append(model.text.wte[token])
    states = torch.stack(inputs)
    for block in model.text.blocks:
        normed = block.ln(states)
        states = states + _slow_attention(block.attn, normed, len(image), text) + _slow_feed(block.mlp, normed)
    return states


def _slow_attention(attention: torch.nn.Module, normed: Tensor, image: int, text: object) -> Tensor:
    length, (heads, width) = len(normed), (attention.heads, attention.head_dim)
    qkv = attention.qkv(normed)
    told = torch.nn.functional.gelu(qkv, approximate="tanh")
    rows = []
    for head in range(heads):
        place = torch.tensor([0.5 + 1 / (1 + (k + 1) ** -float(attention.tau.alpha[head])) for k in range(length)])
        of_queries = (told @ attention.tau.wq[head]).tanh() + place
        of_values = (told @ attention.tau.wv[head]).tanh() + place
        parts = [qkv[:, k * heads * width + head * width :][:, :width] for k in range(3)]
        queries = torch.stack([_turned(q, k, text.rope_theta) for k, q in enumerate(parts[0] * of_queries[:, None])])
        keys = torch.stack([_turned(key, k, text.rope_theta) for k, key in enumerate(parts[1])])
        scores = queries @ keys.T / math.sqrt(width)
        for query in range(length):
            for key in range(length):
                if key > query and not (query <= image and key <= image):
                    scores[query, key] = -torch.inf
        rows.append(scores.softmax(-1) @ (parts[2] * of_values[:, None]))
    return attention.proj(torch.cat(rows, dim=1))


def _turned(vector: Tensor, position: int, theta: float) -> Tensor:
    """The first half of a head's vector, turned in pairs (k, k + a quarter)."""
    turned, quarter = vector.clone(), len(vector) // 4
    for k in range(quarter):
        angle = position * theta ** (-2 * k / (2 * quarter))
        a, b = vector[k], vector[k + quarter]
        turned[k], turned[k + quarter] = (
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        )
    return turned


def _slow_feed(feed: torch.nn.Module, normed: Tensor) -> Tensor:
    if not hasattr(feed, "router"):
        return feed(normed)
    rows = []
    for token in normed:
        logits = feed.router(token)
        best = sorted(range(len(logits)), key=lambda k: -float(logits[k]))[:2]
        weights = torch.softmax(logits[best], 0)
        row = torch.zeros_like(token)
        for weight, expert in zip(weights, best, strict=True):
            gate, up = (feed.fc1.weight[expert] @ token).chunk(2)
            row = row + weight * (feed.fc2.weight[expert] @ (torch.nn.functional.gelu(gate) * (up + 1)))
        rows.append(row)
    return torch.stack(rows)
