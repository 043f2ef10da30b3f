"""A part of the bench, and its run in a process of its own: what fails, hangs or takes the process down is recorded,
and the next part begins on a card that nobody holds."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from json import loads
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rl.pages.json_text import json_text

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
"""How the last line of a traceback begins."""
_LONGEST_REASON = 400


@dataclass(frozen=True)
class Site:
    """Where a part measures."""

    device: str
    """cuda; or cpu, at sizes that only show that the code runs."""
    folder: Path
    """Files that parts share, such as the model that several measure on; removed at the end."""

    @property
    def on_card(self) -> bool:
        """Whether the numbers are those of a GPU."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Measured:
    """What a part found."""

    columns: tuple[str, ...]
    """Heads of its table."""
    rows: tuple[tuple[str, ...], ...]
    """Cells of its table, for people."""
    numbers: dict[str, Any]
    """Numbers of the part for programs; what JSON can hold."""
    findings: tuple[str, ...] = ()
    """What is not as it should be, such as a difference above its bar."""
    notes: tuple[str, ...] = ()
    """What to know when reading the table."""


@dataclass(frozen=True)
class Skipped:
    """That a part has nothing to measure here."""

    reason: str


@dataclass(frozen=True)
class Part:
    """Something that is measured."""

    name: str
    """What --parts calls it."""
    title: str
    """Heading of its table."""
    limit_seconds: float
    """How long it may take, the start of its process included."""
    measure: Callable[[Site], Measured | Skipped]
    """A function at the top of a module; it is called in a process of its own."""


@dataclass(frozen=True)
class Outcome:
    """How a part went."""

    part: str
    title: str
    limit_seconds: float
    seconds: float
    """From the start of its process to its end."""
    status: str
    """done; skipped; failed, where it raised or its process died; cut, where it was not done at its limit."""
    reason: str | None = None
    """Why it was not done; None where it was."""
    measured: Measured | None = field(default=None)
    """What it found; None where it was not done."""

    @property
    def is_well(self) -> bool:
        """Whether nothing failed, and nothing that was found is amiss."""
        return self.status in ("done", "skipped") and not (self.measured and self.measured.findings)


def run_part(part: Part, site: Site, log: Path) -> Outcome:
    """Measure a part in a process of its own, which is ended with all that it started at its limit.

    log: file for what it prints; its folder must be there.
    """
    result = site.folder / f"{part.name}.json"
    process = get_context("spawn").Process(target=_measure, args=(part, site, result, log), name=part.name)
    began = time.perf_counter()
    process.start()
    try:
        ended = bool(connection.wait([process.sentinel], timeout=part.limit_seconds))
    finally:
        _end(process)
    seconds = time.perf_counter() - began
    status, reason, measured = _told(process, result, log, ended, part.limit_seconds)
    return Outcome(part.name, part.title, part.limit_seconds, seconds, status, reason, measured)


def _measure(part: Part, site: Site, result: Path, log: Path) -> None:
    """In the process of the part."""
    os.setsid()  # so that it can be ended with whatever it has started
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if not site.on_card:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = part.measure(site)
    partial = result.with_suffix(".partial")
    partial.write_text(json_text(asdict(found)), encoding="utf-8")
    partial.replace(result)


def _end(process: BaseProcess) -> None:
    """End a part's process, and all of its session; its id is its own until it is joined."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # no session yet; or nobody but the ended process, on some systems
        process.kill()
    process.join()


def _told(
    process: BaseProcess, result: Path, log: Path, ended: bool, limit: float
) -> tuple[str, str | None, Measured | None]:
    """Status, reason and what was measured."""
    if result.exists():  # also where it was done and did not come to an end
        found = loads(result.read_text(encoding="utf-8"))
        if "reason" in found:
            return "skipped", str(found["reason"]), None
        return "done", None, _measured(found)
    last = _last_words(log)
    if not ended:
        return "cut", f"not done after {limit:g} s" + (f"; last it said: {last}" if last else ""), None
    code = process.exitcode or 0
    how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else ""
    return "failed", "; ".join(filter(None, (how, last))) or f"ended with exit status {code}", None


def _measured(found: dict[str, Any]) -> Measured:
    return Measured(
        tuple(found["columns"]),
        tuple(tuple(row) for row in found["rows"]),
        found["numbers"],
        tuple(found["findings"]),
        tuple(found["notes"]),
    )


def _last_words(log: Path) -> str:
    """What a process raised, else the last line that it printed; empty where it printed nothing."""
    if not log.exists():
        return ""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return next(iter([*raised[-1:], *lines[-1:]]), "").strip()[:_LONGEST_REASON]
