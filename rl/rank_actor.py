"""A learner rank as Ray calls it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from policies.weights import Bucket
from rl.batch import Batch
from rl.learner_rank import LearnerRank
from rl.rank_settings import RankPlace, RankSettings
from rollout import cluster


@dataclass(frozen=True)
class Reply:
    """What a rank answers."""

    value: Any
    memory_gib: float
    """Resident memory of its process when it answered."""


class RankActor:
    """A LearnerRank as Ray calls it."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        self._rank, self._place = LearnerRank(settings, place), place

    def begin(self) -> Reply:
        """Where this rank runs, for people."""
        return self._reply(f"process {os.getpid()} on {cluster.node_address()}")

    def step(self, batch: Batch) -> Reply:
        """LearnerRank.step."""
        return self._reply(self._rank.step(batch))

    def put_buckets(self, average: bool) -> Reply:
        """(reference, SHA-256) of each bucket of weights.

        Rank 0 puts them into the object store, the others only take part.
        """
        return self._reply([(self._put(bucket), bucket.sha256) for bucket in self._rank.buckets(average)])

    def save(self, folder: Path, tag: str) -> Reply:
        """LearnerRank.save."""
        self._rank.save(folder, tag)
        return self._reply(None)

    def load(self, folder: Path, tag: str) -> Reply:
        """LearnerRank.load."""
        self._rank.load(folder, tag)
        return self._reply(None)

    def save_policy(self, folder: Path) -> Reply:
        """LearnerRank.save_policy."""
        self._rank.save_policy(folder)
        return self._reply(None)

    def _put(self, bucket: Bucket) -> Any:
        return cluster.stored(bucket) if self._place.rank == 0 else None

    def _reply(self, value: Any) -> Reply:
        return Reply(value, psutil.Process().memory_info().rss / 2**30)
