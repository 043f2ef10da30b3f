"""Questions of several kinds (env tasks), or of several data sets (env mixture): a score for each.

A mask is worth its IoU, boxes and points that were asked for what rewards/places.py says: with one object and one box
their IoU, with one point whether it lies on the object. A title is the name of a part, as ids of its examples begin;
`mean` is over all examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from envs.example import PART_END, Example
from envs.geometry.rle import spans_from_rle
from envs.polygons import Answer, AnswerStatus
from rewards.places import place_score
from rewards.score import Target
from rl.evaluation.protocols._ratios import Ratio
from rl.evaluation.protocols.base import CodedTruth, Columns, Judged, MaskProtocol, Variants

VARIANTS: Variants = {}


@dataclass(frozen=True)
class Protocol(MaskProtocol):
    """Settings of questions of several kinds."""

    variants: ClassVar[Variants] = VARIANTS

    zero_union: float = 1.0
    """Term of the mean where neither truth nor answer has a pixel."""

    def judge(self, answers: Sequence[Answer], examples: Sequence[Example | CodedTruth]) -> list[Judged]:
        """Each answer against its example as what was asked for, in order; raises as for masks."""
        truths = self._truths(examples)
        judged = super().judge(answers, truths)
        return [
            _of_part(row if truth.asked == "mask" else _of_places(row, answer, truth))
            for row, answer, truth in zip(judged, answers, truths, strict=True)
        ]

    def own_ratios(self, columns: Columns) -> dict[str, Ratio]:
        """The mean of each part, then that of all."""
        parts = sorted({tag for tags in columns.tags for tag in tags if tag.startswith(_PART)})
        found = {part.removeprefix(_PART): self.mean(columns, columns.iou, columns.tagged(part)) for part in parts}
        return found | {"mean": self.mean(columns, columns.iou)}


_PART = "part "


def _of_part(row: Judged) -> Judged:
    """The row with the part of its example as a tag."""
    part, end, _ = row.example_id.rpartition(PART_END)
    return replace(row, tags=(*row.tags, f"{_PART}{part}")) if end else row


def _of_places(row: Judged, answer: Answer, truth: CodedTruth) -> Judged:
    """The row of boxes or points that were asked for."""
    instances = [spans_from_rle(counts, truth.height, truth.width) for counts in truth.instances]
    ignore = None if truth.ignore is None else spans_from_rle(truth.ignore, truth.height, truth.width)
    worth = place_score(answer, Target.from_spans(instances, ignore, truth.height, truth.width), truth.asked)
    says_none = answer.status is AnswerStatus.EMPTY
    return replace(row, iou=worth, boundary_iou=worth, shared_px=0, union_px=0, says_none=says_none)
