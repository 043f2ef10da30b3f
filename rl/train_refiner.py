"""Train a MaskRefiner on the pairs of an index: one rank in this process, or several as Ray actors.

Shows progress, logs to TensorBoard and metrics.jsonl, keeps checkpoints, and goes on where it was stopped.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.contours import rings_from_mask
from rl.checkpoints import Checkpoints, Position
from rl.metrics import MetricsWriter
from rl.pictures import COLOURS, overlay
from rl.rank_settings import RankPlace
from rl.refiner_crew import RefinerCrew
from rl.refiner_rank import Preview, RefinerRank, RefinerRankSettings
from rollout import cluster

_OBJECT_STORE_BYTES = 256 * 2**20
"""Ray's, where there are several ranks; nothing large travels."""
_PREVIEWS = 6
_STEPS_AT_ONCE = 10
"""Between two looks at the progress."""


class RefinerRanks(Protocol):
    """All ranks together."""

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what rank 0 logs of each."""
        ...

    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now."""
        ...

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        ...

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        ...

    def save_policy(self, folder: Path) -> None:
        """Write the refiner."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...


def train_refiner(settings: RefinerRankSettings, out: Path, console: Console) -> None:
    """Train to the end from the last checkpoint in `out`, if there is one, and write the refiner to `out`.

    Equal pairs and settings give equal weights, stopped in between or not, on the same number of ranks.
    """
    training = settings.training
    if training.ranks == 1:
        ranks: RefinerRanks = RefinerRank(settings, _alone())
    else:
        cluster.start(None, training.ranks, training.ranks * training.gpus_per_rank, _OBJECT_STORE_BYTES)
        ranks = RefinerCrew(settings)
    checkpoints, metrics = Checkpoints(out, keep=1), MetricsWriter(out)
    done = 0 if checkpoints.last_step is None else checkpoints.load_last(ranks)
    metrics.drop_after(done - 1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("refiner", total=training.steps, completed=done)
        while done < training.steps:
            last = min(training.steps, done + _STEPS_AT_ONCE, done - done % training.save_every + training.save_every)
            logs = ranks.steps(last)
            for step, log in enumerate(logs, done):
                metrics.scalars(step, {f"refiner/{name}": value for name, value in log.items()})
            done = last
            loss, iou = (np.mean([log[name] for log in logs]) for name in ("loss", "iou"))
            stage = training.stage_at(done - 1).name
            progress.update(task, completed=done, description=f"refiner, {stage}: loss {loss:.3f} IoU {iou:.3f}")
            if done % training.save_every == 0 or done == training.steps:
                metrics.pictures(done, _pictures(ranks.preview(_PREVIEWS)))
                metrics.flush()
                position = Position(done, done * training.batch_size, 0, training.ranks, training.zero_stage)
                checkpoints.save(ranks, position)
    ranks.save_policy(out)
    metrics.close()
    ranks.close()


def _pictures(previews: Sequence[Preview]) -> dict[str, NDArray[np.uint8]]:
    """Before and after side by side, for TensorBoard: the coarse mask, the fine one, the true one."""
    shown = {}
    for k, one in enumerate(previews):
        masks = {"rl": one.coarse, "refined": one.fine, "truth": one.true}
        drawn = [overlay(one.image, rings_from_mask(mask), COLOURS[kind]) for kind, mask in masks.items()]
        shown[f"refiner/{k}_coarse_fine_true"] = np.concatenate(drawn, axis=1)
    return shown


def _alone() -> RankPlace:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return RankPlace(port=probe.getsockname()[1])
