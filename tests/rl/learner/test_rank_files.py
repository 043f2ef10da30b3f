"""What ranks write is read by any number of ranks; plain runs that were never interrupted are the oracle."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Session, Weights, batch, run

from rl.config.learner import LearnerSettings
from rl.learner.batches.batch import Batch

SLOW = replace(LEARNER, lr=1e-5)
"""An update as large as a real run's: 1e-5 a weight, so that 1e-6 is a tenth of one."""
STEADY = {
    f"{dtype}-{stage}": replace(SLOW, zero_stage=stage, dtype=dtype) for dtype in ("float32",) for stage in (0, 1, 2, 3)
}

TOWER = replace(SLOW, vision_lr_share=0.25)
"""With a second group of parameters, whose rate is a share of the first one's."""


@pytest.fixture(scope="module")
def batches(tiny_untrained: Path) -> list[Batch]:
    return [batch(tiny_untrained, seed) for seed in (0, 1, 2)]


@pytest.mark.long
def test_a_run_goes_on_with_one_rank_then_two_then_one_as_if_it_had_never_stopped(
    tiny_untrained: Path, batches: list[Batch], tmp_path: Path
) -> None:
    same_as_ever(tiny_untrained, batches, tmp_path, STEADY)


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_share_of_the_rate_stays_that_of_its_parameters_whatever_number_of_ranks_goes_on(
    tiny_untrained: Path, batches: list[Batch], tmp_path: Path, stage: int
) -> None:
    [shared] = same_as_ever(tiny_untrained, batches, tmp_path, {"tower": replace(TOWER, zero_stage=stage)})
    (without,) = run(tiny_untrained, [Session(replace(SLOW, zero_stage=stage), batches)])
    assert np.abs(shared[-1] - without[-1]).max() > 5e-6  # the share does matter


def same_as_ever(
    tiny_untrained: Path, batches: list[Batch], tmp_path: Path, learners: dict[str, LearnerSettings]
) -> list[list[Weights]]:
    """Go on by one rank, two and one; the weights of runs that one rank never stopped, which must be the same."""
    names, settings = list(learners), list(learners.values())
    whole = run(tiny_untrained, [Session(each, batches) for each in settings])
    run(tiny_untrained, [Session(e, batches[:1], save=tmp_path / "one" / n) for n, e in learners.items()])
    load = [Session(e, batches[1:2], tmp_path / "one" / n, tmp_path / "two" / n) for n, e in learners.items()]
    by_two = run(tiny_untrained, load, ranks=2)
    back = run(tiny_untrained, [Session(e, batches[2:], tmp_path / "two" / n) for n, e in learners.items()])
    for name, uninterrupted, two, one in zip(names, whole, by_two, back, strict=True):
        print(name, [np.abs(a - b).max() for a, b in zip(two + one[1:], uninterrupted[1:], strict=True)])
        assert all(np.abs(after - before).max() > 5e-6 for before, after in pairwise(uninterrupted)), name
        assert np.array_equal(one[0], two[1]), name
        for found, right in zip(two + one[1:], uninterrupted[1:], strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-6, err_msg=name)
    return whole
