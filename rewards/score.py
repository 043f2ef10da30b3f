"""Scoring: answers compared with a target once, and what each reward says of them.

`Target` makes a truth scorable, `compare` compares a group of answers with it in one kernel call, and `term` is what a
reward says of one of them. What is not asked of every answer (boxes, boundaries, instances) is computed for the whole
group when a reward first asks. Letters: A answers (a group), K instances of a truth, P of an answer. Frames: pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Answer, AnswerStatus, Box, FlatAnswers, flat_answers
from rewards import kernels
from rewards.target import Overlap, Target

__all__ = ["Answers", "Comparison", "Comparisons", "Overlap", "Reward", "RewardBreakdown", "Target", "compare", "term"]


@dataclass(frozen=True)
class RewardBreakdown:
    """Why an answer got its reward."""

    status: AnswerStatus
    """How the answer read; anything but `ok` and `empty` earns 0 on every term."""
    terms: dict[str, float | None]
    """Each reward before weighting, by its name; None where it does not apply."""


@dataclass(frozen=True)
class Answers:
    """A answers as scoring wants them: what every reward asks of all of them at hand, the rest by answer."""

    whole: Sequence[Answer]
    """[A] the answers themselves; may build them when they are asked for."""
    statuses: Sequence[AnswerStatus]
    """[A]"""
    num_vertices: Sequence[int]
    """[A] vertices of all rings of an answer."""
    flat: FlatAnswers
    """The rings that count: those of valid answers."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Answers":
        """From A answers."""
        rings = [answer.rings_px if answer.status.valid else [] for answer in answers]
        statuses = [answer.status for answer in answers]
        return cls(answers, statuses, [answer.num_vertices for answer in answers], flat_answers(rings))


@dataclass(frozen=True)
class Comparisons(Sequence["Comparison"]):
    """A answers against one target, compared once for all rewards."""

    answers: Answers
    target: Target
    example_id: str
    """Which example was asked; "" where nobody said."""
    phrase: str
    """What was asked for."""
    intersection_px: list[int]
    """[A] pixels of the answer that are true."""
    answer_area_px: list[int]
    """[A] pixels of the answer; 0 where its status is not valid."""
    iou: list[float]
    """[A] intersection over union. With an empty target: 1 for the status `empty`, 0 for any other answer."""
    centroids_px: list[list[float]]
    """[A][2] mean (x, y) of the answer's pixel centres; NaN without a pixel."""

    def __len__(self) -> int:
        return len(self.iou)

    def __getitem__(self, k: int) -> "Comparison":  # type: ignore[override]  # one at a time, not by slices
        if not 0 <= k < len(self.iou):
            raise IndexError(k)
        return Comparison(self, k)

    def __iter__(self) -> Iterator["Comparison"]:
        return (Comparison(self, k) for k in range(len(self.iou)))

    def only(self, k: int) -> "Comparisons":
        """The comparison of answer k alone, small enough to travel."""
        return compare([self.answers.whole[k]], self.target, self.example_id, self.phrase)

    @cached_property
    def boundary_iou(self) -> list[float]:
        """[A] IoU of the boundary bands, which are 2 % of the image's diagonal wide; 1 where both are empty."""
        return self.target.boundary_iou(self.answers.flat).tolist()

    @cached_property
    def shapes(self) -> list[list[float]]:
        """[A][9] box, a point inside and second moments of each answer (see `shapes` in rewards/kernels.py)."""
        return kernels.shapes(*self.answers.flat, self.target.ignored, self.target.width).tolist()

    def instance_iou(self, k: int) -> NDArray[np.float64]:
        """[P, K] IoU of each instance of answer k with each instance of the truth."""
        instances = [instance.rings_px for instance in self.answers.whole[k].instances]
        return self.target.instance_iou(flat_answers(instances))


