"""How long the command takes until it answers: its help, and a mistake in a setting, each in a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

ROUNDS = 5
_MAIN = "from rl.cli.main import main; main()"


@dataclass(frozen=True)
class Start:
    """One way to start, timed."""

    name: str
    """Name of the case."""
    seconds: float
    """Median wall time of a whole process over the rounds, seconds."""
    bar: float | None
    """Most seconds that it may take on a quiet machine; None for what it is compared with."""


@dataclass(frozen=True)
class _Case:
    name: str
    code: str
    arguments: tuple[str, ...] = ()
    bar: float | None = None
    exit_status: int = 0


CASES = (
    _Case("python alone", "pass"),
    _Case("python that imports typer", "import typer"),
    _Case("polytrace --help", _MAIN, ("--help",), bar=0.5),
    _Case("misspelt key refused", _MAIN, ("train", "demo", "stpes=3"), bar=1.5, exit_status=2),
    _Case("value out of range refused", _MAIN, ("train", "demo", "learner.lr=0"), bar=1.5, exit_status=2),
    _Case("misspelt key of the env refused", _MAIN, ("train", "demo", "env.objcts=3"), bar=1.5, exit_status=2),
    _Case("misspelt key of a reward refused", _MAIN, ("train", "demo", "rewards.format.wt=1"), bar=1.5, exit_status=2),
)


def measure(rounds: int = ROUNDS) -> Iterator[Start]:
    """Each of CASES, as the median of `rounds` processes after one that fills the disk's cache.

    Raises RuntimeError where a process ends in another way than it should.
    """
    for case in CASES:
        seconds = [_seconds_of(case) for _ in range(rounds + 1)][1:]
        yield Start(case.name, statistics.median(seconds), case.bar)


def _seconds_of(case: _Case) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", case.code, *case.arguments], capture_output=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode != case.exit_status:
        raise RuntimeError(f"{case.name} ended with exit status {done.returncode}: {done.stderr.decode()[-500:]}")
    return seconds


def table(found: list[Start]) -> Table:
    """The cases, with the bars that they have to keep."""
    rows = Table("start", "seconds", "at most")
    for start in found:
        rows.add_row(start.name, f"{start.seconds:.2f}", "" if start.bar is None else f"{start.bar:.1f}")
    return rows
