"""Omnimodal referring expression segmentation (MaskGroups-HQ): a query in words, or in words and masks, means a group.

A model chooses among candidate masks, or outlines what it means; judged is the union of what it chose against the union
of the group: gIoU, the mean IoU, and cIoU, summed intersection over summed union, over all queries, and apart over
those with and without a mask in the query. What chosen candidates cover comes as their exact outlines (`judge`) or as
masks (`judge_masks`); an answer that chooses none says "nothing", and so counts with the whole group as its union.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols._truth import MASK_REFERENCE
from rl.evaluation.protocols.base import Columns, MaskProtocol, Variants

VARIANTS: Variants = {}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of omnimodal referring segmentation."""

    variants: ClassVar[Variants] = VARIANTS

    zero_union: float = 1.0
    """Term of the mean where neither truth nor answer has a pixel."""

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """gIoU and cIoU of all queries, then of those with and without a mask reference."""
        referring = columns.tagged(MASK_REFERENCE)
        found = {"gIoU": self.mean(columns, columns.iou), "cIoU": self.pooled(columns)}
        for title, where in ((f"with {MASK_REFERENCE}", referring), (f"without {MASK_REFERENCE}", ~referring)):
            found[f"gIoU, {title}"] = self.mean(columns, columns.iou, where)
            found[f"cIoU, {title}"] = self.pooled(columns, where)
        return found
