"""A push of weights by its stages: packed, summed, copied to the host, put into the object store, taken, proved."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from policies.checksums import checksum_of, sha256_of, word_sums
from policies.weights import Bucket, bucket_names, held_checksum, load_bucket, make_bucket, shape_of
from rl.bench.gpu import subject
from rl.bench.gpu.clock import gb, wait
from rl.bench.gpu.part import Measured, Site
from rollout import cluster
from rollout.pool import stored

STAGES = {
    "pack": "one buffer a bucket, on the card",
    "word sums": "on the card",
    "to pageable host memory": "as the object store takes it",
    "to pinned host memory": "beside it, for comparison; not part of the push",
    "object store, put": "",
    "object store, take": "fetched, and copied into the parameters",
    "proof": "word sums of what the receiver holds",
    "SHA-256": "on the host, of one bucket in ten, scaled up; not part of the push",
}
"""What is timed, and where."""
_APART = ("to pinned host memory", "SHA-256")
_HASHED_EVERY = 10


class Stages:
    """Adds up seconds by stage; waits for the device, so that each stage's own work is counted."""

    def __init__(self, device: str) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._device = device
        self._since = time.perf_counter()

    def begin(self) -> None:
        """What was done up to here belongs to no stage."""
        wait(self._device)
        self._since = time.perf_counter()

    def end(self, stage: str) -> None:
        """What was done since the last call belongs to a stage."""
        wait(self._device)
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now


def measure(site: Site) -> Measured:
    """One push through the object store after one that does not count, both ends on the same device."""
    policy = subject.random_policy(site)
    model: nn.Module = policy.model
    size = sum(parameter.nbytes for parameter in model.parameters())
    cluster.start(None, num_cpus=1, object_store_bytes=size * 5 // 4 + 2**28)
    try:
        word_sums(list(model.parameters())[:1])  # a kernel is compiled
        seconds, arrived = pushed(model, site)
    finally:
        cluster.stop()
    whole = sum(value for stage, value in seconds.items() if stage not in _APART)
    rows = [
        (stage, f"{value:.3f}", gb(size / value if value else None), STAGES[stage]) for stage, value in seconds.items()
    ]
    rows.append(("push, all stages one after the other", f"{whole:.3f}", gb(size / whole), ""))
    findings = () if arrived else ("the weights that were taken have another checksum than those that were sent",)
    notes = (
        f"{gb(size)} GB of weights; a run makes a bucket while the last one is on its way, so that it takes less.",
        "NCCL between a rank and workers (pool.transport: broadcast) needs two cards, and is not measured here; "
        "`polytrace bench push` measures the same code on gloo.",
    )
    numbers: dict[str, Any] = {"bytes": size, "seconds": seconds, "push_seconds": whole, "arrived": arrived}
    return Measured(("stage", "seconds", "GB a second", "where"), tuple(rows), numbers, findings, notes)


def pushed(model: nn.Module, site: Site) -> tuple[dict[str, float], bool]:
    """Seconds by stage of weights that go into the object store and back into the same model, emptied meanwhile; and
    whether they arrived. Ray must run."""
    stages, refs = Stages(site.device), []
    names: list[str] = []
    sums: list[int] = []
    pinned, size, hashed = _pinned(model) if site.on_card else None, 0, 0
    for number, part in enumerate(bucket_names(model)):
        stages.begin()
        bucket = make_bucket(part)
        stages.end("pack")
        sums += word_sums([tensor for _, tensor in part])
        stages.end("word sums")
        host = Bucket(bucket.shape, bucket.data.cpu())
        stages.end("to pageable host memory")
        refs.append(cluster.stored(stored.StoredBucket.of(host)))
        stages.end("object store, put")
        hashed += _apart(stages, bucket, pinned, hash_it=number % _HASHED_EVERY == 0)
        size += len(host.data)
        names += bucket.shape.names
    stages.seconds["SHA-256"] *= size / hashed
    _forget(model)
    stages.begin()
    for arrived in stored.fetched(refs):
        load_bucket(model, arrived)
    stages.end("object store, take")
    held = held_checksum(model)
    stages.end("proof")
    return stages.seconds, held == checksum_of(names, sums)


def _apart(stages: Stages, bucket: Bucket, pinned: Tensor | None, hash_it: bool) -> int:
    """Stages beside the push: a copy to pinned memory, and SHA-256; returns the bytes that were hashed."""
    if pinned is not None:
        stages.begin()
        pinned[: len(bucket.data)].copy_(bucket.data)
        stages.end("to pinned host memory")
    if not hash_it:
        return 0
    host = bucket.data.cpu()
    stages.begin()
    sha256_of([host])
    stages.end("SHA-256")
    return len(host)


def _pinned(model: nn.Module) -> Tensor:
    """Room for the largest bucket in pinned memory."""
    largest = max(shape.num_bytes for shape in map(shape_of, bucket_names(model)))
    return torch.empty(largest, dtype=torch.uint8, pin_memory=True)


def _forget(model: nn.Module) -> None:
    """Hold zeros."""
    with torch.no_grad():
        for parameter in _parameters(model):
            parameter.zero_()


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for part in bucket_names(model) for _, parameter in part)
