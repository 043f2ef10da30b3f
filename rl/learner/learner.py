"""The learner as the main loop sees it: all ranks behind step, weights, save and load; and one rank as Ray calls it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup

from policies.weights import Bucket, BucketShape
from rl.config.learner import RankPlace, RankSettings
from rl.learner.batches.batch import Batch
from rl.learner.rank import LearnerRank
from rl.learner.ranks import STORE_FULL, RankActor, RankGroup, Reply, full_store, reply
from rl.learner.tuning import refuse_wrong_tuning
from rollout import cluster
from rollout.pool import stored
from rollout.pool.broadcast import Meeting
from rollout.pool.sender import WeightSender
from rollout.pool.source import Sent
from rollout.pool.stored import WeightRefs


class LearnerActor(RankActor):
    """A LearnerRank as Ray calls it."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        self._learner, self._place = LearnerRank(settings, place), place
        self._sender = WeightSender(self._learner.device)
        super().__init__(self._learner)

    def step(self, batch: Batch) -> Reply:
        """LearnerRank.step."""
        return reply(self._learner.step(batch))

    def rest(self) -> Reply:
        """LearnerRank.rest."""
        self._learner.rest()
        return reply(None)

    def wake(self) -> Reply:
        """LearnerRank.wake."""
        self._learner.wake()
        return reply(None)

    def shapes(self) -> Reply:
        """What each bucket of weights holds."""
        return reply(self._learner.shapes())

    def meeting(self, receivers: int) -> Reply:
        """Where a new group of this rank and so many receivers meets."""
        return reply(self._sender.meeting(receivers))

    def send(self, meeting: Meeting, average: bool, strong: bool) -> Reply:
        """Send the weights to who is at a meeting; rank 0 answers Sent, the others only take part."""
        if self._place.rank > 0:
            self._learner.walk()
            return reply(None)
        return reply(self._sender.send(self._learner.parts(average), meeting, strong))

    def put(self, average: bool, strong: bool) -> Reply:
        """Put the weights into the object store; rank 0 answers WeightRefs, the others only take part."""
        if self._place.rank > 0:
            self._learner.walk()
            return reply(None)
        return reply(stored.put(self._learner.buckets(average), strong))


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
        refuse_wrong_tuning(learner)
        self._changes, self._has_average = 0, learner.average > 0
        self._ranks = RankGroup(LearnerActor, settings, learner.ranks, learner.gpus_per_rank, places, patience)

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from a rollout batch; returns the statistics of rank 0."""
        self._changes += 1
        try:
            shared = ray.put(batch)
        except STORE_FULL as error:
            raise full_store(error) from error
        return self._ranks.ask("step", [rank.step.remote(shared) for rank in self._ranks.actors])[0]

    def weights(self, average: bool = False) -> "LearnerWeights":
        """The weights, or their running average where there is one; they stay where they are until they are sent."""
        return LearnerWeights(self, self._ranks, (self._changes, average and self._has_average))

    def buckets(self) -> Iterator[Bucket]:
        """The weights themselves, bucket by bucket, for a policy in this process."""
        return stored.fetched(self.weights().refs().refs)

    @property
    def changes(self) -> int:
        """How often the weights have changed, or may have."""
        return self._changes

    def rest(self) -> None:
        """Have all ranks let go of what rollout workers need of their cards, until `wake`."""
        self._ranks.ask("rest", [rank.rest.remote() for rank in self._ranks.actors])

    def wake(self) -> None:
        """Have all ranks take back what they let go of."""
        self._ranks.ask("wake", [rank.wake.remote() for rank in self._ranks.actors])

    def save(self, folder: Path, tag: str) -> None:
        """Write what is needed to go on, below folder/tag."""
        self._ranks.save(folder, tag)

    def load(self, folder: Path, tag: str) -> None:
        """Go on from `save`."""
        self._changes += 1
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


@dataclass(frozen=True)
class LearnerWeights:
    """The weights of a learner as they are after so many changes (rollout.pool.source.WeightSource)."""

    learner: Learner
    ranks: RankGroup
    state: tuple[int, bool]
    """How often the weights had changed, and whether their running average is meant."""

    def shapes(self) -> tuple[BucketShape, ...]:
        """What the buckets hold, in order."""
        return self.ranks.ask("shapes", [rank.shapes.remote() for rank in self.ranks.actors])[0]

    def meeting(self, receivers: int) -> Meeting:
        """Where a new group of rank 0 and so many receivers meets."""
        return self.ranks.ask("meeting", [self.ranks.actors[0].meeting.remote(receivers)])[0]

    def send(self, meeting: Meeting, strong: bool) -> Sent:
        """Send the weights from rank 0; strong: with SHA-256 of all bytes."""
        self._refuse_changed()
        calls = [rank.send.remote(meeting, self.state[1], strong) for rank in self.ranks.actors]
        return self.ranks.ask("sending weights", calls)[0]

    def refs(self, strong: bool = False) -> WeightRefs:
        """The weights through the object store. Raises RuntimeError where the learner has learned since."""
        self._refuse_changed()
        return self.ranks.ask("weights", [rank.put.remote(self.state[1], strong) for rank in self.ranks.actors])[0]

    def _refuse_changed(self) -> None:
        if self.learner.changes != self.state[0]:
            raise RuntimeError(
                "no rollout worker holds the weights that were asked for any more, and the learner has changed them "
                "since; go on from the last checkpoint by --resume. With pool.staleness, pool.transport object_store "
                "keeps them until they are no longer needed."
            )
