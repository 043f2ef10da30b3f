"""Scoring: a truth made scorable, answers compared with it once, and what each reward says of them.

Dimension letters: A answers (a group), K instances of a truth, N vertices of a ring, H W pixels. Frames: pixels, see
envs/example.py. Pixels that a truth ignores count neither way: they are taken out of the true mask and of every answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.example import Truth
from envs.polygons import Answer, AnswerStatus, Ring, flatten_rings
from envs.raster import fill, mask_from_rle
from rewards import kernels


@dataclass(frozen=True)
class Overlap:
    """How each of A answers overlaps a target, in counted pixels."""

    intersection: NDArray[np.int64]
    """[A] pixels of the answer that are true."""
    area: NDArray[np.int64]
    """[A] pixels of the answer."""
    iou: NDArray[np.float64]
    """[A] intersection over union, 1 where neither has a pixel."""
    centroid: NDArray[np.float64]
    """[A, 2] mean (x, y) px of the answer's pixel centres, NaN where it has no pixel."""


@dataclass(frozen=True)
class Target:
    """A true mask with the sums that make scoring answers against it fast; made once a prompt, by a `from_` method."""

    mask: NDArray[np.bool_]
    """[H, W] true pixels that count: ignored ones are already out."""
    ignore: NDArray[np.bool_] | None
    """[H, W] pixels that count neither way, or None."""
    area_px: int
    """Number of pixels of `mask`."""
    centroid_px: tuple[float, float] | None
    """Mean (x, y) of the pixel centres of `mask`; None where it is empty."""
    true_sums: NDArray[np.int32]
    """[H, W + 1] running sums of `mask` along rows."""
    pixel_sums: NDArray[np.int32]
    """[H, W + 1] running sums of the pixels that count; [1, W + 1], for every row, where none is ignored."""
    twice_x_sums: NDArray[np.int64]
    """Shaped as `pixel_sums`: running sums of twice the x of their centres."""

    @property
    def height(self) -> int:
        """H, pixels."""
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        """W, pixels."""
        return self.mask.shape[1]

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None) -> "Target":
        """From a bool mask [H, W]; raises ValueError for another number of axes, or an `ignore` of another shape."""
        if mask.ndim != 2:
            raise ValueError(f"mask has shape {mask.shape}; give one mask [H, W], the union of all instances.")
        if ignore is not None and ignore.shape != mask.shape:
            raise ValueError(f"ignore has shape {ignore.shape}, mask {mask.shape}; both must cover the same image.")
        counted = np.ones((1, mask.shape[1]), np.bool_) if ignore is None else ~ignore.astype(np.bool_)
        true = np.ascontiguousarray(mask.astype(np.bool_) & counted)
        rows, columns = np.nonzero(true)
        centroid = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5) if len(rows) else None
        sums = kernels.row_sums(true), kernels.row_sums(counted), kernels.centre_sums(counted)
        return cls(true, ignore, len(rows), centroid, *sums)

    @classmethod
    def from_rle(cls, counts: str | list[int], height: int, width: int) -> "Target":
        """From COCO run lengths, compressed text or numbers; raises ValueError where they do not fit height x width."""
        return cls.from_mask(mask_from_rle(counts, height, width))

    @classmethod
    def from_rings(cls, rings_px: Sequence[Ring], height: int, width: int) -> "Target":
        """From rings [N, 2] px, filled together by non-zero winding; raises ValueError for another shape of ring."""
        return cls.from_mask(fill(*_flat_rings(rings_px), height, width))

    @classmethod
    def from_truth(cls, truth: Truth) -> "Target":
        """From a truth: the union of its instances, without the pixels to ignore."""
        return cls.from_mask(truth.union, truth.ignore)

    def overlap(self, answers: Sequence[Sequence[Ring]]) -> Overlap:
        """Overlap with A answers, each a list of rings [N, 2] px filled together by non-zero winding.

        Any coordinates will do, also outside the image; an edge with a non-finite end is skipped. Raises ValueError
        for a ring of another shape.
        """
        vertices, ring_offsets = _flat_rings([ring for rings in answers for ring in rings])
        answer_offsets = np.cumsum([0, *(len(rings) for rings in answers)], dtype=np.int64)
        intersection, area, moments = kernels.overlap(
            vertices, ring_offsets, answer_offsets, self.true_sums, self.pixel_sums, self.twice_x_sums
        )
        union = area + self.area_px - intersection
        iou = np.divide(intersection, union, out=np.ones(len(union)), where=union > 0)
        centroid = np.divide(moments, area[:, None], out=np.full(moments.shape, np.nan), where=area[:, None] > 0)
        return Overlap(intersection, area, iou, centroid)


