"""A small disk of its own, and one that is full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(at: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at a new folder."""
    at.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(at)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave `room` bytes, whole pages, on the disk, though others may write to it meanwhile."""
    ballast = disk / "ballast"
    try:
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    except OSError:
        os.truncate(ballast, max(0, ballast.stat().st_size - room))
