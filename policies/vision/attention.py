"""Attention of a vision tower in few calls: stretches of equal length go together.

Patches of all images lie in one row, and a patch attends to its own stretch of it alone: an image, or in most blocks of
Qwen2.5-VL a window of 112 x 112 px, of which a photo of 3000x2000 has 486. Under `sdpa` transformers makes one call a
stretch and block, 13,612 for that photo; as many small matrices in one call give the same numbers. On a GPU in half
precision one call takes all of them (policies/sharing/varlen.py).
"""

from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from policies.sharing import varlen
from policies.sharing.varlen import Pairs

NAME = "polytrace_flash_stretches"
"""What transformers calls this attention. Only to one with "flash" in its name it hands all stretches at once."""


class Stretches:
    """Where the stretches of a row lie, looked up once: reading it from a GPU waits for all that it still does."""

    def __init__(self, bounds: Tensor) -> None:
        """bounds: [stretches + 1] where each begins and the last one ends, 0 to L."""
        self.bounds = bounds
        self._ends = bounds.tolist()

    @cached_property
    def by_length(self) -> dict[int, list[int]]:
        """Beginnings of the stretches of each length, empty ones left out."""
        found: dict[int, list[int]] = {}
        for start, end in zip(self._ends, self._ends[1:], strict=False):
            if end > start:
                found.setdefault(end - start, []).append(start)
        return found

    @cached_property
    def places(self) -> list[Tensor]:
        """Where the tokens of each length are, stretch by stretch; on the row's device."""
        return [
            (torch.tensor(begun)[:, None] + torch.arange(length)).flatten().to(self.bounds.device)
            for length, begun in self.by_length.items()
        ]

    @cached_property
    def back(self) -> Tensor:
        """Where each token of the row is among `places`."""
        return torch.argsort(torch.cat(self.places))

    @cached_property
    def pairs(self) -> Pairs:
        """The stretches as the kernel for GPUs takes them."""
        bounds, longest = self.bounds.to(torch.int32), max(self.by_length)
        return Pairs(bounds, bounds, longest, longest)


_looked_up: deque[Stretches] = deque(maxlen=4)
"""Stretches of the last passes. All blocks of a tower are handed the same one or two tensors, which are held here, so
that no other tensor can be taken for one of them."""


def stretches_of(bounds: Tensor) -> Stretches:
    """The stretches within `bounds`, from before where the very same tensor was asked about just now."""
    for held in _looked_up:
        if held.bounds is bounds:
            return held
    _looked_up.append(Stretches(bounds))
    return _looked_up[-1]


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

    cu_seq_lens_q: [stretches + 1] where each begins and the last one ends, 0 to L. On a GPU in half precision all
    stretches go in one call of torch's flash kernel; elsewhere those of one length do.
    """
    stretches, scale, dropped = stretches_of(cu_seq_lens_q), others.get("scaling"), others.get("dropout", 0.0)
    parts = (query, key, value)
    if not dropped and varlen.fits(query.device, query.dtype, query.shape[-1]):
        by_token = [part[0].transpose(0, 1) for part in parts]
        found = varlen.attended(by_token[0], by_token[1], by_token[2], stretches.pairs, scale)
        return found.unsqueeze(0), None
    settings = {"scale": scale, "dropout_p": dropped}
    if len(stretches.by_length) == 1:
        return _together(parts, next(iter(stretches.by_length)), settings).unsqueeze(0), None
    attended = [
        _together([part.index_select(2, place) for part in parts], length, settings)
        for place, length in zip(stretches.places, stretches.by_length, strict=True)
    ]
    return torch.cat(attended).index_select(0, stretches.back).unsqueeze(0), None


def _together(parts: Sequence[Tensor], length: int, settings: dict[str, Any]) -> Tensor:
    """[N, H, d] of stretches of one length that lie one after the other in query, key and value [1, H, N, d]."""
    apart = [part[0].unflatten(1, (-1, length)).transpose(0, 1) for part in parts]
    attended = scaled_dot_product_attention(*apart, **settings)
    return attended.transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, attend)