@dataclass(frozen=True)
class Comparison:
    """An answer against a target, computed once for all rewards."""

    answer: Answer
    target: Target
    intersection_px: int
    """Pixels of the answer that are true."""
    answer_area_px: int
    """Pixels of the answer; 0 where its status is not valid."""
    iou: float
    """Intersection over union. With an empty target: 1 for the status `empty`, 0 for any other answer."""
    centroid_px: tuple[float, float] | None
    """Mean (x, y) of the answer's pixel centres; None where it has no pixel."""


@dataclass(frozen=True)
class RewardBreakdown:
    """Why an answer got its reward."""

    status: AnswerStatus
    """How the answer read; anything but `ok` and `empty` earns 0 on every term."""
    terms: dict[str, float | None]
    """Each reward before weighting, by its name; None where it does not apply."""


class Reward(Protocol):
    """One term: a dataclass of this name in a file of this folder; its fields are its settings."""

    @property
    def weight(self) -> float:
        """Share of this term in the weighted mean, 0 or more."""
        ...

    def __call__(self, comparison: Comparison) -> float | None:
        """The term for one answer, in [0, 1]; None where it does not apply."""
        ...


def compare(answers: Sequence[Answer], target: Target) -> list[Comparison]:
    """Each answer of a group against one target, in one kernel call. What an invalid answer drew counts nowhere."""
    overlap = target.overlap([answer.rings_px if answer.status.valid else [] for answer in answers])
    return [_comparison(answer, target, overlap, k) for k, answer in enumerate(answers)]


def score(comparisons: Sequence[Comparison], rewards: Mapping[str, Reward]) -> list[RewardBreakdown]:
    """What each reward, by name, says of each comparison. An invalid answer earns 0.0 on every term, applying or not.

    Raises ValueError where a reward returns a number that is not finite.
    """
    return [
        RewardBreakdown(
            comparison.answer.status, {name: _term(name, reward, comparison) for name, reward in rewards.items()}
        )
        for comparison in comparisons
    ]


def _comparison(answer: Answer, target: Target, overlap: Overlap, k: int) -> Comparison:
    """Entry k of `overlap` as the comparison of `answer` with `target`."""
    area = int(overlap.area[k])
    x, y = overlap.centroid[k].tolist()
    # Only saying so is right about an empty truth: not an unreadable answer, nor an outline too thin to hold a pixel.
    iou = float(overlap.iou[k]) if target.area_px else float(answer.status is AnswerStatus.EMPTY)
    return Comparison(answer, target, int(overlap.intersection[k]), area, iou, (x, y) if area else None)


def _term(name: str, reward: Reward, comparison: Comparison) -> float | None:
    if not comparison.answer.status.valid:
        return 0.0
    value = reward(comparison)
    if value is not None and not isfinite(value):
        raise ValueError(
            f"Reward {name} returned {value} for an answer with IoU {comparison.iou:.3f}; "
            "return a finite number, or None where the reward does not apply."
        )
    return value


def _flat_rings(rings_px: Sequence[Ring]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`flatten_rings`, after a check that each ring is [N, 2]."""
    for ring in rings_px:
        if np.shape(ring)[1:] != (2,) and np.size(ring):
            raise ValueError(f"A ring has shape {np.shape(ring)}; give [N, 2] vertices (x, y) in pixels.")
    return flatten_rings(rings_px)
