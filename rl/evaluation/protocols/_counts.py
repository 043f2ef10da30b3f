"""Answers and masks counted against what is true, pixel by pixel: what every protocol draws its scores from."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from envs.geometry.rle import mask_from_rle, rle_from_mask
from envs.polygons import Answer, AnswerStatus, Box, FlatAnswers, Instance
from rewards.kernels.judging import CodedMasks, judged_answers, judged_masks
from rl.evaluation.protocols._truth import CodedTruth, nearest

ANSWERS_A_CALL = 250
"""Judged in one kernel call, on one thread."""

Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """A answers against their truths, in pixels of the size that is scored."""

    statuses: Sequence[AnswerStatus]
    """[A] how each answer read."""
    said_boxes: Sequence[Sequence[Box]]
    """[A] boxes (x0, y0, x1, y1) px that each answer said; none where only masks are at hand."""
    truths: Sequence[CodedTruth]
    """[A]"""
    pixels: Pixels
    """[A, 13] as `judged_answers` of rewards/kernels/judging.py counts them."""

    @property
    def true_px(self) -> Pixels:
        """[A] true pixels, ignored ones left out."""
        return self.pixels[:, 0]

    @property
    def drawn_px(self) -> Pixels:
        """[A] pixels of the answer, ignored ones left out; 0 for an answer that cannot be read."""
        return self.pixels[:, 1]

    @property
    def shared_px(self) -> Pixels:
        """[A] pixels of both."""
        return self.pixels[:, 2]

    @property
    def union_px(self) -> Pixels:
        """[A] pixels of either."""
        return self.true_px + self.drawn_px - self.shared_px

    @property
    def band_iou(self) -> NDArray[np.float64]:
        """[A] IoU of the boundary bands; 0 where neither has a pixel."""
        return ratio(self.pixels[:, 3], self.pixels[:, 4])

    @property
    def is_none(self) -> NDArray[np.bool_]:
        """[A] whether nothing is true, whatever is ignored."""
        return np.array([truth.is_none for truth in self.truths], np.bool_)

    @property
    def says_empty(self) -> NDArray[np.bool_]:
        """[A] whether the answer says that there is nothing."""
        return np.array([status is AnswerStatus.EMPTY for status in self.statuses], np.bool_)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """[A] whether the answer could be read."""
        return np.array([status.valid for status in self.statuses], np.bool_)


def ratio(above: NDArray, below: NDArray) -> NDArray[np.float64]:
    """[A] above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


