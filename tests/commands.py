"""`polytrace` in a process of its own, a small training by it, and what that leaves."""

import json
import subprocess
import sys
from pathlib import Path

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


def train(folder: Path, *arguments: str) -> None:
    command = polytrace("train", "demo", f"run={folder}", *SMALL, *arguments)
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
