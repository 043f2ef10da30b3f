"""Seconds of a call, and what a device reaches at most: a large matrix product, and copies."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rl.planning.cards import CARDS

_SHEETS = {
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
}
"""Cards of rl/planning/cards.py by the names that drivers give them; all of one entry have the same peak."""
_PRODUCTS = 10
"""Matrix products of one timing, so that the time to ask for one does not count."""


def wait(device: str) -> None:
    """Until the card has done all that was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Seconds of one call, until the device is done with it."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def median_seconds(run: Callable[[], object], device: str, rounds: int = 5, warm: int = 1) -> float:
    """Median seconds of `rounds` calls, after `warm` that do not count."""
    for _ in range(warm):
        seconds_of(run, device)
    return statistics.median(seconds_of(run, device) for _ in range(rounds))


def product_rate(device: str) -> float:
    """Operations a second of large matrix products, reached; a multiplication and an addition are two.

    On a card of 8192 x 8192 numbers in bfloat16, on a CPU of 512 x 512 in float32.
    """
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(left, right, out=out)

    return _PRODUCTS * 2 * size**3 / median_seconds(products, device)


def copy_rate(target: Tensor, source: Tensor, device: str) -> float:
    """Bytes a second from `source` to `target`, each byte counted once."""
    return source.nbytes / median_seconds(lambda: target.copy_(source), device)


def memory_rate(device: str, size: int) -> float:
    """Bytes a second that the device's own memory reads and writes together, by a copy of `size` bytes inside it."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    return 2 * copy_rate(torch.empty_like(source), source, device)


def sheet_peak(card: str) -> float | None:
    """Dense bfloat16 operations a second by the card's data sheet; None for a card that is not known here.

    card: its name by the driver, such as "NVIDIA H200".
    """
    return CARDS[_SHEETS[card]].flops if card in _SHEETS else None


def peak_memory() -> int:
    """Most bytes that tensors took on the card since `forget_peak`."""
    return torch.cuda.max_memory_allocated()


def forget_peak(device: str) -> None:
    """Begin anew with `peak_memory`, and give back what is kept for later."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gb(size: float | None) -> str:
    """Bytes in GB (10^9) for people; a dash for None."""
    return "-" if size is None else f"{size / 1e9:.2f}"
