"""Where the time of a demo step goes: the main loop itself, Ray and all, with a clock around each of its parts."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.learner.batches.batch import Batch
from rl.run.parts import RunParts, run_parts
from rl.run.steps import ScoredStep
from rl.train import Run, start_actors, take_step
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
        """Seconds of the whole step."""
        return sum(self.seconds.values())

    @property
    def small_share(self) -> float:
        """Share of rewards, archive and push together."""
        return sum(self.seconds[name] for name in SMALL) / self.total


class TimedRun(Run):
    """A run that keeps the seconds of each part of its steps."""

    def __init__(self, config: RunConfig, parts: RunParts, scorer: Scorer) -> None:
        super().__init__(config, parts, start_actors(config, parts), first_step=0)
        self._scorer = scorer
        self.laps: list[dict[str, float]] = []

    def set_weights(self, step: int) -> None:
        """Begin another step's laps with its push of weights."""
        self.laps.append({})
        with self._lap("weight push"):
            super().set_weights(step)

    def collect(self, step: int) -> list[Group]:
        """Time the sampling, and, apart from it, the scoring that is part of it.

        Workers score while others sample: taken whole, in one thread, it is at most what it costs a step.
        """
        with self._lap("sampling"):
            groups = super().collect(step)
        with self._lap("scoring"):
            _score(self._scorer, groups)
        self.laps[-1]["sampling"] -= self.laps[-1]["scoring"]
        return groups

    def total(self, step: int, groups: list[Group]) -> ScoredStep:
        """Time totals and advantages."""
        with self._lap("totals"):
            return super().total(step, groups)

    def archive(self, scored: ScoredStep) -> None:
        """Time the writing of a step, which a run leaves to a thread beside the learner."""
        with self._lap("archive append"):
            super().archive(scored)
            self.archiving.flush()

    def pack(self, scored: ScoredStep) -> Batch:
        """Time the packing."""
        with self._lap("pack"):
            return super().pack(scored)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Time the learner."""
        with self._lap("learner step"):
            return super().learn(batch)

    def record(self, scored: ScoredStep, batch: Batch, stats: dict[str, float]) -> dict[str, float]:
        """Time what is logged."""
        with self._lap("metrics"):
            return super().record(scored, batch, stats)

    @contextmanager
    def _lap(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.laps[-1][name] = time.perf_counter() - begun


def measure(overrides: Sequence[str] = (), steps: int = _STEPS) -> DemoStep:
    """Take steps of the config `demo`, changed by `overrides`, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="polytrace-bench-") as folder:
        config = load_settings(RunConfig, Path("tiny"), [f"run={folder}/demo", *overrides])
        parts = run_parts(config)
        scorer = Scorer(parts.rewards.recipes)
        run = TimedRun(config, parts, scorer)
        for step in range(_WARM + steps):
            take_step(run, step)
        scorer.close()
        run.close()
    laps = run.laps[_WARM:]
    return DemoStep({name: float(np.median([lap[name] for lap in laps])) for name in laps[0]})


def _score(scorer: Scorer, groups: Sequence[Group]) -> None:
    """What workers do with answers that were read: the truths made scorable, the rewards asked."""
    for group in groups:
        answers = [rollout.answer for rollout in group.rollouts]
        target = Target.from_truth(group.example.truth)
        scorer.columns(compare(answers, target, group.example.id, group.example.prompt.text))


def table(found: DemoStep) -> Table:
    """A row per part, the largest first."""
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
