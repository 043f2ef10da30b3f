"""Who has the weights that a pool is to set, and a state of them that was sent through a group."""

from dataclasses import dataclass, field
from typing import Protocol

from policies.weights import BucketShape
from rollout.pool.broadcast import Meeting
from rollout.pool.stored import WeightRefs


@dataclass(frozen=True)
class Sent:
    """What a sender says of one delivery through a group."""

    checksum: str
    """Checksum of the whole policy, as it was sent."""
    sha256: str | None
    """SHA-256 of all its bytes in order; None where nobody asked for it."""
    broken: str | None = None
    """What broke the group, or kept it from forming; None where all was sent."""
    formed: bool = True
    """Whether the group formed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the sender by what they were spent on."""


class WeightSource(Protocol):
    """Weights that somebody has, such as a learner; nothing moves before it is asked for."""

    @property
    def state(self) -> tuple[int, bool]:
        """A mark that changes whenever the weights of this source do."""
        ...

    def shapes(self) -> tuple[BucketShape, ...]:
        """What the buckets hold, in order."""
        ...

    def meeting(self, receivers: int) -> Meeting:
        """Where a new group of this sender and so many receivers meets."""
        ...

    def send(self, meeting: Meeting, strong: bool) -> Sent:
        """Send the weights to those who are at a meeting; strong: with SHA-256 of all bytes."""
        ...

    def refs(self, strong: bool = False) -> WeightRefs:
        """The weights through the object store. Raises RuntimeError where the source has others by now."""
        ...


@dataclass(frozen=True)
class Broadcast:
    """One state of the weights, sent through a group: who missed it gets it from one who has it."""

    source: WeightSource
    sent: Sent

    @property
    def checksum(self) -> str:
        """Checksum of the whole policy."""
        return self.sent.checksum

    @property
    def sha256(self) -> str | None:
        """SHA-256 of all its bytes in order; None where nobody asked for it."""
        return self.sent.sha256
