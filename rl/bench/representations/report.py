"""Kinds of answers side by side: means over seeds with intervals, and what each is above another at the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rl.bench.representations.scores import Scored, Timed
from rl.bench.representations.trainings import RL, RL_REFINED, SFT, SFT_REFINED, STAGES
from rl.evaluation.scores import Interval, summarise
from rl.lab.ablation_scores import t_interval

METRICS = ("giou", "boundary_iou", "valid")
_GAINS = ((RL, SFT), (SFT_REFINED, SFT), (RL_REFINED, RL), (SFT_REFINED, RL))
"""Stages of one kind whose differences are told; what each took stands beside it, and need not be alike."""


@dataclass(frozen=True)
class Row:
    """One kind of answer after one stage."""

    name: str
    """Of the representation."""
    stage: str
    """Key of STAGES."""
    scores: dict[str, dict[int, float]]
    """By metric and seed."""
    seconds: float
    """Of all training up to here, mean over seeds."""
    steps: float
    tokens: float
    """Of an answer."""
    oracle: float | None
    """Of the candidates, where there are some."""
    milliseconds: float | None
    """Of a question asked alone, median; None where it was not timed."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}: {STAGES[self.stage]}"

    def interval(self, metric: str) -> Interval:
        """Mean over seeds with its 95 % t-interval."""
        return t_interval([*self.scores[metric].values()])

    def less(self, other: "Row", metric: str) -> Interval | None:
        """Mean over common seeds of the difference, with its 95 % t-interval; None without a common one."""
        mine, theirs = self.scores[metric], other.scores[metric]
        seeds = sorted(mine.keys() & theirs.keys())
        return t_interval([mine[seed] - theirs[seed] for seed in seeds]) if seeds else None


def rows(scored: Sequence[Scored], timed: Sequence[Timed]) -> list[Row]:
    """A row for each representation and stage, in the order of the first seed."""
    asked = dict.fromkeys((one.stage.representation.name, one.stage.stage) for one in scored)
    return [_row(name, stage, scored, timed) for name, stage in asked]


def _row(name: str, stage: str, scored: Sequence[Scored], timed: Sequence[Timed]) -> Row:
    mine = [one for one in scored if (one.stage.representation.name, one.stage.stage) == (name, stage)]
    found = {one.stage.seed: summarise(one.scores).intervals() for one in mine}
    took = [one.seconds for one in timed if (one.stage.representation.name, one.stage.stage) == (name, stage)]
    best = [one.oracle for one in mine if one.oracle is not None]
    return Row(
        name,
        stage,
        {metric: {seed: of[metric].value for seed, of in found.items()} for metric in METRICS},
        float(np.mean([one.stage.seconds for one in mine])),
        float(np.mean([one.stage.steps for one in mine])),
        float(np.mean([one.tokens for one in mine])),
        float(np.mean(best)) if best else None,
        1e3 * float(np.median(took[0])) if took else None,
    )


def table(found: Sequence[Row]) -> Table:
    """80 characters wide."""
    made = Table(title="The same questions and seconds", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("")
    for column in ("gIoU", "boundary", "valid", "s", "tokens", "ms"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in found:
        cells = [Text(plus_minus(row.interval(metric))) for metric in METRICS[:2]]
        took = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        valid = f"{row.interval('valid').value:.3f}"
        made.add_row(row.title, *cells, valid, f"{row.seconds:.0f}", f"{row.tokens:.1f}", took)
    return made


def plus_minus(interval: Interval, form: str = ".3f") -> str:
    """The mean and half of a symmetric interval; the mean alone where there is none."""
    half = interval.high - interval.value
    return format(interval.value, form) + (f" ± {half:.3f}" if np.isfinite(half) else "")


def lines(found: Sequence[Row]) -> list[str]:
    """What each stage adds, and what each kind of answer is above the first after the same stage."""
    by_key = {(row.name, row.stage): row for row in found}
    names = [*dict.fromkeys(row.name for row in found)]
    said = [
        _less(by_key[name, stage], by_key[name, before])
        for name in names
        for stage, before in _GAINS
        if (name, stage) in by_key and (name, before) in by_key
    ]
    first = names[0]
    said += [
        _less(by_key[name, stage], by_key[first, stage])
        for stage in STAGES
        for name in names[1:]
        if (name, stage) in by_key and (first, stage) in by_key
    ]
    return said + [
        f"{row.name} chooses from candidates whose best choice has {row.oracle:.3f}"
        for row in found
        if row.oracle is not None and row.stage == SFT
    ]


def _less(row: Row, other: Row) -> str:
    gains = [(metric, row.less(other, metric)) for metric in METRICS[:2]]
    told = ", ".join(f"{metric} {plus_minus(gain, '+.3f')}" for metric, gain in gains if gain is not None)
    return f"{row.title} less {other.title}: {told}"


def as_json(found: Sequence[Row]) -> dict[str, object]:
    """What --json prints: `rows` by NAME and stage, each score by seed and with its interval."""
    told: dict[str, dict[str, object]] = {}
    for row in found:
        scores = {
            metric: dict(zip(("mean", "low", "high"), row.interval(metric).numbers, strict=True)) for metric in METRICS
        }
        told.setdefault(row.name, {})[row.stage] = {
            **scores,
            "seeds": row.scores,
            "seconds": row.seconds,
            "steps": row.steps,
            "tokens": row.tokens,
            "oracle": row.oracle,
            "milliseconds": row.milliseconds,
        }
    return {"rows": told}
