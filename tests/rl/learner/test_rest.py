"""A rank that rested learns as one that never did, to the bit; what it gave up meanwhile is counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Weights, all_weights, batch, of_dtype, together

from rl.config.learner import LearnerSettings, RankPlace
from rl.learner.batches.batch import Batch

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Rested:
    """What a rank was found to be."""

    weights: list[Weights]
    """After each step."""
    while_resting: list[Weights]
    """What it hands out while it rests."""
    optimizer_bytes: list[int]
    """Of its optimizer's state on its device: awake, at rest, awake again."""
    gradients: list[int]
    """Parameters that have one: awake, after a backward pass, and at rest."""


def lived(place: RankPlace, checkpoint: Path, kinds: Sequence[LearnerSettings], batches: list[Batch]) -> list[Rested]:
    """A life of steps by each kind of learner, with a rest between two steps, and two before the last."""
    from rl.learner.rank import LearnerRank

    found = []
    for learner in kinds:
        rank = LearnerRank(of_dtype(checkpoint, learner), place)
        rest, network, one = rank._engine.rest, rank._engine.network, Rested([], [], [], [])
        for each in batches:
            if learner.offload_at_rest or learner.zero_stage == 0:
                rank.rest()
                one.while_resting.append(all_weights(rank, dtype=learner.dtype))
                rank.rest()
                rank.wake()
            rank.step(each)
            one.weights.append(all_weights(rank, dtype=learner.dtype))
        one.optimizer_bytes.append(rest.optimizer_bytes)
        for parameter in network.parameters():
            if learner.zero_stage == 0:
                parameter.grad = parameter.detach().clone()
        one.gradients.append(sum(parameter.grad is not None for parameter in network.parameters()))
        rank.rest()
        one.optimizer_bytes.append(rest.optimizer_bytes)
        one.gradients.append(sum(parameter.grad is not None for parameter in network.parameters()))
        rank.wake()
        one.optimizer_bytes.append(rest.optimizer_bytes)
        found.append(one)
    return found


def stages(dtype: str) -> list[LearnerSettings]:
    return [replace(LEARNER, zero_stage=stage, dtype=dtype) for stage in (1, 2, 3)]


@pytest.mark.parametrize(
    ("ranks", "dtypes"), [(1, ["float32", "bfloat16"]), pytest.param(2, ["bfloat16"], marks=pytest.mark.long)]
)
def test_a_rank_whose_optimizer_waited_on_the_host_learns_the_same_to_the_bit(
    ranks: int, dtypes: list[str], tiny_untrained: Path
) -> None:
    batches = [batch(tiny_untrained, seed) for seed in (0, 1, 2)]
    plain = [each for dtype in dtypes for each in stages(dtype)]
    resting = [replace(each, offload_at_rest=True) for each in plain]
    found = together(lived, ranks, tiny_untrained, [*plain, *resting], batches)[0]
    for one, other, learner in zip(found[: len(plain)], found[len(plain) :], plain, strict=True):
        assert len(one.weights) == 3 and not np.array_equal(one.weights[0], one.weights[2])
        for step, (expected, weights) in enumerate(zip(one.weights, other.weights, strict=True)):
            assert np.array_equal(weights, expected), (learner, step)
        # What was handed out at rest is what the step before left.
        assert np.array_equal(other.while_resting[2], other.weights[1])
        assert other.optimizer_bytes[0] == other.optimizer_bytes[2] > 0


def test_a_resting_rank_holds_no_gradient(tiny_untrained: Path) -> None:
    (found,) = together(lived, 1, tiny_untrained, [LEARNER], [batch(tiny_untrained, 0)])[0]
    assert found.gradients[0] > 20 and found.gradients[1] == 0


@pytest.mark.gpu
def test_a_resting_rank_on_a_card_holds_no_optimizer_state_there(tiny_untrained: Path) -> None:
    kinds = [replace(LEARNER, zero_stage=stage, offload_at_rest=True, gpus_per_rank=1.0) for stage in (1, 2, 3)]
    job = (tiny_untrained, kinds, [batch(tiny_untrained, 0)])
    for found in together(lived_on_card, 1, *job)[0]:
        awake, resting, again = found.optimizer_bytes
        assert awake == again > 0 and resting == 0


def lived_on_card(place: RankPlace, *job: object) -> list[Rested]:
    return lived(replace(place, device="cuda"), *job)  # type: ignore[arg-type]
