"""Attention within stretches of a row, by torch's flash kernel for GPUs: no padding, no masks, no key repeated.

A row of tokens is cut into stretches, and each stretch of queries attends to a stretch of keys. torch's own function
(torch.nn.attention.varlen, since 2.13 with log-sum-exps and fewer key heads than heads) takes half precision only. It
gives log-sum-exps without a gradient, so what is merged by these has to call its backward kernel itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

HALF = (torch.bfloat16, torch.float16)
_WIDEST = 256
"""Largest head width of the kernel; it must be a multiple of 8."""
_SINCE = "2.13"
_OLDEST_GPU = (8, 0)
"""Compute capability from which the kernel runs (Ampere)."""


def fits(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel takes heads of this width and dtype on this device."""
    if device.type != "cuda" or TorchVersion(torch.__version__) < _SINCE:
        return False
    fitting = dtype in HALF and width % 8 == 0 and width <= _WIDEST
    return fitting and torch.cuda.get_device_capability(device) >= _OLDEST_GPU


@dataclass(frozen=True)
class Pairs:
    """Stretches of queries, each with its stretch of keys."""

    query_bounds: Tensor
    """[stretches + 1] int32: where each begins and the last one ends."""
    key_bounds: Tensor
    """[stretches + 1] int32."""
    most_queries: int
    """Tokens of the longest stretch of queries."""
    most_keys: int
    causal: bool = False
    """Whether a query sees the keys up to its own place alone; both stretches are then of one length."""

    @classmethod
    def of_itself(cls, lengths: list[int], device: torch.device, causal: bool = False) -> "Pairs":
        """Stretches of these lengths, each attending to itself."""
        bounds = bounds_of(lengths, device)
        return cls(bounds, bounds, max(lengths), max(lengths), causal)


def bounds_of(lengths: list[int], device: torch.device) -> Tensor:
    """[stretches + 1] int32 on a device, by one copy."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return ends.to(device, torch.int32)


def attended(query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None) -> Tensor:
    """[N, H, d] of query [N, H, d], key and value [M, H or fewer, d], with gradients."""
    from torch.nn.attention.varlen import varlen_attn

    found: Any = varlen_attn(
        query,
        key,
        value,
        pairs.query_bounds,
        pairs.key_bounds,
        pairs.most_queries,
        pairs.most_keys,
        scale=scale,
        window_size=(-1, 0) if pairs.causal else (-1, -1),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    attended: Tensor = found
    return attended


def with_log_sums(
    query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None
) -> tuple[Tensor, Tensor]:
    """What `attended` gives, and [H, N] float32 log-sum-exps of each query's scaled scores; without gradients."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    with torch.no_grad():
        found, sums = varlen_attn(
            query,
            key,
            value,
            pairs.query_bounds,
            pairs.key_bounds,
            pairs.most_queries,
            pairs.most_keys,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            window_size=(-1, 0) if pairs.causal else (-1, -1),
            enable_gqa=key.shape[1] != query.shape[1],
        )
    assert sums.shape == (query.shape[1], len(query)), "as torch 2.13 gives them"
    return found, sums


@dataclass(frozen=True)
class Attended:
    """A result that a part of the keys contributed to."""

    found: Tensor
    """[N, H, d] over all keys."""
    log_sums: Tensor
    """[H, N] float32 over all keys."""
    slopes: Tensor
    """[N, H, d]: the gradient of `found`."""


def slopes_of_part(
    query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None, whole: Attended
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the part of `whole` that these keys have.

    With the log-sum over all keys, exp(score - log_sum) is a key's weight among all of them, so that the kernel of one
    softmax gives the exact gradients of each part.
    """
    import torch.nn.attention.varlen  # declares the operator

    unused = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, which there is none of
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.torch_attn._varlen_attn_backward(
        whole.slopes,
        query,
        key,
        value,
        whole.found,
        whole.log_sums,
        pairs.query_bounds,
        pairs.key_bounds,
        pairs.most_queries,
        pairs.most_keys,
        pairs.causal,
        unused,
        scale,
        [-1, 0] if pairs.causal else [-1, -1],
    )
    return found
