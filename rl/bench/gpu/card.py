"""The card itself: memory, versions, and the rates that all other parts are to be read against."""

import torch

from rl.bench.gpu.clock import copy_rate, gb, memory_rate, product_rate, sheet_peak
from rl.bench.gpu.part import Measured, Site

_COPIED, _COPIED_SMALL = 2**30, 2**24
"""Bytes of a copy, on a card and elsewhere."""


def measure(site: Site) -> Measured:
    """Properties of the card, operations of a large matrix product, bytes of copies."""
    products = product_rate(site.device)
    size = _COPIED if site.on_card else _COPIED_SMALL
    rates = {"memory, read and written": memory_rate(site.device, size)}
    if site.on_card:
        rates |= _host_rates(size)
    facts = _card() if site.on_card else {}
    peak = sheet_peak(str(facts.get("name", "")))
    rows = [(name.replace("_", " "), f"{value}") for name, value in facts.items()]
    share = f", {products / peak:.0%} of the data sheet's" if peak else ""
    rows.append(("matrix products, TFLOP a second", f"{products / 1e12:.4g}{share}"))
    rows += [(f"{what}, GB a second", gb(rate)) for what, rate in rates.items()]
    numbers = facts | {
        "product_flops_per_second": products,
        "sheet_flops_per_second": peak,
        "bytes_per_second": rates,
    }
    notes = ("`polytrace plan` reckons with the data sheet's rates and a share of them; these are what was reached.",)
    return Measured(("what", "value"), tuple(rows), numbers, notes=notes if site.on_card else ())


def _host_rates(size: int) -> dict[str, float]:
    """Bytes a second between card and host."""
    there = torch.zeros(size, dtype=torch.uint8, device="cuda")
    pinned, pageable = torch.zeros(size, dtype=torch.uint8, pin_memory=True), torch.zeros(size, dtype=torch.uint8)
    return {
        "card to pinned host memory": copy_rate(pinned, there, "cuda"),
        "card to pageable host memory": copy_rate(pageable, there, "cuda"),
        "pinned host memory to card": copy_rate(there, pinned, "cuda"),
        "pageable host memory to card": copy_rate(there, pageable, "cuda"),
    }


def _card() -> dict[str, str | int]:
    """What torch knows of the card."""
    found = torch.cuda.get_device_properties(0)
    free, whole = torch.cuda.mem_get_info(0)
    return {
        "name": found.name,
        "memory_bytes": whole,
        "free_bytes_at_the_start": free,
        "multiprocessors": found.multi_processor_count,
        "compute_capability": f"{found.major}.{found.minor}",
        "second_level_cache_bytes": found.L2_cache_size,
        "cards_seen": torch.cuda.device_count(),
        "cudnn": f"{torch.backends.cudnn.version()}",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none",
    }