@dataclass(frozen=True)
class Counter:
    """Counts at one size, on all processors."""

    side_px: int | None
    """Side of the square that photos are stretched to; None: the size of the photo."""
    band_share: float
    """Width of the boundary band as a share of the image's diagonal."""

    def of_answers(self, answers: Sequence[Answer], truths: Sequence[CodedTruth]) -> Counts:
        """Counts of A answers, their rings filled together by the raster rule at the size that is scored.

        An answer that cannot be read has no pixel. Raises ValueError where truths are not one for each.
        """
        drawn = [answer.instances if answer.status.valid else () for answer in answers]
        boxes = [[each.box_px for each in instances if each.box_px is not None] for instances in drawn]

        def count(first: int, end: int) -> Pixels:
            flat = _flat_instances(drawn[first:end])
            if self.side_px is not None:
                flat = _stretched(flat, truths[first:end], self.side_px)
            return judged_answers(flat, *self._true(truths[first:end]))

        return Counts([answer.status for answer in answers], boxes, truths, self._pixels(len(answers), truths, count))

    def of_masks(
        self, masks_rle: Sequence[str], statuses: Sequence[AnswerStatus], truths: Sequence[CodedTruth]
    ) -> Counts:
        """Counts of A masks, COCO run-length texts at the size of the photo; none of an answer that cannot be read.

        Raises ValueError where statuses and truths are not one for each, or a mask is not of the photo's size.
        """
        if len(statuses) != len(masks_rle):
            raise ValueError(f"{len(statuses)} statuses for {len(masks_rle)} masks; give one for each.")

        def count(first: int, end: int) -> Pixels:
            own = truths[first:end]
            texts = [
                [self._mask(rle, truth)] if status.valid else []
                for rle, status, truth in zip(masks_rle[first:end], statuses[first:end], own, strict=True)
            ]
            return judged_masks(_coded_masks(texts), *self._true(own))

        return Counts(statuses, [()] * len(statuses), truths, self._pixels(len(masks_rle), truths, count))

    def _mask(self, rle: str, truth: CodedTruth) -> str:
        if self.side_px is None:
            return rle
        return rle_from_mask(nearest(mask_from_rle(rle, truth.height, truth.width), self.side_px))

    def _true(self, truths: Sequence[CodedTruth]) -> tuple[CodedMasks, CodedMasks, Pixels]:
        """True masks, masks to ignore, and [A, 3] height, width and band of each image."""
        if self.side_px is not None:
            truths = [truth.stretched(self.side_px) for truth in truths]
        sizes = [(t.height, t.width, band_px(t.height, t.width, self.band_share)) for t in truths]
        ignored = [() if truth.ignore is None else (truth.ignore,) for truth in truths]
        true = _coded_masks([truth.instances for truth in truths])
        return true, _coded_masks(ignored), np.array(sizes, np.int64).reshape(-1, 3)

    def _pixels(self, num: int, truths: Sequence[CodedTruth], count: Callable[[int, int], Pixels]) -> Pixels:
        if num != len(truths):
            raise ValueError(f"{num} answers for {len(truths)} examples; give one for each, in the same order.")
        cuts = [(first, min(first + ANSWERS_A_CALL, num)) for first in range(0, num, ANSWERS_A_CALL)] or [(0, 0)]
        with ThreadPoolExecutor(min(len(cuts), len(os.sched_getaffinity(0)))) as pool:
            pixels = np.concatenate(list(pool.map(lambda cut: count(*cut), cuts)))
        for k in np.flatnonzero(pixels[:, 0] < 0)[:1]:
            truth = truths[k]
            raise ValueError(
                f"example {truth.example_id!r}: a run-length text does not cover its photo of {truth.height} x "
                f"{truth.width} pixels; check `size` and `counts` of its truth and of its mask."
            )
        return pixels


@cache
def band_px(height: int, width: int, share: float) -> int:
    """Width in pixels of the boundary band: a share of the diagonal, at least 1 (Cheng et al. 2021)."""
    return max(1, round(share * float(np.hypot(height, width))))


def _coded_masks(texts: Sequence[Sequence[str]]) -> CodedMasks:
    """[A] run-length texts of the masks of each answer, in flat arrays."""
    flat = [text for of_one in texts for text in of_one]
    text = np.frombuffer("".join(flat).encode("ascii"), np.uint8)
    return CodedMasks(text, _offsets([len(text) for text in flat]), _offsets([len(of_one) for of_one in texts]))


def _offsets(lengths: Sequence[int] | Pixels) -> Pixels:
    """[N + 1] where each of N stretches begins, and the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _flat_instances(answers: Sequence[Sequence[Instance]]) -> FlatAnswers:
    """The rings of A answers, each a list of instances, as kernels take them."""
    instances = [instance for of_one in answers for instance in of_one]
    if not instances:
        return FlatAnswers(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(len(answers) + 1, np.int64))
    ends = [instance.ring_offsets for instance in instances]
    num_ends = _offsets([len(each) for each in ends])
    # Differences across two instances, from the end of one to the 0 of the next, are no rings.
    ring_offsets = _offsets(np.delete(np.diff(np.concatenate(ends)), num_ends[1:-1] - 1))
    vertices = np.ascontiguousarray(np.concatenate([instance.vertices_px for instance in instances]), np.float64)
    first_rings = num_ends - np.arange(len(num_ends))
    return FlatAnswers(vertices, ring_offsets, first_rings[_offsets([len(of_one) for of_one in answers])])


def _stretched(flat: FlatAnswers, truths: Sequence[CodedTruth], side_px: int) -> FlatAnswers:
    """Rings of answers in images stretched to side_px x side_px."""
    scales = np.array([(side_px / truth.width, side_px / truth.height) for truth in truths])
    of_answers = np.diff(flat.ring_offsets[flat.answer_offsets])
    return flat._replace(vertices=flat.vertices * np.repeat(scales, of_answers, axis=0))
