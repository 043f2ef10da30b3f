"""A refiner trained: by one rank in this process or several as Ray actors, with checkpoints, curves and previews."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.geometry.contours import rings_from_mask
from rl.config.learner import RankPlace
from rl.learner.ranks import Rank, RankActor, RankGroup, Reply, alone, reply
from rl.pages.pictures import COLOURS, overlay
from rl.pages.progress import StepProgress
from rl.refiner.rank import Preview, RefinerRank, RefinerRankSettings
from rl.run.checkpoints import Checkpoints, Position
from rl.run.metrics import MetricsWriter
from rollout import cluster


class RefinerActor(RankActor):
    """A RefinerRank as Ray calls it."""

    def __init__(self, settings: RefinerRankSettings, place: RankPlace) -> None:
        self._refiner = RefinerRank(settings, place)
        super().__init__(self._refiner)

    def steps(self, end: int) -> Reply:
        """RefinerRank.steps."""
        return reply(self._refiner.steps(end))

    def preview(self, num: int) -> Reply:
        """RefinerRank.preview."""
        return reply(self._refiner.preview(num))


class RefinerGroup(RankGroup):
    """All ranks together; raises as RankGroup.ask does. Ray must run (rollout/cluster.py)."""

    kept = "this refiner"

    def __init__(self, settings: RefinerRankSettings) -> None:
        super().__init__(RefinerActor, settings, settings.training.ranks, settings.training.gpus_per_rank)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what rank 0 logs of each."""
        calls = [rank.steps.remote(end) for rank in self.actors]
        logs: list[dict[str, float]] = self.ask("steps", calls)[0]
        return logs

    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now."""
        calls = [rank.preview.remote(num) for rank in self.actors]
        previews: list[Preview] = self.ask("preview", calls)[0]
        return previews


_OBJECT_STORE_BYTES = 256 * 2**20
"""Memory of Ray's object store where there are several ranks; nothing large travels."""
_PREVIEWS = 6
_STEPS_AT_ONCE = 10
"""Between two looks at the progress."""


class RefinerRanks(Rank, Protocol):
    """All ranks together, or the only one."""

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what rank 0 logs of each."""
        ...

    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now."""
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
        ranks: RefinerRanks = RefinerRank(settings, alone())
    else:
        cluster.start(None, training.ranks, training.ranks * training.gpus_per_rank, _OBJECT_STORE_BYTES)
        ranks = RefinerGroup(settings)
    checkpoints, metrics = Checkpoints(out, keep=1), MetricsWriter(out)
    done = 0 if checkpoints.last_step is None else checkpoints.load_last(ranks)
    metrics.drop_after(done - 1)
    with StepProgress(console, "refiner", training.steps, done) as progress:
        while done < training.steps:
            last = min(training.steps, done + _STEPS_AT_ONCE, done - done % training.save_every + training.save_every)
            logs = ranks.steps(last)
            for step, log in enumerate(logs, done):
                metrics.scalars(step, {f"refiner/{name}": value for name, value in log.items()})
            done = last
            loss, iou = (np.mean([log[name] for log in logs]) for name in ("loss", "iou"))
            stage = training.stage_at(done - 1).name
            progress.update(done, f"{stage}: loss {loss:.3f} IoU {iou:.3f}")
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
