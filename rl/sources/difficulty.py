"""How hard a policy found each example, by its archived answers, and which examples can teach it.

A group-relative algorithm learns from how the answers to one question differ: one that the policy always gets right,
or never, teaches it nothing. Answers are read a step at a time; what is kept grows with the examples alone.
"""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from envs.plugin import did_you_mean
from envs.polygons import AnswerStatus
from rl.pages.progress import bar
from rollout.archive.archive import RolloutArchive

_VALID = [status.value for status in AnswerStatus if status.valid]
_ROUNDING = 1e-9  # a mean of equal numbers may differ from them by as much
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Thresholds:
    """What the answers to an example must be like for it to be kept; all ranges include their ends."""

    by: str = "iou"
    """The number of an answer: iou, total, or reward_NAME for one of the run's rewards; 0 for an unreadable answer's
    iou and rewards."""
    min_mean: float = 0.1
    """Least mean of that number; below it the example is too hard."""
    max_mean: float = 0.9
    """Largest mean; above it the example is too easy."""
    min_spread: float = 0.02
    """Least standard deviation of the number over all answers."""
    min_best: float | None = None
    """Least number of the best answer; None for any."""
    max_unreadable: float | None = None
    """Largest share of answers that could not be read; None for any."""
    min_answers: int = 2
    """Fewest answers."""
    limit: int | None = None
    """Most examples, those of the widest spread; None for all."""
    seed: int | None = None
    """Draws those of the limit at random in place of the widest spread; None for the widest."""

    @property
    def number(self) -> str:
        """What `by` is called by people."""
        return "IoU" if self.by == "iou" else self.by.removeprefix("reward_")

    def __post_init__(self) -> None:
        """Refuse what no example could meet, and what would mean nothing."""
        if self.by not in ("iou", "total") and not self.by.startswith("reward_"):
            raise ValueError(f"--by is {self.by}; give iou, total, or reward_NAME for one of the run's rewards.")
        if self.min_mean > self.max_mean:
            raise ValueError(f"--min-mean is {self.min_mean:g}, above --max-mean {self.max_mean:g}; turn them round.")
        for name, value, least in (
            ("min-spread", self.min_spread, 0),
            ("min-answers", self.min_answers, 1),
            ("limit", self.limit, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value:g}; set it to {least} or more.")
        if self.max_unreadable is not None and not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"--max-unreadable is {self.max_unreadable:g}; give a share from 0 to 1.")
        if self.seed is not None and self.limit is None:
            raise ValueError("--seed draws the examples of a limit; give --limit too, or leave --seed out.")


@dataclass(frozen=True)
class Difficulties:
    """What the answers to each of N examples came to."""

    ids: Sequence[str]
    """[N] ids, in the order in which they were first asked."""
    answers: NDArray[np.int64]
    """[N] answers that have a number; one to which a reward does not apply has none."""
    mean: NDArray[np.float64]
    """[N] mean of the numbers; 0 without an answer."""
    spread: NDArray[np.float64]
    """[N] standard deviation of the numbers, divided by their count."""
    best: NDArray[np.float64]
    """[N] largest number; -inf without an answer."""
    unreadable: NDArray[np.float64]
    """[N] share of the answers that could not be read."""
    first_asked: NDArray[np.int64]
    """[N, 3] place of the run among those read, step and position at which an example was asked first."""


@dataclass(frozen=True)
class Stage:
    """One condition that examples must meet."""

    name: str
    """The condition in words."""
    kept: NDArray[np.bool_]
    """[N] which of all examples meet this condition and those before it."""

    @property
    def num(self) -> int:
        """How many examples meet it."""
        return int(self.kept.sum())


