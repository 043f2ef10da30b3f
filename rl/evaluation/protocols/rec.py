"""Referring expression comprehension (the RefCOCO sets, boxes): one phrase, one object, one box.

An answer is right where the IoU of its box and the true one reaches 0.5; Acc@0.5 is the share of right answers. The
true box is the data set's own where it is given, else the tight box of the true mask. Where nothing is true, only an
answer that says so is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from envs.polygons import Box
from envs.ranges import between, one_of
from rl.evaluation.protocols._counts import Counts
from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import Columns, MaskProtocol, Terms, Variants

VARIANTS: Variants = {
    "polyformer": {"box": "said"},
    "qwen_vl": {"box": "said"},
    "vision_reasoner": {"box": "said", "several": "any", "reaches": ">"},
    "text4seg": {"box": "mask", "far_edge": False, "reaches": ">"},
}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of referring comprehension."""

    variants: ClassVar[Variants] = VARIANTS

    threshold: Annotated[float, between(0, 1, open=True)] = 0.5
    """IoU of boxes that makes an answer right."""
    box: Annotated[str, one_of("said", "mask", "either")] = "either"
    """An answer's box: the one that it says (`said`), the tight box of its mask (`mask`), or of its mask where it says
    none (`either`)."""
    several: Annotated[str, one_of("around", "any")] = "around"
    """Where an answer has several boxes, the one `around` them all counts, or the best of them (`any`)."""
    far_edge: bool = True
    """Whether the tight box of an answer's mask reaches the far edges of its last column and row; else their near
    ones, as where the indices of pixels are taken for corners."""

    def terms(self, counts: Counts) -> Terms:
        """Pixels as elsewhere; the term of the mean is the IoU of the boxes."""
        of_masks = super().terms(counts)
        ious = [self._box_iou(counts, k) for k in range(len(counts.truths))]
        return Terms(np.array(ious), of_masks.shared_px, of_masks.union_px, of_masks.says_none, ious)

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The score Acc@0.5, by whatever threshold, and the mean IoU of boxes."""
        right = self.reached(columns.iou, self.threshold).astype(np.float64)
        return {
            f"Acc@{self.threshold:g}": self.mean(columns, right),
            "mean box IoU": self.mean(columns, columns.iou),
        }

    def _box_iou(self, counts: Counts, k: int) -> float:
        truth = counts.truths[k].box_px or _tight(counts, k, 9)
        if truth is None:
            return float(counts.says_empty[k])
        return max((box_iou(box, truth) for box in self._boxes(counts, k)), default=0.0)

    def _boxes(self, counts: Counts, k: int) -> Sequence[Box]:
        """What answer k offers."""
        said = counts.said_boxes[k] if self.box != "mask" else ()
        if said:
            return said if self.several == "any" else [_around(said)]
        tight = _tight(counts, k, 5) if self.box != "said" else None
        if tight is None:
            return []
        x0, y0, x1, y1 = tight
        return [tight if self.far_edge else (x0, y0, x1 - 1, y1 - 1)]


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1), in [0, 1]; 0 for a box without area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, x1 - x0) * max(0.0, y1 - y0) for x0, y0, x1, y1 in (a, b)]
    united = sum(areas) - width * height
    return width * height / united if min(areas) > 0 else 0.0


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _tight(counts: Counts, k: int, column: int) -> Box | None:
    """The tight box in four columns of the counts of answer k; None without a pixel."""
    x0, y0, x1, y1 = counts.pixels[k, column : column + 4].tolist()
    return (float(x0), float(y0), float(x1), float(y1)) if x1 > x0 else None
