"""Running an ablation: one child process of the command after another, a table at the end.

What is finished is skipped, what was interrupted resumed, what failed named with the end of its log. A folder is locked
while an ablation runs in it, and a child ends with its parent.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rich.console import Console
from rich.markup import escape

from rl.lab.ablation import Ablation, PlannedRun, plan
from rl.lab.ablation_scores import ablation_tables, read_scores
from rl.lab.pages import write_ablation
from rl.pages.progress import StepProgress
from rollout.archive.archive import RolloutArchive

_GRACE_SECONDS = 30.0
"""How long a command may take to end when it is asked to."""
_MAIN = "from rl.cli.main import main; main()"


@contextmanager
def locked(folder: Path) -> Iterator[BinaryIO]:
    """Hold `folder` (made where it is missing) for this process and the children that get the file.

    The hold ends with the last of them, however they die. Raises ValueError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder} is in use by another command; wait for it, or give another folder.") from error
        yield file


@contextmanager
def polytrace(arguments: Sequence[str], log: Path, lock: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """Start `polytrace ARGUMENTS`, output appended to `log`; ended where it still runs at the end of the block.

    lock: from `locked`; the child holds it on, should this process be killed.
    """
    command = [sys.executable, "-P", "-c", _MAIN, *arguments]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches it once, from here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    try:
        yield process
    finally:
        end(process)


def running(process: subprocess.Popen[bytes], every_seconds: float = 1.0) -> Iterator[float]:
    """Seconds since the call, again and again until the process has ended."""
    started = time.monotonic()
    while process.poll() is None:
        yield time.monotonic() - started
        time.sleep(every_seconds)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that still runs to end; kill it with its children where that does not help."""
    if process.poll() is not None:
        return
    process.terminate()  # a SIGINT would be ignored where this process was started in the background
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ablate(ablation: Ablation, console: Console) -> bool:
    """Run what is not finished, then write ablation.json and ablation.html into `out`; whether every run ended well.

    Raises ValueError or FileNotFoundError for what is wrong with a setting before the first run starts.
    """
    runs = plan(ablation)
    with locked(ablation.out) as lock, _terminated_as_interrupted():
        _announce(ablation, runs, console)
        failed = _run_all(runs, lock, console)
    scores = [read_scores(run) for run in runs if run not in failed]
    for table in ablation_tables([path.stem for path in ablation.rewards], scores):
        console.print(table)
    for run in failed:
        console.print(f"[red]failed:[/red] {escape(str(run.folder))}; the same command tries it again", soft_wrap=True)
    for path in write_ablation(ablation, scores, failed):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return not failed


def _announce(ablation: Ablation, runs: Sequence[PlannedRun], console: Console) -> None:
    finished = sum(run.seconds is not None for run in runs)
    console.print(
        f"{len(runs)} runs of {ablation.steps} steps ({len(ablation.rewards)} reward configs, {ablation.seeds} seeds), "
        f"{finished} finished before; base {ablation.base} {' '.join(ablation.overrides)}".rstrip(),
        soft_wrap=True,
    )
    schedule = ", ".join(f"{key}={value}" for key, value in ablation.schedule().items())
    console.print(f"set for the short run, where no override says otherwise: {schedule}", soft_wrap=True)


def _run_all(runs: Sequence[PlannedRun], lock: BinaryIO, console: Console) -> list[PlannedRun]:
    """Do the runs that are not finished, in order; the ones that failed."""
    left, failed = [run for run in runs if run.seconds is None], []
    with StepProgress(console, "ablation", sum(run.config.steps for run in left)) as progress:
        for place, run in enumerate(left):
            status = _run_one(run, sum(other.config.steps for other in left[:place]), lock, progress)
            if status == 0:
                _report(run, runs, len(left) - place - 1, console)
            else:
                failed.append(run)
                _report_failure(run, status, console)
    return failed


def _run_one(run: PlannedRun, done: int, lock: BinaryIO, progress: StepProgress) -> int:
    """Do a run, `done` steps of earlier ones behind it, and mark it as finished; the exit status of its process."""
    started = time.monotonic()
    with polytrace(run.begin(), run.folder / "log.txt", lock) as process:
        for _ in running(process):
            progress.update(done + _steps_done(run), run.title)
    progress.update(done + run.config.steps, run.title)
    if process.returncode == 0:
        run.finish(time.monotonic() - started)
    return process.returncode


def _steps_done(run: PlannedRun) -> int:
    last = RolloutArchive(run.folder / "archive").last_step
    return 0 if last is None else last + 1


def _report(run: PlannedRun, runs: Sequence[PlannedRun], num_left: int, console: Console) -> None:
    """One line about a finished run, and the time to expect for those that are left."""
    scores, seconds = read_scores(run), [other.seconds for other in runs if other.seconds is not None]
    minutes = num_left * sum(seconds) / len(seconds) / 60
    console.print(
        f"{run.title}: gIoU {scores.before['giou']:.3f} -> {scores.after['giou']:.3f}, boundary "
        f"IoU {scores.before['boundary_iou']:.3f} -> {scores.after['boundary_iou']:.3f}, {run.seconds:.0f} s; "
        f"{num_left} runs left, about {minutes:.0f} min",
        soft_wrap=True,
        highlight=False,
    )


def _report_failure(run: PlannedRun, status: int, console: Console) -> None:
    console.print(
        f"[red]{run.title} failed[/red], exit status {status}; the end of {run.folder}/log.txt:", soft_wrap=True
    )
    console.print(run.tail(), markup=False, highlight=False, soft_wrap=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a request to terminate end the running child too, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
