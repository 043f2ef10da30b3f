"""Generalised referring segmentation (gRefCOCO, arXiv 2306.00968): a phrase may mean none, one or several objects.

Asked is every sentence; the truth is the union of all that it means. gIoU is the mean over all sentences of a term that
is 1 where "nothing" is rightly said, 0 where one of truth and answer alone is nothing, and the IoU else; cIoU pools the
pixels; N-acc and T-acc are the shares of sentences without and with a target that were taken as such; Pr@t is of the
sentences with a target. As most sentences of the validation split have none, gIoU of those that have stands beside.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl.evaluation.protocols._none import NoneProtocol
from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import Columns, Variants

_GSVA = {"epsilon_union": 1e-8, "epsilon_pooled": 1e-10, "rejected": "as_drawn", "thresholds": []}

VARIANTS: Variants = {
    "rela": {},
    "rela_480": {"side_px": 480},
    "fifty_pixels": {"none_by": "pixels", "min_pixels": 50},
    "gsva": _GSVA,
    "gsva_ref_zom": {**_GSVA, "stray_counts": False},
    "lisa": {
        "none_by": "pixels",
        "unreadable_is_none": True,
        "epsilon_union": 1e-5,
        "epsilon_pooled": 1e-10,
        "epsilon_count": 1e-5,
        "thresholds": [],
    },
    "psalm": {"none_by": "never"},
    "ref_zom": {"counted": "targeted"},
}


@dataclass(frozen=True)
class Protocol(NoneProtocol):
    """Settings of generalised referring segmentation; by default the official formulas at the photo's size."""

    variants: ClassVar[Variants] = VARIANTS

    thresholds: tuple[float, ...] = (0.7, 0.8, 0.9)
    """IoU that answers are to reach, a score each."""
    thresholds_over: str = "targeted"
    """Which examples such a share is of."""

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores gIoU, cIoU, N-acc, T-acc, Pr@t, and gIoU of the sentences with a target."""
        found = {"gIoU": self.mean(columns, columns.iou), "cIoU": self.pooled(columns)}
        found |= self.accuracies(columns) | self.shares_that_reach(columns, "Pr@")
        return found | {"gIoU, targeted": self.mean(columns, columns.iou, ~columns.is_none)}
