"""Two steps of the demo's config with a learner rank and a rollout worker that share the card."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.bench.gpu.part import Measured, Site
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.metrics import TIMINGS_FILE_NAME, read_curves
from rl.train import train
from rollout import cluster

_SHARED_CARD = ("pool.colocate=true", "learner.gpus_per_rank=0.5", "pool.gpus_per_worker=0.5")
_SHORT = ("steps=2", "pool.workers=1", "evaluation.every=100", "evaluation.num_scenes=32")
_SMALL = ("pool.colocate=true", "groups_per_step=4", "groups_per_unit=2", "learner.micro_groups=2")
BAR = 1e-4
"""Largest mean difference of a token's log-probability between sampler and learner, both in float32 on one device."""
_DIFFERENCE = "learner/sampler_logprob_difference"


def overrides_of(site: Site) -> list[str]:
    """Settings of the run beside those of configs/demo.yaml."""
    folder = site.folder / "run"
    return [f"run={folder}", *_SHORT, *(_SHARED_CARD if site.on_card else (*_SMALL, "evaluation.num_scenes=4"))]


def measure(site: Site) -> Measured:
    """Train, and read what the run wrote."""
    config = load_settings(RunConfig, Path("tiny"), overrides_of(site))
    try:
        folder = train(config, resume=False, console=Console(width=120))
    finally:
        cluster.stop()
    return read(folder)


def read(folder: Path) -> Measured:
    """What the run in a folder says of its steps."""
    curves = read_curves(folder)
    lines = (folder / TIMINGS_FILE_NAME).read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line) for line in lines]
    numbers: dict[str, Any] = {
        "steps": len(seconds),
        "seconds": seconds,
        "sampler_logprob_difference": curves[_DIFFERENCE][1],
        "sampler_logprob_difference_max": curves[f"{_DIFFERENCE}_max"][1],
        "bar": BAR,
    }
    rows = []
    for k, step in enumerate(seconds):
        parts = ", ".join(
            f"{name.removeprefix('seconds/')} {value:.2f}" for name, value in step.items() if name != "step"
        )
        mean, most = (curves[name][1][k] for name in (_DIFFERENCE, f"{_DIFFERENCE}_max"))
        rows.append((f"{k}", parts, f"{mean:.2e}", f"{most:.2e}"))
    worst = max(numbers["sampler_logprob_difference"])
    findings = (
        () if worst <= BAR else (f"sampler and learner differ by {worst:.2e} a token; rounding explains {BAR:g}",)
    )
    head = ("step", "seconds", "mean difference to the sampler", "largest")
    notes = ("the tiny model, float32; learner and worker take turns on one device (pool.colocate)",)
    return Measured(head, tuple(rows), numbers, findings, notes)
