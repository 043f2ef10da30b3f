"""Reasoning segmentation (ReasonSeg, arXiv 2308.00692): a question that implies what to outline.

Asked is the first text of every image of a split. Pixels marked to be ignored are taken out of truth and answer; where
then neither has a pixel, the term is 1. gIoU is the mean of the terms, cIoU summed intersection over summed union.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import Columns, MaskProtocol, Variants

VARIANTS: Variants = {
    "lisa": {"unreadable_is_none": True, "epsilon_union": 1e-5, "epsilon_pooled": 1e-10, "epsilon_count": 1e-5},
    "seg_zero": {"ignore": "target", "zero_union": 0.0},
}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of reasoning segmentation; by default the official rules without their epsilons."""

    variants: ClassVar[Variants] = VARIANTS

    zero_union: float = 1.0
    """Term of the mean where neither truth nor answer has a pixel."""

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores gIoU and cIoU."""
        return {"gIoU": self.mean(columns, columns.iou), "cIoU": self.pooled(columns)}
