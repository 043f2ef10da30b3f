"""`polytrace bench selection`: what choosing among candidates is worth, beside what pools allow and simple rules reach.

oracle    the best choice that adding and leaving candidates finds by the truth (envs/geometry/pools.py)
meant     the candidates that supervision teaches: of each true mask the one of highest IoU
all, none, largest    rules that look at no image
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.codecs.base import ChoosingCodec
from envs.datasets.base import Env
from envs.example import Example
from envs.geometry.pools import iou, meant, oracle
from policies.families.base import DirectPolicy, PolicyContract
from rl.config.plugins import policy_plugin
from rl.config.run import RunConfig
from rl.evaluation.scores import Interval, mean_interval
from rl.run.parts import run_parts
from rollout.engines import direct

_AT_ONCE = 32
"""Questions that are answered together."""
Choice = NDArray[np.bool_]
RULES: Mapping[str, Callable[[Example, Choice], Choice]] = {
    "all": lambda _, pool: np.ones(len(pool), np.bool_),
    "none": lambda _, pool: np.zeros(len(pool), np.bool_),
    "largest": lambda _, pool: np.arange(len(pool)) == pool.sum(axis=(1, 2)).argmax(),
    "meant": lambda example, pool: meant(pool, example.truth.masks),
}
"""Choices that take no model."""


@dataclass(frozen=True)
class Selected:
    """IoU of choices for S questions."""

    ious: dict[str, NDArray[np.float64]]
    """[S] by name: the oracle, RULES, and each checkpoint by its folder."""
    milliseconds: dict[str, float]
    """Of a question, by checkpoint."""

    @property
    def giou(self) -> dict[str, Interval]:
        """Means with intervals over questions."""
        return {name: mean_interval(values) for name, values in self.ious.items()}

    @property
    def gains(self) -> dict[str, Interval]:
        """Of each checkpoint over the first, paired by question."""
        first, *others = self.milliseconds
        return {name: mean_interval(self.ious[name] - self.ious[first]) for name in others}


def measure(config: RunConfig, checkpoints: Sequence[Path], split: str, num: int, console: Console) -> Selected:
    """Greedy choices of each checkpoint, and the rules', for the first `num` questions of a split.

    Raises ValueError or FileNotFoundError for what is wrong with the config, or a policy that does not choose.
    """
    parts = run_parts(config)
    env: Env = parts.env.build(split=split)
    examples = [env[index] for index in range(min(num, len(env)))]
    ious = {"oracle": np.array([oracle(_pool(each), each.truth.union) for each in examples])}
    for name, rule in RULES.items():
        ious[name] = np.array([_iou(each, rule(each, _pool(each))) for each in examples])
    milliseconds: dict[str, float] = {}
    for checkpoint in checkpoints:
        policy: PolicyContract = (
            policy_plugin(config.policy | {"checkpoint": str(checkpoint)}, parts.codec).build().eval()
        )
        if not isinstance(policy, DirectPolicy) or not isinstance(policy.processor.codec, ChoosingCodec):
            raise ValueError(f"policy.name is {config.policy.get('name')}, which does not choose among candidates.")
        began, chosen = time.perf_counter(), list[Choice]()
        for first in track(range(0, len(examples), _AT_ONCE), str(checkpoint), console=console, transient=True):
            part = examples[first : first + _AT_ONCE]
            questions = [each.question(env.image(each.image)) for each in part]
            chosen += [response.tokens == 1 for response in direct.greedy(policy, questions)]
        milliseconds[str(checkpoint)] = 1e3 * (time.perf_counter() - began) / len(examples)
        ious[str(checkpoint)] = np.array([_iou(*each) for each in zip(examples, chosen, strict=True)])
    return Selected(ious, milliseconds)


def _pool(example: Example) -> NDArray[np.bool_]:
    if example.candidates is None:
        raise ValueError(f"{example.id} has no candidates to choose from; set env.candidates of composed scenes.")
    return example.candidates


def _iou(example: Example, chosen: Choice) -> float:
    """IoU of the union; 1 where nothing is chosen of what is not there."""
    covered: NDArray[np.bool_] = np.asarray(_pool(example)[chosen].any(axis=0))
    if not example.truth.union.any():
        return float(not chosen.any())
    return iou(covered, example.truth.union)


def table(found: Selected) -> Table:
    """A row for each way to choose."""
    made = Table(title=f"{len(found.ious['oracle'])} questions", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "gIoU", "less the first checkpoint", "ms a question"):
        made.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    for name, interval in found.giou.items():
        gain, took = found.gains.get(name), found.milliseconds.get(name)
        made.add_row(
            name,
            str(interval),
            "" if gain is None else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            "" if took is None else f"{took:.1f}",
        )
    return made


def as_json(found: Selected) -> dict[str, object]:
    """What --json prints: `giou` and `gains` with value, low and high, and `milliseconds`."""

    def told(each: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
        return {name: dict(zip(("value", "low", "high"), one.numbers, strict=True)) for name, one in each.items()}

    return {"giou": told(found.giou), "gains": told(found.gains), "milliseconds": found.milliseconds}
