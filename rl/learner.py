"""The learner as the main loop sees it: Ray actors, one a rank, behind step, weights, save and load."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from policies.weights import Bucket
from rl.batch import Batch
from rl.learner_rank import LearnerRank
from rl.rank_settings import RankPlace, RankSettings
from rollout.pool import WeightRefs


class _Actor(LearnerRank):
    """LearnerRank as Ray calls it."""

    def put_buckets(self, average: bool) -> list[tuple[Any, str]]:
        """(reference, SHA-256) of each bucket of weights.

        Rank 0 puts them into the object store, the others only take part.
        """
        return [(self._put(bucket), bucket.sha256) for bucket in self.buckets(average)]

    def _put(self, bucket: Bucket) -> Any:
        return ray.put(bucket) if self._place.rank == 0 else None


class Learner:
    """All ranks together. Ray must run (rollout/cluster.py)."""

    def __init__(self, settings: RankSettings) -> None:
        learner = settings.learner
        remote = ray.remote(num_cpus=1, num_gpus=learner.gpus_per_rank)(_Actor)
        port = _free_port()
        places = [RankPlace(rank, learner.ranks, _this_host(), port) for rank in range(learner.ranks)]
        self._ranks: list[Any] = [remote.remote(settings, place) for place in places]

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from a rollout batch; returns the statistics of rank 0."""
        shared = ray.put(batch)
        return ray.get([rank.step.remote(shared) for rank in self._ranks])[0]

    def weights(self, average: bool = False) -> WeightRefs:
        """The weights, or their running average where there is one, by reference; the driver never holds them."""
        buckets = ray.get([rank.put_buckets.remote(average) for rank in self._ranks])[0]
        return WeightRefs(tuple(ref for ref, _ in buckets), tuple(sha256 for _, sha256 in buckets))

    def buckets(self) -> Iterator[Bucket]:
        """The weights themselves, bucket by bucket, for a policy in this process."""
        return (ray.get(ref) for ref in self.weights().refs)

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        ray.get([rank.save.remote(folder, tag) for rank in self._ranks])

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        ray.get([rank.load.remote(folder, tag) for rank in self._ranks])

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        ray.get([rank.save_policy.remote(folder) for rank in self._ranks])

    def close(self) -> None:
        """End the ranks."""
        for rank in self._ranks:
            ray.kill(rank)


def _this_host() -> str:
    return ray.util.get_node_ip_address()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