class Comparison:
    """One answer against a target: a light view of its entry in Comparisons."""

    __slots__ = ("_all", "_k")

    def __init__(self, comparisons: Comparisons, k: int) -> None:
        self._all, self._k = comparisons, k

    @property
    def answer(self) -> Answer:
        """What the model said."""
        return self._all.answers.whole[self._k]

    @property
    def status(self) -> AnswerStatus:
        """How it read."""
        return self._all.answers.statuses[self._k]

    @property
    def num_vertices(self) -> int:
        """Vertices of all its rings."""
        return self._all.answers.num_vertices[self._k]

    @property
    def target(self) -> Target:
        """What is true."""
        return self._all.target

    @property
    def example_id(self) -> str:
        """Which example was asked; "" where nobody said."""
        return self._all.example_id

    @property
    def phrase(self) -> str:
        """What was asked for."""
        return self._all.phrase

    @property
    def intersection_px(self) -> int:
        """Pixels of the answer that are true."""
        return self._all.intersection_px[self._k]

    @property
    def answer_area_px(self) -> int:
        """Pixels of the answer; 0 where its status is not valid."""
        return self._all.answer_area_px[self._k]

    @property
    def iou(self) -> float:
        """Intersection over union. With an empty target: 1 for the status `empty`, 0 for any other answer."""
        return self._all.iou[self._k]

    @property
    def centroid_px(self) -> tuple[float, float] | None:
        """Mean (x, y) of the answer's pixel centres; None where it has no pixel."""
        if not self._all.answer_area_px[self._k]:
            return None
        x, y = self._all.centroids_px[self._k]
        return x, y

    @property
    def box_px(self) -> Box | None:
        """(x0, y0, x1, y1) tightly around the answer's pixels; None where it has no pixel."""
        x0, y0, x1, y1 = self._all.shapes[self._k][:4]
        return (x0, y0, x1, y1) if self.answer_area_px else None

    @property
    def inner_point_px(self) -> tuple[float, float] | None:
        """(x, y) of a pixel centre inside: the middle of its longest run in a row, topmost, then leftmost; or None."""
        x, y = self._all.shapes[self._k][4:6]
        return (x, y) if self.answer_area_px else None

    @property
    def second_moments_px(self) -> tuple[float, float, float] | None:
        """(xx, xy, yy): mean squares and product of the distances from the centroid, px^2; None without a pixel."""
        xx, xy, yy = self._all.shapes[self._k][6:]
        return (xx, xy, yy) if self.answer_area_px else None

    @property
    def boundary_iou(self) -> float:
        """IoU of the boundary bands of answer and truth (Cheng et al. 2021), in [0, 1]; 1 where both are empty."""
        return self._all.boundary_iou[self._k]

    @property
    def instance_iou(self) -> NDArray[np.float64]:
        """[P, K] IoU of each instance of the answer with each instance of the truth."""
        return self._all.instance_iou(self._k)


class Reward(Protocol):
    """One term: a dataclass of this name in a file of this folder; its fields are its settings."""

    @property
    def weight(self) -> float:
        """Share of this term in the weighted mean, 0 or more."""
        ...

    def __call__(self, comparison: Comparison) -> float | None:
        """The term for one answer, in [0, 1]; None where it does not apply."""
        ...


def compare(answers: Sequence[Answer] | Answers, target: Target, example_id: str = "", phrase: str = "") -> Comparisons:
    """A answers of a group against one target, in one kernel call. What an invalid answer drew counts nowhere."""
    if not isinstance(answers, Answers):
        answers = Answers.of(answers)
    overlap = target.overlap_flat(answers.flat)
    # Only saying so is right about an empty truth: not an unreadable answer, nor an outline too thin to hold a pixel.
    empty = [float(status is AnswerStatus.EMPTY) for status in answers.statuses] if not target.area_px else None
    return Comparisons(
        answers,
        target,
        example_id,
        phrase,
        overlap.intersection.tolist(),
        overlap.area.tolist(),
        overlap.iou.tolist() if empty is None else empty,
        overlap.centroid.tolist(),
    )


_INVALID = frozenset(status for status in AnswerStatus if not status.valid)


def term(reward: Reward, comparison: Comparison) -> float | None:
    """What a reward says of an answer, under two rules that hold for every reward.

    An invalid answer earns 0.0 whether the reward applies or not. Where nothing is true, any answer but `empty` earns
    0.0 wherever the reward applies: a shape drawn for a thing that is not there is worth nothing, however well drawn.
    """
    status = comparison.status
    if status in _INVALID:
        return 0.0
    value = reward(comparison)
    if status is not AnswerStatus.EMPTY and not comparison.target.area_px and value is not None:
        return 0.0
    return value
