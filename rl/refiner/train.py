"""A refiner trained: by one rank in this process or several as Ray actors, with checkpoints, curves and previews."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from envs.geometry.contours import rings_from_mask
from rl.config.learner import RankPlace
from rl.learner.ranks import RankCrew, Reply, writing
from rl.pages.pictures import COLOURS, overlay
from rl.pages.progress import StepProgress
from rl.refiner.rank import Preview, RefinerRank, RefinerRankSettings
from rl.run.checkpoints import Checkpoints, Position
from rl.run.metrics import MetricsWriter
from rollout import cluster


class RefinerActor:
    """A RefinerRank as Ray calls it."""

    def __init__(self, settings: RefinerRankSettings, place: RankPlace) -> None:
        self._rank = RefinerRank(settings, place)

    def begin(self) -> Reply:
        """Where this rank runs, for people."""
        return _reply(f"process {os.getpid()} on {cluster.node_address()}")

    def steps(self, end: int) -> Reply:
        """RefinerRank.steps."""
        return _reply(self._rank.steps(end))

    def preview(self, num: int) -> Reply:
        """RefinerRank.preview."""
        return _reply(self._rank.preview(num))

    def save(self, folder: Path, tag: str) -> Reply:
        """RefinerRank.save."""
        return _reply(self._rank.save(folder, tag))

    def load(self, folder: Path, tag: str) -> Reply:
        """RefinerRank.load."""
        return _reply(self._rank.load(folder, tag))

    def save_policy(self, folder: Path) -> Reply:
        """RefinerRank.save_policy."""
        return _reply(self._rank.save_policy(folder))


def _reply(value: object) -> Reply:
    return Reply(value, psutil.Process().memory_info().rss / 2**30)


class RefinerCrew:
    """All ranks together; raises as RankCrew.ask does. Ray must run (rollout/cluster.py)."""

    def __init__(self, settings: RefinerRankSettings) -> None:
        self._crew = RankCrew(RefinerActor, settings, settings.training.ranks, settings.training.gpus_per_rank)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what rank 0 logs of each."""
        logs: list[dict[str, float]] = self._crew.ask("steps", [rank.steps.remote(end) for rank in self._crew.actors])[
            0
        ]
        return logs

    def preview(self, num: int) -> list[Preview]:
        """The first few held-out pairs, refined as the weights are now."""
        calls = [rank.preview.remote(num) for rank in self._crew.actors]
        previews: list[Preview] = self._crew.ask("preview", calls)[0]
        return previews

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        with writing("this checkpoint", folder / tag):
            self._crew.ask("save", [rank.save.remote(folder.absolute(), tag) for rank in self._crew.actors])

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        self._crew.ask("load", [rank.load.remote(folder.absolute(), tag) for rank in self._crew.actors])

    def save_policy(self, folder: Path) -> None:
        """Write the refiner."""
        with writing("this refiner", folder):
            self._crew.ask("save_policy", [rank.save_policy.remote(folder.absolute()) for rank in self._crew.actors])

    def close(self) -> None:
        """End the ranks."""
        self._crew.close()


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


def _alone() -> RankPlace:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return RankPlace(port=probe.getsockname()[1])
