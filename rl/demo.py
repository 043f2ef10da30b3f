"""The whole job: SFT checkpoint, RL, archive, refiner, and what each of them is worth on held-out scenes."""

import shutil
import time
from pathlib import Path

from rich.console import Console

from rl.config.run import RunConfig
from rl.evaluate import finish
from rl.run.metrics import PeakMemory
from rl.train import train


def run_job(config: RunConfig, resume: bool, console: Console) -> Path:
    """Train, refine and evaluate; returns the run's folder, which then holds report.html and summary.json."""
    with PeakMemory() as memory:
        started = time.monotonic()
        train(config, resume, console)
        shutil.rmtree(Path(config.run) / "refiner", ignore_errors=True)  # one of an earlier best policy
        return finish(config, console, memory, started)
