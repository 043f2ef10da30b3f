"""Two ranks that shard their weights send them as one rank does: rank 1 gathers with rank 0, and copies nothing."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ranks import LEARNER, settings, together

from policies.settings import LoraSettings
from policies.weights import BucketShape, held_checksum
from rl.config.learner import LearnerSettings, RankPlace
from rollout.pool import broadcast
from rollout.pool.sender import WeightSender
from rollout.pool.source import Sent

ADAPTERS = LoraSettings(rank=2, targets=["q_proj", "down_proj"])
CASES = {
    "whole": LearnerSettings(**{**vars(LEARNER), "minibatches": 1}),
    "shards": LearnerSettings(**{**vars(LEARNER), "minibatches": 1, "zero_stage": 3}),
    "merged adapters of shards": LearnerSettings(
        **{**vars(LEARNER), "minibatches": 1, "zero_stage": 3, "lora": ADAPTERS}
    ),
}


@dataclass(frozen=True)
class Delivered:
    """What a test sees of one rank."""

    shapes: tuple[BucketShape, ...]
    copied: int
    """Times that weights were packed or summed."""
    sent: Sent | None = None
    held: str = ""
    """Checksum of what a receiver of all buckets then holds."""


def _deliver(place: RankPlace, checkpoint: Path, learner: LearnerSettings) -> Delivered:
    import policies.weights as weights
    import rollout.pool.sender as sending
    from rl.learner.rank import LearnerRank

    calls: list[int] = []
    make, word_sums = weights.make_bucket, sending.word_sums

    def counted_make(part):  # type: ignore[no-untyped-def]
        calls.append(1)
        return make(part)

    def counted_sums(part):  # type: ignore[no-untyped-def]
        calls.append(1)
        return word_sums(part)

    sending.make_bucket, sending.word_sums = counted_make, counted_sums  # type: ignore[attr-defined]
    rank = LearnerRank(settings(checkpoint, learner), place)
    if place.rank > 0:
        rank.walk()
        return Delivered(rank.shapes(), len(calls))
    sender = WeightSender(rank.device)
    meeting = sender.meeting(receivers=1)
    receiver = settings(checkpoint, learner).policy.build()
    with torch.no_grad():
        for parameter in receiver.model.parameters():
            parameter.zero_()

    def receive() -> None:
        for bucket in broadcast.join(meeting, 1, torch.device("cpu")).receive(rank.shapes()):
            weights.load_bucket(receiver.model, bucket)

    thread = threading.Thread(target=receive)
    thread.start()
    sent = sender.send(rank.parts(bucket_bytes=weights.BUCKET_BYTES), meeting, strong=True)
    thread.join(timeout=100)
    return Delivered(rank.shapes(), len(calls), sent, held_checksum(receiver.model))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_rank_0_of_two_broadcasts_is_the_checkpoint_to_the_bit_and_rank_1_copies_nothing(
    tiny_untrained: Path, case: str
) -> None:
    first, second = together(_deliver, 2, tiny_untrained, CASES[case])
    stored = held_checksum(settings(tiny_untrained, CASES[case]).policy.build().model)
    assert first.sent.broken is None and first.sent.checksum == stored == first.held
    assert first.shapes == second.shapes
    assert (first.copied, second.copied) == (2 * len(first.shapes), 0)
