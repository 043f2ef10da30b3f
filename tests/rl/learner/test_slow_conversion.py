"""Files of another number of ranks take long to convert; ranks wait for it, whatever their collectives may take.

At 7B it is minutes of rank 0 alone, more than a collective may take.
"""

import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Session, Weights, all_weights, batch, of_dtype, run, together

from rl.config.learner import LearnerSettings, RankPlace

pytestmark = pytest.mark.long

COLLECTIVE_SECONDS = 20.0
STAGE = replace(LEARNER, zero_stage=2)


def resumed(place: RankPlace, checkpoint: Path, learner: LearnerSettings, folder: Path) -> tuple[Weights, float]:
    """A rank's weights after it has read what one rank wrote, and the seconds that that took.

    Converting takes rank 0 twice as long as any collective of the ranks may take.
    """
    import torch

    from rl.learner import files
    from rl.learner.rank import LearnerRank

    os.environ |= {"MASTER_ADDR": place.host, "MASTER_PORT": str(place.port)}
    limit = timedelta(seconds=COLLECTIVE_SECONDS)
    torch.distributed.init_process_group("gloo", rank=place.rank, world_size=place.world_size, timeout=limit)
    convert = files._convert

    def slow(source: Path, universal: Path) -> None:
        time.sleep(2 * COLLECTIVE_SECONDS)
        convert(source, universal)

    files._convert = slow
    rank = LearnerRank(of_dtype(checkpoint, learner), place)
    began = time.monotonic()
    rank.load(folder.parent, folder.name)
    return all_weights(rank), time.monotonic() - began


def test_ranks_wait_for_a_conversion_that_takes_longer_than_a_collective_may(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    (written,) = run(tiny_untrained, [Session(STAGE, [batch(tiny_untrained, 0)], save=folder)])
    for weights, seconds in together(resumed, 2, tiny_untrained, STAGE, folder):
        assert seconds > 2 * COLLECTIVE_SECONDS
        assert np.array_equal(weights, written[1])
    assert not folder.with_name("one.universal").exists()
