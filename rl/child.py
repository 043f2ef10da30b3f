"""A `polytrace` command as a process of its own, so that its memory and its Ray end with it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_GRACE_SECONDS = 30.0
"""How long a command may take to end when it is asked to."""
_MAIN = "from rl.cli import main; main()"


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
