"""`polytrace bench gpu`: what one card does with us, in eight minutes: whether it agrees with the CPU, how fast it
learns, samples and takes weights, and by which kernels."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from rl.bench.gpu import agreement, card, kernels, learner, push, run, sampling, vision, vllm
from rl.bench.gpu.page import Machine, as_json, as_markdown, this_machine
from rl.bench.gpu.part import Outcome, Part, Site, run_part
from rl.pages.json_text import json_text
from rollout import disk

JSON_FILE, PAGE_FILE, LOGS = "gpu.json", "gpu.md", "logs"
PARTS = (
    Part("card", "The card", 30, card.measure),
    Part("agreement", "Agreement with the CPU", 45, agreement.measure),
    Part("learner", "A pass of the learner", 60, learner.measure),
    Part("kernels", "Kernels of a pass", 45, kernels.measure),
    Part("vision", "The vision tower of Qwen2.5-VL", 30, vision.measure),
    Part("sampling", "Sampling by our own engine", 65, sampling.measure),
    Part("push", "A push of weights", 50, push.measure),
    Part("run", "Two steps on a shared card", 75, run.measure),
    Part("vllm", "vLLM", 70, vllm.measure),
)


def chosen(names: str | None) -> list[Part]:
    """The parts of a list such as "card,vision", in the bench's order; None for all. Raises ValueError for others."""
    if names is None:
        return list(PARTS)
    asked = [name.strip() for name in names.split(",")]
    known = [part.name for part in PARTS]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"--parts names {unknown[0]!r}, which is no part; give some of {','.join(known)}.")
    return [part for part in PARTS if part.name in asked]


def refuse_without_card(device: str) -> None:
    """Raise ValueError where `device` is cuda and torch finds no card, or is no device to measure on."""
    if device not in ("cuda", "cpu"):
        raise ValueError(f"--device is {device!r}; give cuda.")
    if device == "cpu" or torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise ValueError(
            f"polytrace bench gpu needs a GPU, and torch {torch.__version__} is a build without CUDA; on a machine "
            "with a card install torch without constraints.txt (README, On GPUs), and call it there."
        )
    raise ValueError(
        f"polytrace bench gpu needs a GPU, and torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds "
        "none; see what nvidia-smi says of card and driver, and whether CUDA_VISIBLE_DEVICES hides it."
    )


def bench(parts: Sequence[Part], device: str, out: Path, console: Console) -> tuple[Machine, list[Outcome]]:
    """Measure parts one after the other, each in a process of its own, and write what was found into `out`.

    gpu.json and gpu.md are written anew after each part; logs/PART.txt has what it printed. device: cuda, or cpu for a
    trial at small sizes. console: for a line before and after each part. Raises ValueError where `out` cannot be
    written.
    """
    disk.refuse_unwritable(out / JSON_FILE)
    disk.refuse_unwritable(out / PAGE_FILE)
    logs = out / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    machine, outcomes = this_machine(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-", ignore_cleanup_errors=True) as folder:
        site = Site(device, Path(folder))
        for part in parts:
            console.print(f"{part.name}: at most {part.limit_seconds:g} s", markup=False, highlight=False)
            log = logs / f"{part.name}.txt"
            log.unlink(missing_ok=True)
            outcome = run_part(part, site, log)
            outcomes.append(outcome)
            write(out, machine, outcomes)
            console.print(line_of(outcome), markup=False, highlight=False, soft_wrap=True)
    return machine, outcomes


def line_of(outcome: Outcome) -> str:
    """How a part went, in one line."""
    findings = outcome.measured.findings if outcome.measured else ()
    told = outcome.reason or "; ".join(findings)
    return f"{outcome.part}: {outcome.status} after {outcome.seconds:.1f} s" + (f": {told}" if told else "")


def write(out: Path, machine: Machine, outcomes: Sequence[Outcome]) -> None:
    """Write both files of what is known by now."""
    disk.replace_text(out / JSON_FILE, json_text(as_json(machine, outcomes), indent=2) + "\n")
    disk.replace_text(out / PAGE_FILE, as_markdown(machine, outcomes))
