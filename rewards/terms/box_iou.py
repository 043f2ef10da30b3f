"""Whether the answer is in the right place and of the right size, by boxes alone: the reward of grounding models.

The box of an answer is that of the pixels which it fills, not that of its vertices, so a spike without area gains
nothing. Boxes are blind to shape: a filled box earns full marks. Give it a share beside an IoU of masks.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from envs.polygons import Answer, Box
from envs.ranges import at_least
from rewards.score import Comparison


@dataclass(frozen=True)
class Reward:
    """IoU of the answer's tight box with the truth's; an empty truth pays 1 for the answer `empty`, 0 for any other.

    Where boxes are asked for, these are scored, each with the object that it is matched to (rewards/places.py).
    """

    asks: ClassVar[tuple[str, ...]] = ("mask", "box")
    weight: Annotated[float, at_least(0)] = 0.2
    """Share of this term in the weighted mean."""
    said: bool = False
    """Score the box that the model said, the one around all where it said several, and not that of its pixels."""

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1]; with `said`, None for an answer of instances of which none has a box."""
        if comparison.asked == "box":
            return comparison.iou
        truth = comparison.target.box_px
        if truth is None:
            return comparison.iou
        if not self.said:
            return _box_iou(comparison.box_px, truth)
        box = _said_box(comparison.answer)
        # `empty` is no way around the term: nothing was said about an object that is there.
        return None if box is None and comparison.answer.instances else _box_iou(box, truth)


def _said_box(answer: Answer) -> Box | None:
    """The box around all boxes that the model said; None where it said none."""
    boxes = [instance.box_px for instance in answer.instances if instance.box_px is not None]
    if not boxes:
        return None
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _box_iou(a: Box | None, b: Box) -> float:
    """IoU of two boxes of some area, 0 without the first."""
    if a is None:
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
