"""`polytrace bench headroom`: what RL could gain by choosing better among answers that a policy gives already.

The consensus of N samples is the one with the highest mean IoU with all of them, the minimum Bayes risk choice (Kumar
and Byrne 2004) under IoU: the answer of highest expected reward by what the policy itself believes. It sees no truth,
so its gain over the greedy answer is what a better rule of decision is worth, without learning to see anything new;
RL, which maximises expected reward, can teach the greedy answer that much. The best of N, which the truth chooses, is
a bound and not a hope.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from envs.polygons import flat_answers
from rewards.target import Target
from rl.config.run import RunConfig, num_gpus
from rl.evaluation.answers import greedy_groups, score_groups
from rl.evaluation.scores import Interval, mean_interval
from rl.run.parts import run_parts, worker_settings
from rl.run.preflight import object_store_bytes, preflight
from rollout import cluster
from rollout.pool.pool import WorkerPool
from rollout.records import Group
from rollout.worker import Unit

TITLES = {
    "greedy": "greedy answer",
    "sampled": "mean of samples",
    "consensus": "consensus of samples",
    "best": "best of samples",
}


@dataclass(frozen=True)
class Headroom:
    """Mean IoU of a policy's answers to S scenes, chosen in different ways."""

    giou: dict[str, Interval]
    """By a key of TITLES, with intervals over scenes."""
    gain: Interval
    """Consensus less greedy, paired by scene."""
    temperature: float
    """What was sampled at."""
    samples: int
    """Samples of a scene."""
    greedy_baseline: float
    """Mean square of a sample's IoU less that of the greedy answer, over the variance among samples of a scene; 1 would
    be the least of any baseline."""

    def group_baseline(self, group_size: int) -> float:
        """The same, with the mean of the other answers of a group as the baseline: 1 + 1 / (G - 1)."""
        return 1 + 1 / (group_size - 1)


def consensus(ious: NDArray[np.float64]) -> int:
    """Which of N answers agrees most with all of them; ious: [N, N] of each with each. The first of equals."""
    return int(ious.mean(axis=1).argmax())


def mutual_iou(group: Group) -> NDArray[np.float64]:
    """[N, N] IoU of the answers of a group with each other: 1 for two that say "nothing", 0 with an unreadable one."""
    size = group.example.image
    rings = [rollout.answer.rings_px for rollout in group.rollouts]
    flat = flat_answers(rings)
    ious = np.stack([Target.from_rings(one, size.height, size.width).overlap_flat(flat).iou for one in rings])
    valid = np.array([rollout.answer.status.valid for rollout in group.rollouts])
    return np.where(valid & valid[:, None], ious, 0.0)


def measure(config: RunConfig, split: str, num: int, samples: int, console: Console) -> Headroom:
    """Ask the config's checkpoint about the first `num` scenes of a split, greedily and `samples` times each.

    Raises ValueError or FileNotFoundError for what is wrong with the config.
    """
    parts = run_parts(config)
    preflight(config, parts, learns=False)
    cluster.start(config.ray.address, config.pool.workers, num_gpus(config), object_store_bytes(config, parts))
    pool = WorkerPool(config.pool.without_ranks(), worker_settings(config, parts))
    num = min(num, len(parts.env.build(split=split)))
    with console.status(f"{num} scenes of split {split}"):
        greedy = greedy_groups(pool, config, split, num, Path(parts.policy.settings["checkpoint"]))
        groups = pool.answer(_units(config, split, num, samples))
    pool.close()
    cluster.stop()
    return of_groups([score.iou for score in score_groups(greedy)], groups, config.sampling.at(0).temperature)


def of_groups(greedy: Sequence[float], groups: Sequence[Group], temperature: float) -> Headroom:
    """From the IoU of greedy answers to S scenes, and groups of samples of the same."""
    ious = np.array([[rollout.iou for rollout in group.rollouts] for group in groups])
    chosen = ious[np.arange(len(groups)), [consensus(mutual_iou(group)) for group in groups]]
    columns = {"greedy": np.array(greedy), "sampled": ious.mean(1), "consensus": chosen, "best": ious.max(1)}
    return Headroom(
        {name: mean_interval(values) for name, values in columns.items()},
        mean_interval(chosen - np.array(greedy)),
        temperature,
        ious.shape[1],
        _greedy_baseline(ious, np.array(greedy)),
    )


def _greedy_baseline(ious: NDArray[np.float64], greedy: NDArray[np.float64]) -> float:
    """ious: [S, N] of samples; greedy: [S]. 1 where samples do not differ at all."""
    variance = float(ious.var(axis=1, ddof=1).mean())
    return float(np.square(ious - greedy[:, None]).mean()) / variance if variance > 0 else 1.0


def _units(config: RunConfig, split: str, num: int, samples: int) -> Iterable[Unit]:
    at_once = max(1, config.unit_groups * config.group_size // samples)
    for first in range(0, num, at_once):
        places = tuple(range(first, min(first + at_once, num)))
        yield Unit(split, 0, places, places, samples, config.sampling.at(0))


def table(found: Headroom) -> Table:
    """A row for each way to choose."""
    made = Table(title=f"{found.samples} samples at temperature {found.temperature:g}", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("")
    made.add_column("gIoU", justify="right", no_wrap=True)
    for name, title in TITLES.items():
        made.add_row(title, str(found.giou[name]))
    return made


def line(found: Headroom) -> str:
    """What RL could gain by a better choice."""
    gain = found.gain
    return f"consensus less greedy: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def baseline_line(found: Headroom, group_size: int) -> str:
    """What is left of the spread of rewards by two baselines; GSPO subtracts the group's mean."""
    return (
        f"spread of advantages, of which 1 is the least: against the others of a group of {group_size} "
        f"{found.group_baseline(group_size):.2f}, against the greedy answer {found.greedy_baseline:.2f}"
    )


def as_json(found: Headroom) -> dict[str, object]:
    """What --json prints: each way to choose, and `gain`, with value, low and high."""
    rows = {name: dict(zip(("value", "low", "high"), one.numbers, strict=True)) for name, one in found.giou.items()}
    gain = dict(zip(("value", "low", "high"), found.gain.numbers, strict=True))
    return {
        "giou": rows,
        "gain": gain,
        "temperature": found.temperature,
        "samples": found.samples,
        "greedy_baseline": found.greedy_baseline,
    }
