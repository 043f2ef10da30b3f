"""Answers compared with a target once, for all rewards: what they share, and a light view of each.

What is not asked of every answer (boxes, boundaries, instances, what a refiner made of it) is computed for the whole
group when a reward first asks. Letters: A answers (a group), K instances of a truth, P of an answer. Frames: pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.geometry.spans import Spans, spans_from_rings
from envs.polygons import Answer, AnswerStatus, Box, FlatAnswers, Ring, flat_answers, split_rings
from rewards.kernels import overlap as kernels
from rewards.kernels.bands import shared_pixels, span_sums, without
from rewards.places import place_score
from rewards.target import Target


def unmended(target: Target, outlines: FlatAnswers, refined: FlatAnswers) -> NDArray[np.float64]:
    """[A] in [0, 1]: 1 less the IoU of M, or |wrong in outline and refined mask| / |T | (C & R)|; 0 without a pixel.

    outlines, refined: A answers each, the k-th refined mask, as exact rings, made of the k-th outline. It is never more
    than 1 less the IoU of the outline, nor than 1 less that of the refined mask; where both are one, it is just that.
    """
    shares = np.zeros(outlines.num_answers)
    for a in range(outlines.num_answers):
        drawn, mended = (_counted(target, flat.part(a, a + 1)) for flat in (outlines, refined))
        outside = shared_pixels(drawn, without(mended, target.spans))
        missed = span_sums(without(without(target.spans, drawn), mended))[0]
        if target.area_px + outside:
            shares[a] = (outside + missed) / (target.area_px + outside)
    return shares


def _counted(target: Target, one: FlatAnswers) -> Spans:
    """The pixels of the only answer of `one` that count."""
    return Spans(*without(spans_from_rings(*one[:2], target.height, target.width), target.ignored))


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
    """[A] intersection over union; of boxes and points that were asked for, what rewards/places.py says.

    With an empty target: 1 for the status `empty`, 0 for any other answer.
    """
    centroids_px: list[list[float]]
    """[A][2] mean (x, y) of the answer's pixel centres; NaN without a pixel."""
    refined: FlatAnswers | None = None
    """[A] what a refiner made of each answer, as exact pixel-edge rings; none for an invalid one. None: no refiner."""
    asked: str = "mask"
    """What was asked for: "mask", "box" or "point"."""

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
        refined = None if self.refined is None else self.refined.part(k, k + 1)
        return compare([self.answers.whole[k]], self.target, self.example_id, self.phrase, refined, self.asked)

    @cached_property
    def boundary_iou(self) -> list[float]:
        """[A] IoU of the boundary bands, which are 2 % of the image's diagonal wide. With an empty target, as `iou`."""
        return _said_empty(self.answers, self.target) or self.target.boundary_iou(self.answers.flat).tolist()

    @cached_property
    def shapes(self) -> list[list[float]]:
        """[A][9] box, a point inside and second moments of each answer (see `shapes` in rewards/kernels/overlap.py)."""
        return kernels.shapes(*self.answers.flat, self.target.ignored, self.target.width).tolist()

    @cached_property
    def refined_iou(self) -> list[float] | None:
        """[A] IoU of each refined mask with the truth, as `iou`; None where no refiner ran."""
        if self.refined is None:
            return None
        return _said_empty(self.answers, self.target) or self.target.overlap_flat(self.refined).iou.tolist()

    @cached_property
    def unmended(self) -> list[float] | None:
        """[A] share of each answer that is wrong and stays so (see the top); None where no refiner ran."""
        if self.refined is None:
            return None
        if said := _said_empty(self.answers, self.target):
            return [1.0 - agrees for agrees in said]
        return unmended(self.target, self.answers.flat, self.refined).tolist()

    def instance_iou(self, k: int) -> NDArray[np.float64]:
        """[P, K] IoU of each instance of answer k with each instance of the truth."""
        return self.target.instance_iou_of(self.answers.whole[k])


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
    def asked(self) -> str:
        """What was asked for: "mask", "box" or "point"."""
        return self._all.asked

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
        """IoU of the boundary bands (Cheng et al. 2021), in [0, 1]; with an empty target, as `iou`."""
        return self._all.boundary_iou[self._k]

    @property
    def instance_iou(self) -> NDArray[np.float64]:
        """[P, K] IoU of each instance of the answer with each instance of the truth."""
        return self._all.instance_iou(self._k)

    @property
    def refined_iou(self) -> float | None:
        """IoU of the refined mask and the truth, as `iou`; None where no refiner ran."""
        found = self._all.refined_iou
        return None if found is None else found[self._k]

    @property
    def unmended(self) -> float | None:
        """Share that is wrong in outline and refined mask, in [0, 1] (see the top); None without refiner."""
        found = self._all.unmended
        return None if found is None else found[self._k]

    @property
    def refined_rings_px(self) -> list[Ring] | None:
        """Exact rings [N, 2] of the refined mask, [] where it has no pixel; None where no refiner ran."""
        found = self._all.refined
        return None if found is None else split_rings(*found.part(self._k, self._k + 1)[:2])


def compare(
    answers: Sequence[Answer] | Answers,
    target: Target,
    example_id: str = "",
    phrase: str = "",
    refined: FlatAnswers | None = None,
    asked: str = "mask",
) -> Comparisons:
    """A answers of a group against one target, in one kernel call. What an invalid answer drew counts nowhere.

    asked: form of the answer, one of ASKED of envs/example.py. refined: what a refiner made of each, in order. Raises
    ValueError where that is not one for each answer.
    """
    if not isinstance(answers, Answers):
        answers = Answers.of(answers)
    if refined is not None and refined.num_answers != len(answers.statuses):
        raise ValueError(f"{refined.num_answers} refined masks for {len(answers.statuses)} answers; give one for each.")
    overlap = target.overlap_flat(answers.flat)
    return Comparisons(
        answers,
        target,
        example_id,
        phrase,
        overlap.intersection.tolist(),
        overlap.area.tolist(),
        _said_empty(answers, target) or _agreement(answers, target, overlap.iou, asked),
        overlap.centroid.tolist(),
        refined,
        asked,
    )


def _agreement(answers: Answers, target: Target, iou: NDArray[np.float64], asked: str) -> list[float]:
    """[A] the IoU of masks, or what places that were asked for are worth."""
    if asked == "mask":
        return iou.tolist()
    return [place_score(answer, target, asked) for answer in answers.whole]


def _said_empty(answers: Answers, target: Target) -> list[float] | None:
    """[A] where nothing is true: 1.0 for the status `empty`, 0.0 for any other; None where something is."""
    # Only saying so is right about an empty truth: not an unreadable answer, nor an outline too thin to hold a pixel.
    return None if target.area_px else [float(status is AnswerStatus.EMPTY) for status in answers.statuses]
