"""Where a learner's pass goes: kernels of attention by kind, the vision tower's share, waits of the host, the largest
kernels."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from rl.bench.gpu import subject
from rl.bench.gpu.clock import median_seconds
from rl.bench.gpu.learner import Pass
from rl.bench.gpu.part import Measured, Site

_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
    "aten::_scaled_dot_product_attention_math": "math",
    "torch_attn::_varlen_attn": "varlen",
}
"""Kinds of attention by the operators that torch chooses among."""
_KERNELS = (
    ("cudnn", re.compile(r"cudnn.*sdpa|sdpa.*(fprop|bprop)", re.IGNORECASE)),
    (
        "efficient",
        re.compile(r"fmha_cutlass|mem_?eff_?attention|Attention(Backward)?Kernel", re.IGNORECASE),
    ),
    ("flash", re.compile(r"flash", re.IGNORECASE)),
)
"""Kinds by the names of kernels, the first that fits; those of `math` are ordinary products."""
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_READS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operators that need a number of the card on the host."""
_LARGEST = 10
_LONGEST_NAME = 70
_WAIT_WARNING = "synchronizing CUDA operation"


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel in a pass."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One pass under torch's profiler."""

    kernels: tuple[Kernel, ...]
    """On the card; on a CPU the operators themselves."""
    operators: dict[str, int]
    """Calls of each operator and runtime function, by name."""


def kind_of_kernel(name: str) -> str | None:
    """Kind of attention that a kernel belongs to, by its name; None for all others."""
    return next((kind for kind, pattern in _KERNELS if pattern.search(name)), None)


def measure(site: Site) -> Measured:
    """One pass under the profiler, and the tower alone beside it."""
    policy = subject.random_policy(site).train()
    run = Pass(policy, subject.random_rows(site, policy))
    recomputes = not fits(run)
    if recomputes:
        policy.checkpoint_gradients()
    tower = _TowerPass(policy.vision_tower, run)
    seconds = median_seconds(run, site.device, rounds=3)
    tower_seconds = median_seconds(tower, site.device, rounds=3)
    found = profiled(run, site)
    places = waiting_places(run) if site.on_card else Counter[str]()
    numbers = _numbers(found) | {
        "recomputes": recomputes,
        "pass_seconds": seconds,
        "tower_seconds": tower_seconds,
        "tower_share": tower_seconds / seconds,
        "waiting_places": dict(places.most_common(_LARGEST)),
    }
    notes = (
        "Attention: calls of each kind by operator, forward and backward, and seconds on the card by the names of "
        "kernels. The tower's share: its pass alone over the whole pass, neither under the profiler.",
        *(["with gradient checkpointing: without it the pass does not fit the card's memory"] if recomputes else []),
        *(f"the host waits {num} times a pass at {place}" for place, num in places.most_common(_LARGEST)),
    )
    return Measured(("what", "found"), tuple(_rows(numbers)), numbers, tuple(findings(numbers, site)), notes)


def fits(run: Pass) -> bool:
    """Whether a pass fits the card's memory."""
    try:
        run()
    except torch.OutOfMemoryError:
        return False
    return True


def findings(numbers: dict[str, Any], site: Site) -> list[str]:
    """Attention by torch's plain products on a card, where fused kernels exist."""
    calls = numbers["attention_calls"].get("math", 0)
    if not site.on_card or not calls:
        return []
    return [f"{calls} calls of attention took torch's math kernel, which holds all scores; look at masks and dtypes"]


