"""Attention with soft caps, as Gemma 2 attends: no score is above the cap, nor below its negative (arXiv 2408.00118,
section 2).

    weights = softmax(c tanh(s q k / c) + mask)

The fused kernels know of no cap, so scores are written out: a stretch of queries at a time, and in learning each
stretch again in the backward pass, so that no more than one stretch's scores are held.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import repeat_kv

_MOST_SCORES = 2**26
"""Scores that are held at once, 256 MiB in float32; those of one query are held in any case."""


def capped(values: Tensor, cap: float) -> Tensor:
    """c tanh(values / c), which is near `values` where these are small."""
    return (values / cap).tanh() * cap


def attend_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """[B, L, H * n, d] of query [B, H * n, L, d], key and value [B, H, L, d], and a mask [B, 1, L, L] that is added."""
    n = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, n), repeat_kv(value, n)
    each = max(1, _MOST_SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    parts = zip(query.split(each, dim=2), mask.split(each, dim=2), strict=True)
    if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)):
        found = [_stretch(part, key, value, own, scale, cap) for part, own in parts]
    else:
        found = [
            checkpoint(_stretch, part, key, value, own, scale, cap, use_reentrant=False, preserve_rng_state=False)
            for part, own in parts
        ]
    return torch.cat(found, dim=2).transpose(1, 2)


def _stretch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """[B, heads, l, d] of a stretch of l queries; rounded where transformers rounds."""
    scores = capped(query @ key.transpose(2, 3) * scale, cap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
