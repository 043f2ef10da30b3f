"""`polytrace archive show`: which archived answers are shown, and what is shown of each."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.geometry.contours import rings_from_mask
from envs.polygons import Answer, Ring
from rl.browse.examples import Asked, asked_examples
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row

_Place = tuple[int, int, int]
_PLACE = ("step", "position", "index")


@dataclass(frozen=True)
class Wanted:
    """Which answers are shown, by step, position and index; of the last step where nothing is asked for."""

    step: int | None = None
    """Step of the answers; None for any."""
    position: int | None = None
    """Position of their groups within the step; None for any."""
    example: str | None = None
    """Id of the example that they answer; None for any."""
    status: str | None = None
    """Status of the answers; None for any."""
    worst: int | None = None
    """Number of answers of the lowest IoU, the lowest first."""
    best: int | None = None
    """Number of answers of the highest IoU, the highest first."""
    limit: int = 64
    """Most answers that are shown, where neither worst nor best is asked for."""

    def __post_init__(self) -> None:
        if self.worst is not None and self.best is not None:
            raise ValueError("both worst and best are asked for; show one after the other.")
        for name, value in {"worst": self.worst, "best": self.best, "limit": self.limit}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; set it to 1 or more.")

    @property
    def filters(self) -> dict[str, int | str]:
        """What an answer must have, by the setting's name."""
        asked = {"step": self.step, "position": self.position, "example": self.example, "status": self.status}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def says(self) -> str:
        """What is asked for, in words."""
        parts = [f"{name} {value}" for name, value in self.filters.items()]
        order = f"{self.worst} worst" if self.worst else f"{self.best} best" if self.best else ""
        return ", ".join(([order] if order else []) + parts) or "last step"


@dataclass(frozen=True)
class ShownAnswer:
    """An answer beside what was asked."""

    row: dict[str, Any]
    """Row of the rollouts table."""
    answer: Answer
    asked: Asked

    @property
    def truth_rings(self) -> list[Ring]:
        """Outline of the truth, pixel rings."""
        return [ring for mask in self.asked.truth.masks for ring in rings_from_mask(mask)]

    @property
    def terms(self) -> dict[str, float | None]:
        """Each reward term by name."""
        prefix = "reward_"
        return {name.removeprefix(prefix): term for name, term in self.row.items() if name.startswith(prefix)}

    @property
    def title(self) -> str:
        """Where it is in the archive, and the phrase."""
        step, position, index = (self.row[name] for name in _PLACE)
        return f"Step {step}, group {position}, answer {index}: “{self.asked.phrase}”"


@dataclass(frozen=True)
class Shown:
    """The answers to show."""

    run: Path
    wanted: Wanted
    answers: list[ShownAnswer]
    num_fitting: int
    """Answers of the archive that fit, shown or not."""

    @property
    def problems(self) -> list[str]:
        """Why images are missing, each reason once."""
        return sorted({one.asked.problem for one in self.answers if one.asked.problem})


def choose(run: Path, wanted: Wanted) -> Shown:
    """The wanted answers of a run's archive, two passes over it: a few columns of all rows, then the rows to show.

    Raises FileNotFoundError where there is no archive, ValueError where no answer fits or a shard cannot be read.
    """
    archive = RolloutArchive(run / "archive")
    last_step = archive.last_step
    only = last_step if wanted.says == "last step" else wanted.step
    steps = None if only is None else {only}
    fitting = _Counted(_fitting(archive, wanted, steps))
    if wanted.best:
        places = [row[1:] for row in heapq.nsmallest(wanted.best, fitting, key=lambda row: (-row[0], row[1:]))]
    elif wanted.worst:
        places = [row[1:] for row in heapq.nsmallest(wanted.worst, fitting)]
    else:
        places = sorted(row[1:] for row in heapq.nsmallest(wanted.limit, fitting, key=lambda row: row[1:]))
    if not places:
        raise ValueError(
            f"no answer in {run} fits {wanted.says}; its archive reaches "
            f"{'no step' if last_step is None else f'step {last_step}'}."
        )
    rows = _rows(archive, places)
    examples = asked_examples(run, {row["example_id"] for row in rows})
    answers = [ShownAnswer(row, answer_from_row(row), examples[row["example_id"]]) for row in rows]
    return Shown(run, wanted, answers, fitting.num)


class _Counted:
    """Rows handed on and counted."""

    def __init__(self, rows: Iterator[tuple[float, int, int, int]]) -> None:
        self._rows = rows
        self.num = 0

    def __iter__(self) -> Iterator[tuple[float, int, int, int]]:
        for row in self._rows:
            self.num += 1
            yield row


def _fitting(archive: RolloutArchive, wanted: Wanted, steps: set[int] | None) -> Iterator[tuple[float, int, int, int]]:
    """IoU, step, position and index of each answer that fits."""
    asked = wanted.filters
    columns = ["example_id" if name == "example" else name for name in asked]
    for batch in archive.rollouts(["iou", *_PLACE, *columns], steps):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        for row in rows:
            if row[4:] == tuple(asked.values()):
                yield row[:4]


def _rows(archive: RolloutArchive, places: list[_Place]) -> list[dict[str, Any]]:
    """The rows at these places, in their order."""
    wanted, found = set(places), dict[_Place, dict[str, Any]]()
    for batch in archive.rollouts(steps={place[0] for place in places}):
        keys = zip(*(batch.column(name).to_pylist() for name in _PLACE), strict=True)
        for k, key in enumerate(keys):
            if key in wanted:
                found[key] = batch.slice(k, 1).to_pylist()[0]
    return [found[place] for place in places]
