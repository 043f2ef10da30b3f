"""What the bench writes: gpu.json for programs, gpu.md for people, both with the machine that it ran on."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rl.bench.gpu.part import Measured, Outcome

_PACKAGES = ("polytrace", "torch", "transformers", "deepspeed", "ray", "vllm", "triton", "numpy", "numba")
_ASKED = "name,driver_version,memory.total,power.limit"


@dataclass(frozen=True)
class Machine:
    """Where and when."""

    date: str
    """Beginning of the bench, UTC, ISO 8601."""
    card: str | None
    """Name of the first card that is visible, as the driver tells it; None without one."""
    driver: str | None
    """Release of its driver."""
    memory: str | None
    """Memory of a card, with unit."""
    power_limit: str | None
    """Most power that it may take, with unit."""
    cuda: str | None
    """Release of CUDA that torch was built with; None for a build without it."""
    python: str
    system: str
    versions: dict[str, str | None]
    """Releases of packages; None for those that are not installed."""


def this_machine() -> Machine:
    """The machine now; the card is asked about without opening it."""
    card, driver, memory, power = _driver_says()
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        card=card,
        driver=driver,
        memory=memory,
        power_limit=power,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={package: _version(package) for package in _PACKAGES},
    )


def _driver_says() -> tuple[str | None, ...]:
    """The values of _ASKED of the first card; None for each where there is nobody to ask."""
    nothing = (None,) * len(_ASKED.split(","))
    if shutil.which("nvidia-smi") is None:
        return nothing
    asked = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    asked += [f"--id={visible}"] if visible else []
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return nothing
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    return tuple(values) if not done.returncode and len(values) == len(nothing) else nothing


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def as_json(machine: Machine, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What gpu.json holds and --json prints: the machine, and by part status, seconds, reason, numbers, findings."""
    return {
        "machine": asdict(machine),
        "well": all(each.is_well for each in outcomes),
        "parts": {each.part: _part(each) for each in outcomes},
    }


def _part(outcome: Outcome) -> dict[str, Any]:
    found = outcome.measured
    return {
        "title": outcome.title,
        "status": outcome.status,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 2),
        "limit_seconds": outcome.limit_seconds,
        "findings": list(found.findings) if found else [],
        "notes": list(found.notes) if found else [],
        "numbers": found.numbers if found else None,
    }


def as_markdown(machine: Machine, outcomes: Sequence[Outcome]) -> str:
    """What gpu.md holds: the machine, how each part went, and a table a part."""
    facts = [(name.replace("_", " "), value) for name, value in asdict(machine).items() if name != "versions"]
    facts += list(machine.versions.items())
    went = [
        (each.title, _how(each), f"{each.seconds:.1f} of {each.limit_seconds:g}", f"{_num_findings(each) or ''}")
        for each in outcomes
    ]
    title = f"# What one card does: {machine.card}" if machine.card else "# What one card does: a trial without a card"
    shown = [title, "Made by `polytrace bench gpu`."]
    shown.append(_table(("", ""), [(name, "not here" if value is None else f"{value}") for name, value in facts]))
    shown.append(_table(("part", "how it went", "seconds", "findings"), went))
    for each in outcomes:
        shown += _section(each)
    return "\n\n".join(shown) + "\n"


def _section(outcome: Outcome) -> list[str]:
    heading = f"## {outcome.title}"
    if outcome.measured is None:
        return [heading, f"{_how(outcome)}: {outcome.reason}"]
    found: Measured = outcome.measured
    shown = [heading, *(f"**Finding:** {each}." for each in found.findings)]
    notes = ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    return [*shown, _table(found.columns, found.rows), *notes]


def _how(outcome: Outcome) -> str:
    return {"cut": "cut at its limit"}.get(outcome.status, outcome.status)


def _num_findings(outcome: Outcome) -> int:
    return len(outcome.measured.findings) if outcome.measured else 0


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text as a cell of a table takes it; what a page could read as HTML is shown as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
