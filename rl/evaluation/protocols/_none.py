"""Protocols whose examples may have nothing to find: how "nothing" is said, and what a wrong "nothing" counts."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from envs.ranges import at_least, one_of
from rl.evaluation.protocols._counts import Counts
from rl.evaluation.protocols._ratios import Ratio, mean_where
from rl.evaluation.protocols.base import Columns, MaskProtocol, Terms


@dataclass(frozen=True)
class NoneProtocol(MaskProtocol):
    """Settings and steps of protocols that judge "nothing fits" apart from the mask."""

    none_by: Annotated[str, one_of("said", "pixels", "never")] = "said"
    """What says "nothing": the answer itself (`said`), a mask of too few pixels (`pixels`), or no answer (`never`)."""
    min_pixels: Annotated[int, at_least(1)] = 1
    """Fewer pixels than these say "nothing", under `none_by: pixels`."""
    rejected: Annotated[str, one_of("both", "truth", "as_drawn")] = "both"
    """What the pooled union counts where an answer says "nothing" of something.

    `both`: pixels of mask or truth, none shared. `truth`: those of the truth, as though the mask were empty.
    `as_drawn`: the mask is judged as it is, so that its saying "nothing" enters T-acc alone.
    """
    stray_counts: bool = True
    """Whether pixels drawn where nothing is true enter the pooled union."""

    def says_none(self, counts: Counts) -> NDArray[np.bool_]:
        """[A] whether each answer says that nothing fits."""
        if self.none_by == "said":
            return counts.says_empty
        if self.none_by == "never":
            return np.zeros(len(counts.statuses), np.bool_)
        return (counts.drawn_px < self.min_pixels) & (counts.readable | self.unreadable_is_none)

    def terms(self, counts: Counts) -> Terms:
        """1 for "nothing" where nothing is true, 0 for either alone (see `rejected`), and the IoU of masks else."""
        drawn, none = super().terms(counts), counts.is_none
        rejected = drawn.says_none & ~none & (self.rejected != "as_drawn")
        iou = np.where(none, drawn.says_none, np.where(rejected, 0.0, drawn.iou))
        shared = np.where(none | rejected, 0, drawn.shared_px)
        stray = np.where(drawn.says_none | (not self.stray_counts), 0, counts.drawn_px)
        of_rejected = counts.true_px if self.rejected == "truth" else drawn.union_px
        union = np.where(none, stray, np.where(rejected, of_rejected, drawn.union_px))
        return Terms(iou, shared, union, drawn.says_none)

    def accuracies(self, columns: Columns) -> dict[str, Ratio]:
        """N-acc: how much of what is none is said to be; T-acc: how much of what is there is not."""
        return {
            "N-acc": mean_where(columns.says_none, columns.is_none),
            "T-acc": mean_where(~columns.says_none, ~columns.is_none),
        }
