"""The sending end of a delivery: weights packed, summed and on their way, a part after the other."""

import hashlib
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from policies.checksums import add_to_sha256, checksum_of, word_sums
from policies.weights import make_bucket
from rollout.pool.broadcast import BrokenGroupError, Group, Meeting, MeetingPlace
from rollout.pool.source import Sent


class WeightSender:
    """Sends weights to the members of one group after the other, from the process that has them."""

    def __init__(self, device: torch.device) -> None:
        """device: where the weights are, and where their group works."""
        self._device = device
        self._place: MeetingPlace | None = None
        self._group: Group | None = None

    def meeting(self, receivers: int) -> Meeting:
        """Where a new group of this sender and so many receivers meets."""
        self._place = self._place or MeetingPlace()
        return self._place.meeting(receivers)

    def send(self, parts: Iterable[Sequence[tuple[str, Tensor]]], meeting: Meeting, strong: bool) -> Sent:
        """Send named weights, a bucket for each part, to who is at a meeting.

        parts: all of them are walked through whatever happens to the group, since other ranks may take part in making
        them. strong: whether to take SHA-256 of all bytes, too.
        """
        seconds = {"meet": 0.0, "gather": 0.0, "sum": 0.0, "pack and send": 0.0}
        clock = _Clock(seconds)
        group, unmet = self._joined(meeting)
        clock.note("meet")
        digest = hashlib.sha256()
        names: list[str] = []
        sums: list[int] = []
        for part in parts:
            clock.note("gather")
            tensors = [tensor for _, tensor in part]
            names += [name for name, _ in part]
            sums += word_sums(tensors)
            if strong:
                add_to_sha256(digest, tensors)
            clock.note("sum")
            if group is not None and group.broken is None:
                group.send(make_bucket(part))
            clock.note("pack and send")
        if group is not None:
            group.finish()
        clock.note("pack and send")
        broken = unmet if group is None else group.broken
        if broken is not None:
            self._group = None
        sha256 = digest.hexdigest() if strong else None
        return Sent(checksum_of(names, sums), sha256, broken, group is not None, seconds)

    def _joined(self, meeting: Meeting) -> tuple[Group | None, str | None]:
        """The group of a meeting, or why there is none."""
        if self._group is not None and self._group.meeting == meeting:
            return self._group, None
        if self._group is not None:
            self._group.close()
        self._group = None
        assert self._place is not None, "meeting() comes first"
        try:
            self._group = self._place.join(meeting, self._device)
        except BrokenGroupError as error:
            return None, str(error)
        return self._group, None


class _Clock:
    """Adds up seconds by what they were spent on."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._since = seconds, time.perf_counter()

    def note(self, what: str) -> None:
        """The time since the last note went to this."""
        now = time.perf_counter()
        self._seconds[what] += now - self._since
        self._since = now