@dataclass(frozen=True)
class Choice:
    """The examples that are kept, stage after stage."""

    thresholds: Thresholds
    difficulties: Difficulties
    stages: Sequence[Stage]
    """The first keeps all that was asked."""

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Places of the kept examples among those asked, in order."""
        return np.flatnonzero(self.stages[-1].kept)

    @property
    def kept_ids(self) -> list[str]:
        """Ids of the kept examples."""
        return [self.difficulties.ids[place] for place in self.kept]

    def dropped_by(self, stage: int) -> NDArray[np.int64]:
        """Places of the examples that a stage, 1 or more, was the first to drop."""
        return np.flatnonzero(self.stages[stage - 1].kept & ~self.stages[stage].kept)

    def funnel(self) -> list[dict[str, str | int | float]]:
        """How many examples each stage keeps, and their share of all that was asked."""
        asked = self.stages[0].num
        return [{"stage": one.name, "examples": one.num, "share": one.num / asked} for one in self.stages]

    def quantiles(self) -> dict[str, dict[str, float]]:
        """Quantiles of mean and spread over every example that has an answer, by "0%", "10%", ..., "100%"."""
        found, there = self.difficulties, self.difficulties.answers > 0
        return {"mean": _quantiles(found.mean[there]), "spread": _quantiles(found.spread[there])}


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"{q:.0%}": float(value) for q, value in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}


def steps_range(text: str) -> range:
    """The steps that "10..20" (both ends included), "10..", "..20" or "10" mean; ValueError for anything else."""
    match = re.fullmatch(r"(\d*)\.\.(\d*)|(\d+)", text.strip())
    if match is None or text.strip() == "..":
        raise ValueError(f"--steps is {text!r}; give a range such as 10..20, 10.. or ..20, or one step.")
    first, last = (match[3], match[3]) if match[3] else (match[1] or "0", match[2] or f"{2**62}")
    if int(first) > int(last):
        raise ValueError(f"--steps is {text!r}, whose first step is after its last; turn them round.")
    return range(int(first), int(last) + 1)


class _Tally:
    """Running numbers of each example, joined batch by batch (Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        # Rows: count, mean, sum of squared differences from the mean, largest, unreadable.
        self._numbers = np.zeros((5, 0))
        self._first_asked = np.zeros((0, 3), np.int64)

    def add(
        self, ids: pa.Array, values: NDArray[np.float64], readable: NDArray[np.bool_], asked: NDArray[np.int64]
    ) -> None:
        """Answers [A] to some examples: their numbers, NaN where there is none, and where they were asked [A, 3]."""
        encoded = ids.dictionary_encode()
        of_answer = encoded.indices.to_numpy(zero_copy_only=False)
        names = encoded.dictionary.to_pylist()
        places = np.array([self._places.setdefault(name, len(self._places)) for name in names], np.int64)
        self._make_room(asked[np.unique(of_answer, return_index=True)[1]][places >= self._numbers.shape[1]])
        there = ~np.isnan(values)
        new = _numbers_of(of_answer[there], values[there], readable[there], len(names))
        self._numbers[:, places] = _joined(self._numbers[:, places], new)

    def _make_room(self, asked: NDArray[np.int64]) -> None:
        """Add examples that are new."""
        empty = np.array([[0.0], [0.0], [0.0], [-np.inf], [0.0]])
        self._numbers = np.concatenate([self._numbers, empty.repeat(len(asked), axis=1)], axis=1)
        self._first_asked = np.concatenate([self._first_asked, asked])

    def found(self) -> Difficulties:
        """What the answers so far came to."""
        count, mean, squares, best, unreadable = self._numbers
        num = np.maximum(count, 1)
        return Difficulties(
            ids=list(self._places),
            answers=count.astype(np.int64),
            mean=mean,
            spread=np.sqrt(squares / num),
            best=best,
            unreadable=unreadable / num,
            first_asked=self._first_asked,
        )


def _numbers_of(
    of_answer: NDArray[np.int64], values: NDArray[np.float64], readable: NDArray[np.bool_], num: int
) -> NDArray[np.float64]:
    """The five rows of `num` examples by their answers; of_answer: the example of each."""
    count = np.bincount(of_answer, minlength=num)
    mean = np.bincount(of_answer, values, num) / np.maximum(count, 1)
    squares = np.bincount(of_answer, (values - mean[of_answer]) ** 2, num)
    best = np.full(num, -np.inf)
    np.maximum.at(best, of_answer, values)
    return np.stack([count, mean, squares, best, np.bincount(of_answer, ~readable, num)])


def _joined(old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows of two sets of answers to the same examples, taken together."""
    count = old[0] + new[0]
    apart, share = new[1] - old[1], new[0] / np.maximum(count, 1)
    squares = old[2] + new[2] + apart**2 * old[0] * share
    return np.stack([count, old[1] + apart * share, squares, np.maximum(old[3], new[3]), old[4] + new[4]])


def difficulties(runs: Sequence[Path], by: str, steps: Container[int] | None, console: Console) -> Difficulties:
    """What the archived answers of some runs came to, taken together, of every step or of some.

    Raises FileNotFoundError for a run without an archive, ValueError where it lacks a reward, or no answer is of the
    steps.
    """
    tally = _Tally()
    for place, run in enumerate(runs):
        archive = RolloutArchive(run / "archive")
        _refuse_lacking(run, archive, by)
        columns = ["example_id", "status", by, "step", "position"]
        for batch in bar(archive.rollouts(columns, steps), f"answers of {run.name}", console):
            step, position = (batch[name].to_numpy() for name in ("step", "position"))
            readable = np.isin(np.array(batch["status"].to_pylist()), _VALID)
            values = batch[by].to_numpy(zero_copy_only=False).astype(np.float64)
            if by != "total":
                values = np.where(readable, values, 0.0)
            tally.add(batch["example_id"], values, readable, np.stack([np.full(len(step), place), step, position], 1))
    found = tally.found()
    if not found.ids:
        names = ", ".join(f"{run} (up to step {RolloutArchive(run / 'archive').last_step})" for run in runs)
        raise ValueError(f"no answer of the steps asked for is in {names}; give other --steps, or leave them out.")
    return found


def _refuse_lacking(run: Path, archive: RolloutArchive, by: str) -> None:
    if archive.last_step is None:
        raise FileNotFoundError(
            f"{run} holds no archived answer; give the folder of a run that `polytrace sample` or `polytrace train` "
            "has filled."
        )
    names = [f"reward_{name}" for name in archive.reward_names]
    if by.startswith("reward_") and by not in names:
        raise ValueError(f"{run} has no {by}{did_you_mean(by, names)} Give iou, total or one of {', '.join(names)}.")


def choose(found: Difficulties, thresholds: Thresholds) -> Choice:
    """The examples that meet all thresholds, the limit last.

    Raises ValueError where none does, with the stage that left none and how mean and spread are distributed.
    """
    kept, stages = np.ones(len(found.ids), np.bool_), list[Stage]()
    for name, meets in {"asked": kept, **dict(_conditions(found, thresholds))}.items():
        kept = kept & meets
        stages.append(Stage(name, kept))
    if thresholds.limit is not None:
        kept = _limited(found, kept, thresholds.limit, thresholds.seed)
        which = "the widest spread" if thresholds.seed is None else f"drawn by seed {thresholds.seed}"
        stages.append(Stage(f"at most {thresholds.limit:,}, {which}", kept))
    choice = Choice(thresholds, found, stages)
    if not len(choice.kept):
        raise ValueError(_nothing_left(choice))
    return choice


def _conditions(found: Difficulties, asked: Thresholds) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The conditions in order, with what meets each of them."""
    yield (
        f"{asked.min_answers} {'answers' if asked.min_answers > 1 else 'answer'} or more",
        found.answers >= max(asked.min_answers, 1),
    )
    if asked.max_unreadable is not None:
        yield f"{asked.max_unreadable:.0%} unreadable or less", found.unreadable <= asked.max_unreadable + _ROUNDING
    yield f"mean {asked.min_mean:g} or more (not too hard)", found.mean >= asked.min_mean - _ROUNDING
    yield f"mean {asked.max_mean:g} or less (not too easy)", found.mean <= asked.max_mean + _ROUNDING
    yield f"spread {asked.min_spread:g} or more", found.spread >= asked.min_spread - _ROUNDING
    if asked.min_best is not None:
        yield f"best {asked.min_best:g} or more", found.best >= asked.min_best - _ROUNDING


def _limited(found: Difficulties, kept: NDArray[np.bool_], limit: int, seed: int | None) -> NDArray[np.bool_]:
    """[N] those of the kept that fit into the limit; what is equally wide comes in the order of ids."""
    places = sorted(np.flatnonzero(kept).tolist(), key=lambda place: found.ids[place])
    if seed is None:
        chosen = sorted(places, key=lambda place: -found.spread[place])[:limit]
    else:
        chosen = np.random.default_rng(seed).permutation(places)[:limit].tolist() if places else []
    fits = np.zeros(len(kept), np.bool_)
    fits[chosen] = True
    return fits


def _nothing_left(choice: Choice) -> str:
    nums = [stage.num for stage in choice.stages]
    empty = nums.index(0)
    told = "; ".join(f"{name}: {_listed(values)}" for name, values in choice.quantiles().items() if values)
    return (
        f"no example is left: {nums[empty - 1]:,} of {nums[0]:,} came as far as “{choice.stages[empty].name}”, and "
        f"none of them meets it. Of all examples, by {choice.thresholds.number}: {told or 'no answer has it'}. "
        "Widen that threshold, or sample more answers."
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{quantile} {value:.3g}" for quantile, value in values.items())