class _TowerPass:
    """Forward and backward through the vision tower alone, on what a whole pass gave it."""

    def __init__(self, tower: nn.Module, run: Pass) -> None:
        self._tower = tower
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hook = tower.register_forward_pre_hook(self._keep, with_kwargs=True)
        with torch.no_grad():
            run.policy(run.rows)
        hook.remove()

    def _keep(self, tower: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._inputs.append((given, dict(named)))

    def __call__(self) -> None:
        self._tower.zero_grad(set_to_none=True)
        for given, named in self._inputs:
            found = self._tower(*given, **named)
            outputs = [found.pooler_output, *found.deepstack_features]
            torch.stack([output.float().mean() for output in outputs]).sum().backward()


def profiled(run: Pass, site: Site) -> Profile:
    """Kernels and operators of one pass."""
    wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if site.on_card else [])]
    with profile(activities=wanted) as recorded:
        run()
        if site.on_card:
            torch.cuda.synchronize()
    events = recorded.key_averages()
    operators = {event.key: event.count for event in events if event.device_type == DeviceType.CPU}
    if site.on_card:
        kernels = [
            Kernel(event.key, event.count, event.self_device_time_total / 1e6)
            for event in events
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        ]
    else:
        kernels = [Kernel(event.key, event.count, event.self_cpu_time_total / 1e6) for event in events]
    return Profile(tuple(sorted(kernels, key=lambda kernel: -kernel.seconds)), operators)


def waiting_places(run: Pass) -> Counter[str]:
    """Lines of Python at which the host waits for the card in one pass, and how often; torch does not see all."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [each for each in told if _WAIT_WARNING in str(each.message)]
    return Counter(f"{_from_package(each.filename)}:{each.lineno}" for each in waits)


def _from_package(file: str) -> str:
    """The end of a path, enough to find the file by."""
    return "/".join(file.split("/")[-3:])


def _numbers(found: Profile) -> dict[str, Any]:
    whole = sum(kernel.seconds for kernel in found.kernels) or 1.0
    calls, seconds = Counter[str](), dict[str, float]()
    for operator, kind in _OPERATORS.items():
        for name in (operator, f"{operator}_backward"):
            calls[kind] += found.operators.get(name, 0)
    for kernel in found.kernels:
        if its_kind := kind_of_kernel(kernel.name):
            seconds[its_kind] = seconds.get(its_kind, 0.0) + kernel.seconds
    return {
        "kernel_seconds": whole,
        "kernel_calls": sum(kernel.calls for kernel in found.kernels),
        "attention_calls": {kind: num for kind, num in calls.items() if num},
        "attention_seconds": seconds,
        "attention_names": [kernel.name for kernel in found.kernels if kind_of_kernel(kernel.name)],
        "waits": {name: found.operators.get(name, 0) for name in (*_WAITS, *_READS)},
        "largest": [
            {"name": kernel.name, "calls": kernel.calls, "seconds": kernel.seconds, "share": kernel.seconds / whole}
            for kernel in found.kernels[:_LARGEST]
        ],
    }


def _rows(numbers: dict[str, Any]) -> Sequence[tuple[str, str]]:
    whole = numbers["kernel_seconds"]
    rows = [
        ("pass, ms", f"{1e3 * numbers['pass_seconds']:.1f}"),
        ("kernels together, ms", f"{1e3 * whole:.1f} in {numbers['kernel_calls']:,} calls"),
        ("vision tower's share of the pass", f"{numbers['tower_share']:.1%}"),
    ]
    rows += [(f"attention, {kind}", f"{num} calls") for kind, num in numbers["attention_calls"].items()]
    rows += [
        (f"attention kernels, {kind}", f"{1e3 * seconds:.1f} ms, {seconds / whole:.1%}")
        for kind, seconds in numbers["attention_seconds"].items()
    ]
    rows += [(f"{name}", f"{num} calls") for name, num in numbers["waits"].items() if num]
    rows += [
        (f"{_short(each['name'])}", f"{1e3 * each['seconds']:.1f} ms, {each['share']:.1%}, {each['calls']} calls")
        for each in numbers["largest"]
    ]
    return rows


def _short(name: str) -> str:
    """A kernel's name without line feeds, at most so long."""
    plain = " ".join(name.split())
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 3]}..."
