"""What the trainings are worth on held-out scenes: greedy and sampled, each less another on the same scenes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rl.bench.learning.arms import RL, Arm, Spent, Wanted
from rl.bench.learning.trainings import Trained
from rl.config.run import RunConfig, num_gpus
from rl.evaluation.answers import greedy_groups, score_groups
from rl.evaluation.scores import Interval, SceneScore, mean_interval, summarise
from rl.run.parts import run_parts, worker_settings
from rl.run.preflight import object_store_bytes
from rollout import cluster
from rollout.pool.pool import WorkerPool
from rollout.records import Group
from rollout.worker import Unit

NOTHING = Arm("nothing", "the checkpoint as it is")


@dataclass(frozen=True)
class Contender:
    """A policy to score."""

    arm: Arm
    seed: int
    spent: Spent | None
    """None for the checkpoint as it is."""
    folder: Path
    """Hugging Face folder."""


@dataclass(frozen=True)
class Scored:
    """A contender on the held-out scenes."""

    contender: Contender
    greedy: Sequence[SceneScore]
    """By scene, in one order for all."""
    sampled: Sequence[float]
    """[S] mean IoU of a group of sampled answers."""
    vertices: float
    """Mean of greedy answers."""


def score_all(wanted: Wanted, trained: Iterable[Trained], console: Console) -> list[Scored]:
    """Every policy, and the checkpoint that all began with."""
    config = wanted.base(0)
    parts = run_parts(config)
    cluster.start(config.ray.address, config.pool.workers, num_gpus(config), object_store_bytes(config, parts))
    pool = WorkerPool(config.pool.without_ranks(), worker_settings(config, parts))
    scored = []
    for contender in [
        Contender(NOTHING, 0, None, Path(parts.policy.settings["checkpoint"])),
        *map(contender_of, trained),
    ]:
        with console.status(f"seed {contender.seed}, {contender.arm.title}, on held-out scenes"):
            scored.append(_scored(pool, config, contender))
    pool.close()
    cluster.stop()
    return scored


def contender_of(trained: Trained) -> Contender:
    """What a training ended with."""
    return Contender(trained.arm, trained.seed, trained.spent, trained.training.policy.resolve())


def _scored(pool: WorkerPool, config: RunConfig, contender: Contender) -> Scored:
    split, num = config.evaluation.final_split, config.evaluation.final_scenes
    greedy = greedy_groups(pool, config, split, num, contender.folder)
    sampled = pool.answer(_sampled_units(config, split, len(greedy)))
    vertices = float(np.mean([group.rollouts[0].answer.num_vertices for group in greedy]))
    return Scored(contender, score_groups(greedy), [_mean_iou(group) for group in sampled], vertices)


def _mean_iou(group: Group) -> float:
    return float(np.mean([rollout.iou for rollout in group.rollouts]))


def _sampled_units(config: RunConfig, split: str, num: int) -> Iterable[Unit]:
    for first in range(0, num, config.unit_groups):
        places = tuple(range(first, min(first + config.unit_groups, num)))
        yield Unit(split, 0, places, places, config.group_size, config.sampling)


def difference(scored: Sequence[Scored], arm: str, other: str) -> tuple[Interval, list[float]]:
    """Greedy gIoU of an arm less that of another: the mean with its 95 % bootstrap interval over scenes, of differences
    that are means over seeds; and the difference of each seed."""
    mine, theirs = (_by_seed(scored, name) for name in (arm, other))
    of_seeds = [mine[seed] - theirs.get(seed, theirs[min(theirs)]) for seed in sorted(mine)]
    return mean_interval(np.mean(of_seeds, axis=0)), [float(each.mean()) for each in of_seeds]


def _by_seed(scored: Sequence[Scored], arm: str) -> dict[int, np.ndarray]:
    return {
        one.contender.seed: np.array([scene.iou for scene in one.greedy])
        for one in scored
        if one.contender.arm.name == arm
    }


def arms_of(scored: Sequence[Scored]) -> list[Arm]:
    """The arms there are, in order, each once."""
    return list({one.contender.arm.name: one.contender.arm for one in scored}.values())


def numbers(scored: Sequence[Scored], arm: Arm) -> dict[str, float]:
    """Means of an arm over its seeds: giou, sampled_giou, boundary_iou, valid, vertices, seconds, steps, scenes."""
    mine = [one for one in scored if one.contender.arm.name == arm.name]
    stages = [summarise(one.greedy) for one in mine]
    spent = [one.contender.spent or Spent(0, 0.0, 0) for one in mine]
    columns: Mapping[str, list[float]] = {
        "giou": [stage.giou.value for stage in stages],
        "sampled_giou": [float(np.mean(one.sampled)) for one in mine],
        "boundary_iou": [stage.boundary_iou.value for stage in stages],
        "valid": [stage.valid.value for stage in stages],
        "vertices": [one.vertices for one in mine],
        "seconds": [one.seconds for one in spent],
        "steps": [float(one.steps) for one in spent],
        "scenes": [float(one.scenes) for one in spent],
    }
    return {name: float(np.mean(values)) for name, values in columns.items()}


def table(scored: Sequence[Scored]) -> Table:
    """A row an arm; means over seeds."""
    made = Table(title="The same checkpoint and seconds", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("")
    for column in ("gIoU", "sampled", "boundary", "valid", "vertices", "s", "steps"):
        made.add_column(column, justify="right", no_wrap=True)
    for arm in arms_of(scored):
        of = numbers(scored, arm)
        cells = [f"{of[name]:.3f}" for name in ("giou", "sampled_giou", "boundary_iou", "valid")]
        made.add_row(arm.title, *cells, f"{of['vertices']:.1f}", f"{of['seconds']:.0f}", f"{of['steps']:.0f}")
    return made


def lines(scored: Sequence[Scored]) -> list[str]:
    """RL less each other arm, with its interval over scenes, and by seed."""
    said = []
    for arm in arms_of(scored):
        if arm.name != RL.name:
            interval, seeds = difference(scored, RL.name, arm.name)
            each = ", ".join(f"{value:+.3f}" for value in seeds)
            told = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
            said.append(f"RL less {arm.title}: gIoU {told}; by seed {each}")
    return said


def as_json(scored: Sequence[Scored], left_out: Sequence[str]) -> dict[str, object]:
    """What --json prints: `arms` by name, `paired` by rl_minus_ARM (giou, low, high, seeds), and what was left out."""
    paired = {}
    for arm in arms_of(scored):
        if arm.name != RL.name:
            interval, seeds = difference(scored, RL.name, arm.name)
            paired[f"rl_minus_{arm.name}"] = {
                "giou": interval.value,
                "low": interval.low,
                "high": interval.high,
                "seeds": seeds,
            }
    arms = {arm.name: numbers(scored, arm) for arm in arms_of(scored)}
    return {"arms": arms, "paired": paired, "left_out": list(left_out)}
