"""A policy taught stage by stage, by one rank in this process or several as Ray actors, with checkpoints and curves."""

import gc
import math
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console

from rl.config.learner import RankPlace
from rl.config.sft import SftConfig, Stretch
from rl.learner.ranks import Rank, RankActor, RankGroup, Reply, alone, reply
from rl.pages.progress import StepProgress
from rl.run.checkpoints import Checkpoints, Position
from rl.run.metrics import MetricsWriter
from rl.supervised.rank import SftRank, SftRankSettings, SftScores
from rollout import cluster
from rollout.disk import replace_text

_OBJECT_STORE_BYTES = 256 * 2**20
"""Memory of Ray's object store where there are several ranks; nothing large travels."""
CURVE = "curve.tsv"
POLICY = "policy"
STAGES = "stages"
"""Folder of the policies that a training of another part begins with."""


class SftActor(RankActor):
    """An SftRank as Ray calls it."""

    def __init__(self, settings: SftRankSettings, place: RankPlace) -> None:
        self._sft = SftRank(settings, place)
        super().__init__(self._sft)

    def steps(self, end: int) -> Reply:
        """SftRank.steps."""
        return reply(self._sft.steps(end))

    def evaluate(self) -> Reply:
        """SftRank.evaluate."""
        return reply(self._sft.evaluate())


class SftGroup(RankGroup):
    """All ranks together; raises as RankGroup.ask does. Ray must run (rollout/cluster.py)."""

    def __init__(self, settings: SftRankSettings) -> None:
        super().__init__(SftActor, settings, settings.learner.ranks, settings.learner.gpus_per_rank)

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what to log of each."""
        logs: list[dict[str, float]] = self.ask("steps", [r.steps.remote(end) for r in self.actors])[0]
        return logs

    def evaluate(self) -> SftScores:
        """Loss and greedy answers on the split `validation`."""
        scores: SftScores = self.ask("evaluate", [r.evaluate.remote() for r in self.actors])[0]
        return scores


class SftRanks(Rank, Protocol):
    """All ranks together, or the only one."""

    def steps(self, end: int) -> list[dict[str, float]]:
        """Train up to step `end`; what to log of each."""
        ...

    def evaluate(self) -> SftScores:
        """Loss and greedy answers on the split `validation`."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...


@dataclass(frozen=True)
class SftPoint:
    """One point of the learning curve."""

    step: int
    """Steps done."""
    stage: str
    """Name of the stage of the last of them."""
    loss: float
    """Nats a scored token, mean over the steps since the last point; NaN of a point before the first step."""
    validation_loss: float
    """Nats a token of the answers to validation scenes that would be taught."""
    greedy_giou: float
    """Mean IoU of greedy answers on validation scenes, invalid ones counted as 0."""
    valid: float
    """Share of valid answers."""


def train_sft(settings: SftRankSettings, config: SftConfig, folder: Path, console: Console) -> None:
    """Train to the end from the last checkpoint in `folder`, if there is one; each evaluation writes all there is.

    Each stretch of steps has ranks of its own, which begin with the policy that the last one ended with. Equal data and
    settings give equal weights, stopped in between or not, on the same number of ranks.
    """
    total, done = config.sft.num_steps, last_step(folder)
    if done >= total:
        console.print(f"nothing is left to train: {done} of {total} steps are done")
    for stretch in config.sft.stretches:
        if last_step(folder) < stretch.end:
            began = begin_of(folder, stretch)
            policy = settings.policy if began is None else settings.policy.with_settings(checkpoint=began)
            ranks = sft_ranks(replace(settings, policy=policy, stretch=stretch), config)
            folder.mkdir(parents=True, exist_ok=True)
            _train_stretch(ranks, stretch, config, folder, console)
            ranks.close()
            del ranks
            gc.collect()  # what an engine holds goes round in circles, and the next one wants its memory


def last_step(folder: Path) -> int:
    """Steps of the last checkpoint of a training; 0 without one."""
    return Checkpoints(folder, keep=1).last_step or 0


def begin_of(folder: Path, stretch: Stretch) -> Path | None:
    """The policy that the steps before a stretch ended with; None for the first, which begins with what is named.

    Raises FileNotFoundError where it is gone.
    """
    if not stretch.first:
        return None
    found = folder / STAGES / f"step-{stretch.first:06d}"
    if not found.is_dir():
        raise FileNotFoundError(
            f"{found} is gone, the policy that the training of another part begins with; put it back, or begin anew in "
            "another folder by run=NAME."
        )
    return found


