"""LVIS by name, ours: the name of a category asks for everything of that kind in the photo.

Asked is one question a photo and category: the category's name in words (underscores are spaces, what stands in
brackets is left out). The truth is the union of all its instances, for categories whose instances are drawn
exhaustively in that photo; nothing, for those that are listed as absent from it. Other pairs of photo and category are
not asked, since nobody knows what is there. Scored at the photo's size: mIoU, cIoU and P@t over the questions with a
target alone, so that "nothing" is never a way to a better mean, N-acc over those without, and T-acc. Published numbers
on LVIS do not say what they ask: they cannot be compared with these.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl.evaluation.protocols._none import NoneProtocol
from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import Columns, Variants

VARIANTS: Variants = {}


@dataclass(frozen=True)
class Protocol(NoneProtocol):
    """Settings of LVIS by name."""

    variants: ClassVar[Variants] = VARIANTS

    counted: str = "targeted"
    """Which examples the mean and the pooled IoU are of."""
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)
    """IoU that answers are to reach, a score each."""
    thresholds_over: str = "targeted"
    """Which examples such a share is of."""

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The scores mIoU, cIoU, P@t, N-acc and T-acc."""
        found = {"mIoU": self.mean(columns, columns.iou), "cIoU": self.pooled(columns)}
        return found | self.shares_that_reach(columns, "P@") | self.accuracies(columns)
