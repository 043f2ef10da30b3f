"""Referring segmentation (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF, RefCOCO-M): one phrase, one object, one mask.

Asked is every sentence of every object. cIoU (also oIoU, overall IoU) is summed intersection over summed union; mIoU
the mean IoU of sentences; P@t the share of sentences with IoU t or more.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import Columns, MaskProtocol, Variants

_LISA = {
    "zero_union": 1.0,
    "unreadable_is_none": True,
    "epsilon_union": 1e-5,
    "epsilon_pooled": 1e-10,
    "epsilon_count": 1e-5,
    "thresholds": [],
}

VARIANTS: Variants = {
    "lavt": {"side_px": 480},
    "polyformer": {"side_px": 512},
    "vlt": {
        "zero_union": 1.0,
        "epsilon_shared": 1e-10,
        "epsilon_union": 1e-10,
        "reaches": ">",
        "thresholds": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
    },
    "cris": {"epsilon_union": 1e-6, "reaches": ">"},
    "lisa": _LISA,
    "gsva": _LISA,
    "sa2va": _LISA,
    "evf": {**_LISA, "epsilon_union": 1e-10},
    "text4seg": {**_LISA, "epsilon_pooled": 0.0, "epsilon_count": 0.0},
    "seg_zero": {"thresholds": []},
}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of referring segmentation; by default at the photo's size, without any epsilon."""

    variants: ClassVar[Variants] = VARIANTS

    thresholds: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """IoU that answers are to reach, a score each."""

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores cIoU, mIoU and P@t."""
        found = {"cIoU": self.pooled(columns), "mIoU": self.mean(columns, columns.iou)}
        return found | self.shares_that_reach(columns, "P@")