def _train_stretch(ranks: SftRanks, stretch: Stretch, config: SftConfig, folder: Path, console: Console) -> None:
    settings, total = config.sft, config.sft.num_steps
    checkpoints, metrics = Checkpoints(folder, keep=1), MetricsWriter(folder)
    done = stretch.first
    if (checkpoints.last_step or 0) > done:
        done = checkpoints.load_last(ranks)
    metrics.drop_after(done)
    curve = [point for point in read_curve(folder) if point.step <= done]
    losses: list[float] = []
    if settings.keep == "best" and not curve:
        curve = [_before_the_first_step(ranks, folder, console)]
    with StepProgress(console, "SFT", total, done) as progress:
        while done < stretch.end:
            began = time.perf_counter()
            [log] = ranks.steps(done + 1)
            done += 1
            metrics.timings(done, {"seconds/step": time.perf_counter() - began})
            losses.append(log["loss"])
            metrics.scalars(done, {f"sft/{name}": value for name, value in log.items()})
            stage = settings.stage_at(done - 1)[0].name
            progress.update(done, f"{stage} loss {losses[-1]:.3f}")
            if done % settings.evaluate_every == 0 or done == stretch.end:
                scores = ranks.evaluate()
                point = SftPoint(done, stage, float(np.mean(losses)), scores.loss, scores.greedy_giou, scores.valid)
                progress.print(_told(point))
                curve, losses = [*curve, point], []
                metrics.scalars(done, {f"sft/validation_{k}": value for k, value in asdict(scores).items()})
                if settings.keep == "last" or _is_best(curve):
                    _write_policy(ranks, folder)
                _write_curve(folder, curve)
                if done == stretch.end < total:
                    _write_policy(ranks, folder / STAGES, f"step-{done:06d}")
                checkpoints.save(ranks, Position(done, done * settings.scenes_per_step, 0, *_shape(config)))
    metrics.close()


def _before_the_first_step(ranks: SftRanks, folder: Path, console: Console) -> SftPoint:
    """Evaluate what the training begins with, and keep it."""
    scores = ranks.evaluate()
    point = SftPoint(0, "start", math.nan, scores.loss, scores.greedy_giou, scores.valid)
    console.print(_told(point), markup=False, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    _write_policy(ranks, folder)
    _write_curve(folder, [point])
    return point


def _shape(config: SftConfig) -> tuple[int, int]:
    return config.learner.ranks, config.learner.zero_stage


def _is_best(curve: list[SftPoint]) -> bool:
    """Whether no point before the last one has as high a greedy gIoU; of boxes alone there is none."""
    return all(not curve[-1].greedy_giou <= point.greedy_giou for point in curve[:-1])


def _told(point: SftPoint) -> str:
    trained = "" if math.isnan(point.loss) else f"loss {point.loss:.3f}  "
    return (
        f"step {point.step:>5} {point.stage:>9}  {trained}on validation: loss {point.validation_loss:.3f}"
        f"  greedy gIoU {point.greedy_giou:.3f}  valid {point.valid:.1%}"
    )


def _write_policy(ranks: SftRanks, folder: Path, name: str = POLICY) -> None:
    """Write the policy beside the last one, which it replaces once it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial, dropped = folder / f"{name}.partial", folder / f"{name}.dropped"
    for leftover in (partial, dropped):
        shutil.rmtree(leftover, ignore_errors=True)
    ranks.save_policy(partial)
    if (folder / name).exists():
        (folder / name).rename(dropped)
    partial.rename(folder / name)
    shutil.rmtree(dropped, ignore_errors=True)


def _write_curve(folder: Path, curve: list[SftPoint]) -> None:
    names = [field.name for field in fields(SftPoint)]
    rows = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in asdict(point).values()] for point in curve]
    replace_text(folder / CURVE, "".join("\t".join(row) + "\n" for row in [names, *rows]))


def read_curve(folder: Path) -> list[SftPoint]:
    """The learning curve of a training so far; empty where there is none."""
    if not (folder / CURVE).is_file():
        return []
    rows = [line.split("\t") for line in (folder / CURVE).read_text(encoding="utf-8").splitlines()[1:]]
    return [SftPoint(int(step), stage, *map(float, numbers)) for step, stage, *numbers in rows]


def sft_ranks(settings: SftRankSettings, config: SftConfig) -> SftRanks:
    """One rank in this process, or several as actors."""
    learner = config.learner
    if learner.ranks == 1 and config.ray.address is None:
        return SftRank(settings, alone())
    store = _OBJECT_STORE_BYTES
    cluster.start(config.ray.address, learner.ranks, learner.ranks * learner.gpus_per_rank, store)
    return SftGroup(settings)
