"""What a reward must be, and the two rules that hold for every one of them."""

from typing import ClassVar, Protocol, runtime_checkable

from envs.polygons import AnswerStatus
from rewards.comparison import Comparison


class Reward(Protocol):
    """One term: a dataclass of this name in a file of this folder; its fields are its settings."""

    @property
    def weight(self) -> float:
        """Share of this term in the weighted mean, 0 or more."""
        ...

    def __call__(self, comparison: Comparison) -> float | None:
        """The term for one answer, in [0, 1]; None where it does not apply."""
        ...


@runtime_checkable
class AlsoOfPlaces(Protocol):
    """A reward that also applies where boxes or points are asked for; any other applies to masks alone."""

    asks: ClassVar[tuple[str, ...]]
    """What may be asked for, of ASKED of envs/example.py."""


_INVALID = frozenset(status for status in AnswerStatus if not status.valid)


def term(reward: Reward, comparison: Comparison) -> float | None:
    """What a reward says of an answer, under three rules that hold for every reward.

    Where a box or a point is asked for, a reward that does not name these in `asks` does not apply.

    An invalid answer earns 0.0 whether the reward applies or not. Where nothing is true, any answer but `empty` earns
    0.0 wherever the reward applies: a shape drawn for a thing that is not there is worth nothing, however well drawn.
    """
    status = comparison.status
    if status in _INVALID:
        return 0.0
    if comparison.asked not in (reward.asks if isinstance(reward, AlsoOfPlaces) else ("mask",)):
        return None
    value = reward(comparison)
    if status is not AnswerStatus.EMPTY and not comparison.target.area_px and value is not None:
        return 0.0
    return value
