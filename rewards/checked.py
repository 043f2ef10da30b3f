"""Calling a reward that somebody else wrote: what it may return, and how what it may not is told."""

import sys
import traceback
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # reading a config imports this file, and loads no kernel for it
    from rewards.score import Comparison
    from rewards.terms.base import Reward

_MOST_CHARACTERS = 400
"""Longest text of an exception that is told."""
_MOST_RINGS, _MOST_VERTICES = 2, 6
"""Most rings, and vertices of each, of an answer that is told."""


@dataclass(frozen=True)
class CheckedReward:
    """A reward that raises ValueError, saying what it did, for all but a number in [0, 1] or None."""

    reward: "Reward"
    only: str | None = None
    """The one form of answers that the reward is to apply to; None for all that it can."""

    @property
    def weight(self) -> float:
        """Share of the reward in the weighted mean."""
        return self.reward.weight

    @property
    def asks(self) -> tuple[str, ...]:
        """Forms of answers that the reward applies to: its class attribute `asks`, else masks alone; less by `only`."""
        found: Any = self.reward
        asks = tuple(found.asks) if "asks" in dir(found) else ("mask",)
        return tuple(form for form in asks if self.only in (None, form))

    def __call__(self, comparison: "Comparison") -> float | None:
        """The term for one answer, as a float in [0, 1]; None where it does not apply."""
        try:
            value = self.reward(comparison)
        except (Exception, SystemExit) as error:
            file = vars(sys.modules[type(self.reward).__module__]).get("__file__")
            raise ValueError(told_error(error, file)) from error
        # By far the most frequent, and NaN is not among them.
        if type(value) is float and 0.0 <= value <= 1.0:
            return value
        return None if value is None else _number(value)


def _number(value: object) -> float:
    """`value` as a float in [0, 1]; raises ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise ValueError(f"returned {short_repr(value)} of type {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"returned {value!r}")
    return float(value)


def told_error(error: BaseException, file: str | None) -> str:
    """What was raised, and the innermost line of `file` (else of any file) that it came through."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename.endswith(file or "\0")] or frames)[-1]
    return f"raised {type(error).__name__}: {shown} (line {frame.lineno} of {frame.filename}: {frame.line})"


def told_answer(comparison: "Comparison") -> str:
    """Which answer a comparison is of: example, phrase, status, IoU, and its first rings in pixels."""
    rings = comparison.answer.rings_px
    shown = [
        " ".join(f"({x:.1f}, {y:.1f})" for x, y in ring[:_MOST_VERTICES])
        + (f" ... {len(ring)} vertices" if len(ring) > _MOST_VERTICES else "")
        for ring in rings[:_MOST_RINGS]
    ]
    more = f" and {len(rings) - _MOST_RINGS} more" if len(rings) > _MOST_RINGS else ""
    drawn = f", rings in px: {'; '.join(shown)}{more}" if rings else ""
    return (
        f"example {comparison.example_id} ({comparison.phrase!r}): status {comparison.answer.status}, "
        f"IoU {comparison.iou:.3f}{drawn}"
    )
