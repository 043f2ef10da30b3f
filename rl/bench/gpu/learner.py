"""A learner's pass forward and backward: seconds, tokens, share of the card's peak, and memory."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.attention.varlen  # declares the operator that is counted below
from torch import Tensor

from policies.families.base import PromptRows
from rl.bench.gpu import subject
from rl.bench.gpu.clock import forget_peak, gb, median_seconds, peak_memory, product_rate, sheet_peak
from rl.bench.gpu.part import Measured, Site
from rl.bench.random_qwen import Policy
from rl.bench.side_by_side import flop_counter


class Pass:
    """A forward and a backward pass, as a call."""

    def __init__(self, policy: Policy, rows: PromptRows) -> None:
        self.policy, self.rows = policy, rows

    def __call__(self) -> None:
        """Leave gradients."""
        self.policy.zero_grad(set_to_none=True)
        self.policy(self.rows).mean().backward()


@dataclass(frozen=True)
class Case:
    """One way to make the pass."""

    recomputes: bool
    """Whether layers are computed again in the backward pass (learner.gradient_checkpointing)."""
    seconds: float | None
    """Median of a pass; None where it does not fit the card."""
    peak_bytes: int | None
    """Most memory of tensors, weights and gradients included; None where it was not measured."""


def measure(site: Site) -> Measured:
    """The pass with and without gradient checkpointing."""
    products = product_rate(site.device)
    policy = subject.random_policy(site).train()
    run = Pass(policy, subject.random_rows(site, policy))
    flops = pass_flops(run)
    cases = [timed(run, site, recomputes=False)]
    policy.checkpoint_gradients()
    cases.append(timed(run, site, recomputes=True))
    peak = sheet_peak(torch.cuda.get_device_name(0)) if site.on_card else None
    numbers = _numbers(site, run, flops) | {"product_flops_per_second": products, "sheet_flops_per_second": peak}
    numbers["cases"] = [asdict(case) | rates(case, numbers) for case in cases]
    head = ("gradient checkpointing", "seconds", "tokens a second", "MFU", "of matrix products", "peak GB")
    notes = (
        f"{subject.choice_of(site).model} model in {subject.choice_of(site).dtype}, {numbers['groups']} groups of "
        f"{numbers['answers']} answers: {numbers['tokens']:,} tokens, {numbers['patches']:,} patches, "
        f"{flops / 1e12:.4g} TFLOP a pass. MFU: those operations, none of them counted twice, over seconds and the "
        "data sheet's peak (arXiv 2204.02311, appendix B); without the optimizer.",
    )
    told = tuple(f"without gradient checkpointing the pass {_TOO_LARGE}" for case in cases[:1] if case.seconds is None)
    return Measured(head, tuple(_row(case) for case in numbers["cases"]), numbers, notes=notes + told)


_TOO_LARGE = "does not fit the card's memory"


def pass_flops(run: Pass) -> int:
    """Floating-point operations of a pass: a backward pass takes twice those of the forward pass, which are counted."""
    counter = flop_counter()
    counter.flop_registry[torch.ops.torch_attn._varlen_attn] = varlen_flops  # which torch does not count
    with torch.no_grad(), counter:
        run.policy(run.rows)
    return 3 * counter.get_total_flops()


def varlen_flops(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor | None, *_: Any, **__: Any
) -> int:
    """Operations of attention within stretches, what a mask forbids included; query: [N, H, d].

    query_bounds, key_bounds: [stretches + 1] where each begins and the last one ends; no key_bounds: the same.
    """
    queries = query_bounds.diff().long()
    keys = queries if key_bounds is None else key_bounds.diff().long()
    return 4 * query.shape[1] * query.shape[2] * int((queries * keys).sum())


def timed(run: Pass, site: Site, recomputes: bool, rounds: int = 5) -> Case:
    """Measure one way, which the policy is set to."""
    forget_peak(site.device)
    try:
        seconds = median_seconds(run, site.device, rounds, warm=2)
    except torch.OutOfMemoryError:
        run.policy.zero_grad(set_to_none=True)
        return Case(recomputes, None, None)
    peak = peak_memory() if site.on_card else None
    run.policy.zero_grad(set_to_none=True)
    return Case(recomputes, seconds, peak)


def _numbers(site: Site, run: Pass, flops: int) -> dict[str, Any]:
    work = subject.work_of(site)
    return {
        "groups": work.groups,
        "answers": work.answers,
        "tokens": subject.computed_tokens(run.rows),
        "answer_tokens": int(run.rows.scored_mask.sum()),
        "patches": int(run.rows.image_grid.prod(-1).sum()),
        "flops": flops,
    }


def rates(case: Case, numbers: dict[str, Any]) -> dict[str, float | None]:
    """Tokens a second, and shares of the data sheet's peak and of what matrix products reached."""
    if case.seconds is None:
        return {"tokens_per_second": None, "mfu": None, "share_of_products": None}
    speed, peak = numbers["flops"] / case.seconds, numbers["sheet_flops_per_second"]
    return {
        "tokens_per_second": numbers["tokens"] / case.seconds,
        "mfu": speed / peak if peak else None,
        "share_of_products": speed / numbers["product_flops_per_second"],
    }


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    way = "yes" if case["recomputes"] else "no"
    if case["seconds"] is None:
        return (way, _TOO_LARGE, "-", "-", "-", "-")
    mfu = "-" if case["mfu"] is None else f"{case['mfu']:.1%}"
    speed = f"{case['tokens_per_second']:,.0f}"
    return (way, f"{case['seconds']:.3f}", speed, mfu, f"{case['share_of_products']:.1%}", gb(case["peak_bytes"]))
