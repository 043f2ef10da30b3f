"""Lines of a plan: an amount, and how it was reckoned."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One line of a sum."""

    name: str
    """What it is, for people."""
    amount: float
    """Bytes, or seconds."""
    how: str = ""
    """How it was reckoned, with its numbers."""


@dataclass(frozen=True)
class Memory:
    """Memory of one card, or one host, at its fullest moment."""

    who: str
    """Who takes it, such as "learner rank"."""
    parts: list[Part]
    """Lines of the sum, bytes."""
    room: float
    """Bytes that there are."""
    moment: str = ""
    """When it is fullest."""
    notes: list[str] = field(default_factory=list)
    """What else to know of it."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(part.amount for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.total <= self.room

    @property
    def arithmetic(self) -> str:
        """The sum in one line, the largest first."""
        largest = sorted((part for part in self.parts if part.amount), key=lambda part: -part.amount)
        lines = " + ".join(f"{part.name} {gb(part.amount)}" for part in largest)
        return f"{lines} = {gb(self.total)} of {gb(self.room)} GB"


def gb(amount: float) -> str:
    """Bytes in GB of 10^9."""
    return f"{amount / 1e9:.1f}" if amount >= 5e7 or not amount else f"{amount / 1e9:.3f}"


def fullest(moments: Sequence[Memory]) -> Memory:
    """The moment that takes most."""
    return max(moments, key=lambda one: one.total)
