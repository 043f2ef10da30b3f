"""Attention of a vision tower in few calls: stretches of equal length go together.

Patches of all images lie in one row, and a patch attends to its own stretch of it alone: an image, or in most blocks of
Qwen2.5-VL a window of 112 x 112 px, of which a photo of 3000x2000 has 486. Under `sdpa` transformers makes one call a
stretch and block, 13,612 for that photo; as many small matrices in one call give the same numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "polytrace_flash_stretches"
"""What transformers calls this attention. Only to one with "flash" in its name it hands all stretches at once."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query, key and value [1, H, L, d] to [1, L, H, d].

    cu_seq_lens_q: [stretches + 1] where each begins and the last one ends, 0 to L.
    """
    settings = {"scale": others.get("scaling"), "dropout_p": others.get("dropout", 0.0)}
    lengths = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    starts = cu_seq_lens_q[:-1].tolist()
    by_length: dict[int, list[int]] = {}
    for length, start in zip(lengths, starts, strict=True):
        if length:
            by_length.setdefault(length, []).append(start)
    if len(by_length) == 1:
        return _together([query, key, value], next(iter(by_length)), settings).unsqueeze(0), None
    places = [
        (torch.tensor(begun)[:, None] + torch.arange(length)).flatten().to(query.device)
        for length, begun in by_length.items()
    ]
    attended = [
        _together([part.index_select(2, place) for part in (query, key, value)], length, settings)
        for place, length in zip(places, by_length, strict=True)
    ]
    back = torch.argsort(torch.cat(places))
    return torch.cat(attended).index_select(0, back).unsqueeze(0), None


def _together(parts: Sequence[Tensor], length: int, settings: dict[str, Any]) -> Tensor:
    """[N, H, d] of stretches of one length that lie one after the other in query, key and value [1, H, N, d]."""
    apart = [part[0].unflatten(1, (-1, length)).transpose(0, 1) for part in parts]
    attended = scaled_dot_product_attention(*apart, **settings)
    return attended.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, attend)
