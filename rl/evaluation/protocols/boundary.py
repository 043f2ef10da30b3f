"""Boundary IoU (arXiv 2103.16562): how well outlines match, whatever is inside.

The IoU of what lies within 2 % of the photo's diagonal of either boundary, inside of the masks; its mean over examples.
COCO's `boundary` type takes the smaller of it and the IoU of the masks. Where nothing is true, only an answer that says
so counts 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rl.evaluation.protocols._counts import Counts
from rl.evaluation.protocols._none import NoneProtocol
from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import BOUNDARY_TITLE, Columns, Terms, Variants

VARIANTS: Variants = {"coco": {"at_most_mask_iou": True}}


@dataclass(frozen=True)
class Protocol(NoneProtocol):
    """Settings of Boundary IoU."""

    variants: ClassVar[Variants] = VARIANTS

    at_most_mask_iou: bool = False
    """Whether a term is no more than the IoU of the masks."""

    def terms(self, counts: Counts) -> Terms:
        """Pixels as elsewhere; the term of the mean is the IoU of the boundary bands."""
        of_masks = super().terms(counts)
        band_iou = np.where(of_masks.shared_px == 0, 0.0, counts.band_iou)
        if self.at_most_mask_iou:
            band_iou = np.minimum(band_iou, of_masks.iou)
        iou = np.where(counts.true_px == 0, of_masks.iou, band_iou)
        return Terms(iou, of_masks.shared_px, of_masks.union_px, of_masks.says_none)

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The score Boundary IoU."""
        return {BOUNDARY_TITLE: self.mean(columns, columns.iou)}
