"""With a frozen tower a step shows it each photo once, and learns what it learned before to the bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Outcome, batch, settings, steps, together

from rl.config.learner import RankPlace


def learn(place: RankPlace, checkpoint: Path, kl: float) -> list[tuple[Outcome, int]]:
    """Two steps with memory and without; how often the trained policy's tower was called."""
    from rl.learner.rank import LearnerRank

    found = []
    for remembers in (True, False):
        plain = settings(checkpoint, replace(LEARNER, freeze_vision=True))
        rank = LearnerRank(replace(plain, algorithm=plain.algorithm.with_settings(kl=kl)), place)
        calls: list[int] = []
        if not remembers:
            rank._images._most_bytes = 0
        rank._policy.network.vision_tower.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append((steps(rank, [batch(checkpoint, seed) for seed in (0, 1)]), len(calls)))
        assert rank._images.bytes == 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_a_frozen_tower_sees_each_photo_once_a_step_and_every_number_is_the_same(
    tiny_untrained: Path, kl: float
) -> None:
    ((kept, calls), (plain, plain_calls)) = together(learn, 1, tiny_untrained, kl)[0]
    assert kept.stats == plain.stats
    assert all(map(np.array_equal, kept.weights, plain.weights))
    # Two steps of two mini-batches of two passes; with a divergence the reference's tower comes first in two of four.
    assert plain_calls == 12 and calls == (8 if kl == 0.0 else 4)
