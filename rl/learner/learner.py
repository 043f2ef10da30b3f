"""The learner as the main loop sees it: all ranks behind step, weights, save and load; and one rank as Ray calls it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from policies.weights import Bucket
from rl.config.learner import RankPlace, RankSettings
from rl.learner.batch import Batch
from rl.learner.rank import LearnerRank
from rl.learner.ranks import STORE_FULL, RankActor, RankGroup, Reply, full_store, reply
from rollout import cluster
from rollout.pool.pool import WeightRefs


class LearnerActor(RankActor):
    """A LearnerRank as Ray calls it."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        self._learner, self._place = LearnerRank(settings, place), place
        super().__init__(self._learner)

    def step(self, batch: Batch) -> Reply:
        """LearnerRank.step."""
        return reply(self._learner.step(batch))

    def put_buckets(self, average: bool) -> Reply:
        """(reference, SHA-256) of each bucket of weights.

        Rank 0 puts them into the object store, the others only take part.
        """
        return reply([(self._put(bucket), bucket.sha256) for bucket in self._learner.buckets(average)])

    def _put(self, bucket: Bucket) -> Any:
        return cluster.stored(bucket) if self._place.rank == 0 else None


class Learner:
    """All ranks together. Ray must run (rollout/cluster.py).

    Every call raises ChildProcessError where a rank dies in it, and what a rank itself raises of ValueError and
    OSError; after either, all ranks have been ended.
    """

    def __init__(
        self, settings: RankSettings, places: PlacementGroup | None = None, patience: float = cluster.PATIENCE_SECONDS
    ) -> None:
        """places: a bundle per rank (cluster.place); patience: seconds of waiting for a rank until it is logged."""
        learner = settings.learner
        self._ranks = RankGroup(LearnerActor, settings, learner.ranks, learner.gpus_per_rank, places, patience)

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from a rollout batch; returns the statistics of rank 0."""
        try:
            shared = ray.put(batch)
        except STORE_FULL as error:
            raise full_store(error) from error
        return self._ranks.ask("step", [rank.step.remote(shared) for rank in self._ranks.actors])[0]

    def weights(self, average: bool = False) -> WeightRefs:
        """The weights, or their running average where there is one, by reference; the driver never holds them."""
        buckets = self._ranks.ask("weights", [rank.put_buckets.remote(average) for rank in self._ranks.actors])[0]
        return WeightRefs(tuple(ref for ref, _ in buckets), tuple(sha256 for _, sha256 in buckets))

    def buckets(self) -> Iterator[Bucket]:
        """The weights themselves, bucket by bucket, for a policy in this process."""
        return (ray.get(ref) for ref in self.weights().refs)

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        self._ranks.save(folder, tag)

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        self._ranks.load(folder, tag)

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        self._ranks.save_policy(folder)

    def process_ids(self) -> list[int]:
        """Process of each rank, for people and for tests of faults."""
        return self._ranks.process_ids()

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()
