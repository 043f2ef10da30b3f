"""Where the time of a demo step goes: the main loop's own parts, Ray and all, with a clock between them."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.learner.batch import pack
from rl.run.parts import run_parts
from rl.run.step_numbers import group_histograms, group_metrics, shaping_metrics
from rl.run.steps import group_terms, step_units, with_totals
from rl.train import Run, start_actors
from rollout.records import Group

BAR = 0.05
"""Share of a step that rewards, archive and push of the weights may take together."""
SMALL = ("scoring", "archive append", "weight push")
"""What the bar is about."""
_WARM, _STEPS = 2, 8


@dataclass(frozen=True)
class DemoStep:
    """Seconds of the parts of a step, the median of several; evaluations and checkpoints are not among them."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Of the whole step."""
        return sum(self.seconds.values())

    @property
    def small_share(self) -> float:
        """Share of rewards, archive and push together."""
        return sum(self.seconds[name] for name in SMALL) / self.total


def measure(overrides: Sequence[str] = (), steps: int = _STEPS) -> DemoStep:
    """Take steps of the config `demo`, changed by `overrides`, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        config = load_settings(RunConfig, Path("demo"), [f"run={folder}/demo", *overrides])
        parts = run_parts(config)
        run = Run(config, parts, start_actors(config, parts), resume=False)
        scorer = Scorer(run.parts.rewards.recipes)
        laps = [_laps(run, scorer, step) for step in range(_WARM + steps)][_WARM:]
        scorer.close()
        run.close()
    return DemoStep({name: float(np.median([lap[name] for lap in laps])) for name in laps[0]})


def _laps(run: Run, scorer: Scorer, step: int) -> dict[str, float]:
    """Seconds of the parts of one step, as rl/train.py takes it."""
    laps: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        laps[name] = now - started
        started = now

    run.pool.set_weights(run.learner.weights(), version=step)
    lap("weight push")
    groups = run.pool.answer(step_units(run.config, step, len(run.train)))
    lap("sampling")
    terms = group_terms(groups)
    shaped = run.shaper.shape(step, terms)
    groups = with_totals(groups, shaped.totals)
    lap("totals")
    run.archive.append(step, groups)
    lap("archive append")
    batch = pack(groups, run.algorithm)
    lap("pack")
    run.learner.step(batch)
    lap("learner step")
    run.metrics.scalars(step, group_metrics(groups) | shaping_metrics(run.shaper, step, terms, shaped))
    run.metrics.histograms(step, group_histograms(groups))
    lap("metrics")
    _score(scorer, groups)
    lap("scoring")
    # Workers score while others sample: taken whole, in one thread, it is at most what it costs a step.
    laps["sampling"] -= laps["scoring"]
    return laps


def _score(scorer: Scorer, groups: Sequence[Group]) -> None:
    """What workers do with answers that were read: the truths made scorable, the rewards asked."""
    for group in groups:
        answers = [rollout.answer for rollout in group.rollouts]
        target = Target.from_truth(group.example.truth)
        scorer.columns(compare(answers, target, group.example.id, group.example.prompt.text))


def table(found: DemoStep) -> Table:
    """A row a part, the largest first."""
    made = Table(title=f"A step of the demo, {found.total:.2f} s", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("part")
    made.add_column("ms", justify="right")
    made.add_column("share", justify="right")
    for name, seconds in sorted(found.seconds.items(), key=lambda item: -item[1]):
        made.add_row(name, f"{1e3 * seconds:.1f}", f"{seconds / found.total:.1%}")
    made.caption = f"{', '.join(SMALL)} together {found.small_share:.1%}; the bar is {BAR:.0%}"
    return made


def as_json(found: DemoStep) -> dict[str, object]:
    """Under `demo_step`: seconds and shares by part, and the share that the bar is about."""
    shares = {name: seconds / found.total for name, seconds in found.seconds.items()}
    small = {"parts": list(SMALL), "share": found.small_share, "bar": BAR}
    return {"demo_step": {"seconds": found.seconds, "total": found.total, "shares": shares, "small": small}}
