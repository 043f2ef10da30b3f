"""Generalised referring comprehension (gRefCOCO, boxes; arXiv 2308.16182): a phrase may mean none, one or several.

An answer is a set of boxes: those that it says, else the bounds of its outlines, one an object. They are matched to the
true ones greedily, the largest generalised IoU first, each once, from a threshold on; with TP matches, F1 is
2 TP / (boxes of both). A sentence without a target has an F1 of 1 where no box is drawn, else 0. F1score is the share
of sentences with an F1 of 1, so that one box too many or too few is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from envs.example import Example
from envs.geometry.masks import tight_box_px
from envs.geometry.rle import mask_from_rle
from envs.polygons import Answer, AnswerStatus, Box, Instance, bounding_box_px
from envs.ranges import between
from rl.evaluation.protocols._ratios import Ratio, mean_where
from rl.evaluation.protocols.base import CodedTruth, Columns, Judged, MaskProtocol, Variants
from rl.evaluation.protocols.rec import box_iou

VARIANTS: Variants = {}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of generalised referring comprehension; by default those of the official script."""

    variants: ClassVar[Variants] = VARIANTS

    threshold: Annotated[float, between(0, 1)] = 0.5
    """Generalised IoU from which two boxes match."""
    min_score: Annotated[float, between(0, 1)] = 0.7
    """Objects that an answer scores lower are left out; one without a score stays."""

    def judge(self, answers: Sequence[Answer], examples: Sequence[Example | CodedTruth]) -> list[Judged]:
        """Each answer against its example as sets of boxes, in order; raises as for masks."""
        truths = self._truths(examples)
        rows = super().judge(answers, truths)
        drawn = [self._boxes(answer) for answer in answers]
        return [self._of_boxes(*each) for each in zip(rows, drawn, truths, strict=True)]

    def judge_masks(
        self, masks_rle: Sequence[str], statuses: Sequence[AnswerStatus], examples: Sequence[Example | CodedTruth]
    ) -> list[Judged]:
        """`judge` for masks, which do not tell objects apart: the tight box of each is its only one."""
        truths = self._truths(examples)
        rows = super().judge_masks(masks_rle, statuses, truths)
        drawn = [_tight([rle], truth) for rle, truth in zip(masks_rle, truths, strict=True)]
        kept = [boxes if row.status.valid else [] for row, boxes in zip(rows, drawn, strict=True)]
        return [self._of_boxes(*each) for each in zip(rows, kept, truths, strict=True)]

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores F1score, N-acc and T-acc (boxes drawn where there is a target), and the mean F1."""
        right = columns.iou >= 1
        return {
            "F1score": self.mean(columns, right.astype(np.float64)),
            "N-acc": mean_where(right, columns.is_none),
            "T-acc": mean_where(~columns.says_none, ~columns.is_none),
            "mean F1": self.mean(columns, columns.iou),
        }

    def _boxes(self, answer: Answer) -> list[Box]:
        kept = [each for each in answer.instances if each.score is None or each.score >= self.min_score]
        return [box for each in kept if (box := _box_of(each))] if answer.status.valid else []

    def _of_boxes(self, row: Judged, drawn: Sequence[Box], truth: CodedTruth) -> Judged:
        true = _tight(truth.instances, truth)
        worth = self._f1(drawn, true) if true else float(row.status.valid and not drawn)
        return replace(row, iou=worth, box_iou=worth, says_none=not drawn)

    def _f1(self, drawn: Sequence[Box], true: Sequence[Box]) -> float:
        """F1 of two sets of boxes of which the second is not empty."""
        alike = np.array([[generalised_iou(a, b) for b in true] for a in drawn]).reshape(len(drawn), len(true))
        matches = 0
        while alike.size and self.reached(alike.max(), self.threshold):
            row, column = np.unravel_index(alike.argmax(), alike.shape)
            alike = np.delete(np.delete(alike, row, axis=0), column, axis=1)
            matches += 1
        return 2 * matches / (len(drawn) + len(true))


def generalised_iou(a: Box, b: Box) -> float:
    """IoU of two boxes less the share of the box around both that neither covers (arXiv 1902.09630), in (-1, 1]."""
    iou = box_iou(a, b)
    areas = sum(max(0.0, x1 - x0) * max(0.0, y1 - y0) for x0, y0, x1, y1 in (a, b))
    united = areas / (1 + iou)  # of I = iou * U and areas = U + I
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou - (around - united) / around if around > 0 else 0.0


def _box_of(instance: Instance) -> Box | None:
    """The box that an object is said to have, else that of its outline; None without either."""
    if instance.box_px is not None or not len(instance.vertices_px):
        return instance.box_px
    return bounding_box_px(instance.vertices_px)


def _tight(masks_rle: Sequence[str], truth: CodedTruth) -> list[Box]:
    """The tight box of each mask that has a pixel."""
    found = (tight_box_px(mask_from_rle(rle, truth.height, truth.width)) for rle in masks_rle)
    return [(float(box[0]), float(box[1]), float(box[2]), float(box[3])) for box in found if box is not None]
