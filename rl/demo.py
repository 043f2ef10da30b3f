"""`polytrace demo`: the whole job, which is train, refine and evaluate in a row."""

import shutil
from pathlib import Path

from rich.console import Console

from rl.config.run import RunConfig
from rl.evaluate import evaluate
from rl.refine import refine, settings_of
from rl.run.folder import RunFolder
from rl.run.metrics import JobUsage
from rl.train import train
from rollout import cluster


def run_job(config: RunConfig, resume: bool, console: Console) -> Path:
    """Train, refine and evaluate; returns the run's folder, which then holds report.html and summary.json."""
    with JobUsage() as usage:
        train(config, resume, console)
        cluster.stop()  # ranks of a refiner have places of their own
        shutil.rmtree(RunFolder(Path(config.run)).refiner, ignore_errors=True)  # one of an earlier best policy
        refine(settings_of(config), console)
        return evaluate(config, console, usage)
