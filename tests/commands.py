"""`polytrace` in a process of its own or in this one, a small training by it, and what that leaves."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from rl.cli.main import main

SMALL = [
    "groups_per_step=4",
    "group_size=4",
    "groups_per_unit=2",
    "save_every=2",
    "sampling.max_tokens=40",
    "learner.micro_groups=2",
    "learner.threads=1",
    "evaluation.every=2",
    "evaluation.num_scenes=8",
    "shaping.total={kind: quantile, history: 24}",  # a resumed run must take quantiles among the same past
]


def polytrace(*arguments: str) -> list[str]:
    """The command line of this Python for it."""
    return [sys.executable, "-c", "from rl.cli.main import main; main()", *arguments]


class Told(NamedTuple):
    """What a command said, and its exit status."""

    status: int
    stdout: str
    stderr: str


def here(*arguments: object) -> Told:
    """The command in this process: one of its own needs seconds to import what it imports."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["polytrace", *map(str, arguments)])
        with redirect_stderr(io.StringIO()) as error, pytest.raises(SystemExit) as end:
            main()
    return Told(int(end.value.code or 0), out.getvalue(), error.getvalue())


def train(folder: Path, *arguments: str) -> None:
    command = polytrace("train", "tiny", f"run={folder}", *SMALL, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def shards(folder: Path) -> dict[str, bytes]:
    """The bytes of all shards of the archive of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("archive/*/step-*.parquet"))
    }


def numbers(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
