"""What a second turn gains: the IoU of an answer less that of the draft in the block of reasoning before it.

The model writes an outline between the marks of `policy.thinking`, sees it, and answers with another. Paying for the
difference alone would be earned by poor drafts, too (SCoRe, arXiv 2409.12917, pays for the first turn as well): so no
more than `most` of it counts, and an IoU belongs beside it.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

from envs.codecs.base import AnswerCodec
from envs.plugin import Plugin
from envs.ranges import at_least, between
from rewards.score import Comparison, compare


@dataclass(frozen=True)
class Reward:
    """(1 + d) / 2, d the gain in IoU within -most and most; 0 for an invalid answer or draft, None without a block and
    where nothing is true.

    Only masks have drafts.

    At weight w, a draft that is spoiled on purpose earns w * most / 2 at best.
    """

    needs_thinking: ClassVar[bool] = True
    """A run whose answers have no block before them is refused."""
    weight: Annotated[float, at_least(0)] = 0.2
    """Share of this term in the weighted mean."""
    most: Annotated[float, between(0, 1, open=True)] = 0.1
    """Gain, and loss, in IoU beyond which nothing more is earned or lost."""
    codec: dict[str, Any] = field(default_factory=dict)
    """What reads drafts; a run gives its own codec. {}: none is read, and the term does not apply."""

    @cached_property
    def _codec(self) -> AnswerCodec:
        settings = {key: value for key, value in self.codec.items() if key not in ("name", "module")}
        name, module = str(self.codec.get("name", "")), self.codec.get("module")
        built: AnswerCodec = Plugin("envs.codecs", "Codec", name, settings, module).build()
        return built

    def __call__(self, comparison: Comparison) -> float | None:
        """A number in [0, 1], or None where the answer has no block before it."""
        thinking, target = comparison.answer.thinking, comparison.target
        if not comparison.status.valid:
            return 0.0
        if thinking is None or not self.codec or not target.area_px:
            return None
        draft = self._codec.read(thinking, target.height, target.width)
        if not draft.status.valid:
            return 0.0
        gain = comparison.iou - compare([draft], target, comparison.example_id, comparison.phrase).iou[0]
        return (1 + min(self.most, max(-self.most, gain))) / 2
