"""Weights past Ray's object store: one sender and those who take them, in a process group of their own.

The group is gloo on the host and NCCL between GPUs, with the same code above it. A bucket is on its way while the next
one is made, and while the one before is taken over. Member 0 sends. A group breaks with its first member that is lost:
the sender then sends no more, a receiver takes no more, both say so, and the next delivery meets under another name.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from policies.weights import Bucket, BucketShape
from rollout import cluster

MEET_SECONDS = 45.0
"""How long the members of a group wait until all are there, and for each bucket."""
_ON_THE_WAY = 2
"""Buckets that are sent or received at once."""


@dataclass(frozen=True)
class Meeting:
    """Where the members of one group find each other."""

    host: str
    """Address of the sender's node."""
    port: int
    """Port of the sender's store."""
    name: str
    """Another one for every group that the sender is in."""
    receivers: int
    """Number of members beside the sender."""


class BrokenGroupError(ConnectionError):
    """A group that did not form, or that lost a member."""


class MeetingPlace:
    """The store in the sender's process by which groups form."""

    def __init__(self) -> None:
        self.host = cluster.node_address()
        # Whatever port is free: one that was looked for before could be another's by now.
        self._store = dist.TCPStore(self.host, 0, is_master=True, wait_for_workers=False)
        self.port = self._store.port
        self._groups = 0

    def meeting(self, receivers: int) -> Meeting:
        """A meeting that nobody has been to."""
        self._groups += 1
        return Meeting(self.host, self.port, f"weights {self._groups}", receivers)

    def join(self, meeting: Meeting, device: torch.device) -> "Group":
        """Join a meeting as its sender. Raises BrokenGroupError."""
        return Group(meeting, 0, device, self._store)


def join(meeting: Meeting, member: int, device: torch.device) -> "Group":
    """Join a meeting as receiver `member`, 1 to their number. Raises BrokenGroupError."""
    try:
        store = dist.TCPStore(meeting.host, meeting.port, timeout=timedelta(seconds=MEET_SECONDS))
    except RuntimeError as error:  # torch's own errors of a store are all of this kind
        raise BrokenGroupError(_unmet(meeting, error)) from error
    return Group(meeting, member, device, store)


class Group:
    """The group, seen by one of its members."""

    def __init__(self, meeting: Meeting, member: int, device: torch.device, store: Any) -> None:
        """Waits until all members are there. Raises BrokenGroupError after MEET_SECONDS."""
        self.meeting, self._device = meeting, device
        self._broken: str | None = None
        self._under_way: deque[tuple[Any, Tensor]] = deque()
        try:
            self._group = _process_group(dist.PrefixStore(meeting.name, store), member, meeting.receivers + 1, device)
            self._group.barrier().wait()
        except RuntimeError as error:
            raise BrokenGroupError(_unmet(meeting, error)) from error

    @property
    def broken(self) -> str | None:
        """What broke the group; None while it is whole."""
        return self._broken

    def send(self, bucket: Bucket) -> None:
        """Have a bucket sent, which must not change any more; nothing where the group is broken."""
        if self._broken is None:
            self._begin(bucket.data)
            self._wait_for_all_but(_ON_THE_WAY - 1)

    def finish(self) -> None:
        """Wait until all is sent."""
        self._wait_for_all_but(0)

    def receive(self, shapes: Iterable[BucketShape]) -> Iterator[Bucket]:
        """The buckets that are sent, of these shapes. Raises BrokenGroupError."""
        coming: deque[tuple[BucketShape, Tensor]] = deque()
        for shape in shapes:
            data = torch.empty(shape.num_bytes, dtype=torch.uint8, device=self._device)
            self._begin(data)
            coming.append((shape, data))
            if len(coming) == _ON_THE_WAY:
                yield self._received(coming)
        while coming:
            yield self._received(coming)

    def close(self) -> None:
        """Leave the group; members that still wait find it broken."""
        self._under_way.clear()
        self._group.abort()

    def _received(self, coming: "deque[tuple[BucketShape, Tensor]]") -> Bucket:
        self._wait_for_all_but(len(coming) - 1)
        if self._broken is not None:
            raise BrokenGroupError(self._broken)
        return Bucket(*coming.popleft())

    def _begin(self, data: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.asyncOp = 0, 0, True
        options.timeout = timedelta(seconds=MEET_SECONDS)
        try:
            self._under_way.append((self._group.broadcast([data], options), data))
        except RuntimeError as error:
            self._break(error)

    def _wait_for_all_but(self, num: int) -> None:
        while len(self._under_way) > num and self._broken is None:
            work, _ = self._under_way.popleft()
            try:
                work.wait()
            except RuntimeError as error:
                self._break(error)

    def _break(self, error: RuntimeError) -> None:
        self._broken = f"the group that weights are sent through broke: {_first_line(error)}"
        self.close()


def _process_group(store: Any, member: int, size: int, device: torch.device) -> Any:
    patience = timedelta(seconds=MEET_SECONDS)
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, member, size, patience)
    torch.cuda.set_device(device)
    options = dist.ProcessGroupNCCL.Options()  # type: ignore[attr-defined]  # not in torch's builds without CUDA
    options._timeout = patience
    return dist.ProcessGroupNCCL(store, member, size, options)  # type: ignore[attr-defined]


def _unmet(meeting: Meeting, error: RuntimeError) -> str:
    return (
        f"the group that weights are sent through did not form within {MEET_SECONDS:.0f} s: one sender at "
        f"{meeting.host}:{meeting.port} and {meeting.receivers} rollout workers ({_first_line(error)}). Let the nodes "
        "reach each other on all ports, or set pool.transport to object_store."
    )


def _first_line(error: RuntimeError) -> str:
    return f"{error}".strip().partition("\n")[0][:200]
