"""What ranks write is read by any number of ranks; plain runs that were never interrupted are the oracle."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ranks import LEARNER, Session, batch, run

from rl.learner.batches.batch import Batch

SLOW = replace(LEARNER, lr=1e-5)
"""An update as large as a real run's: 1e-5 a weight, so that 1e-6 is a tenth of one."""
STEADY = {
    f"{dtype}-{stage}": replace(SLOW, zero_stage=stage, dtype=dtype) for dtype in ("float32",) for stage in (0, 1, 2, 3)
}


@pytest.fixture(scope="module")
def batches(tiny_untrained: Path) -> list[Batch]:
    return [batch(tiny_untrained, seed) for seed in (0, 1, 2)]


@pytest.mark.long
def test_a_run_goes_on_with_one_rank_then_two_then_one_as_if_it_had_never_stopped(
    tiny_untrained: Path, batches: list[Batch], tmp_path: Path
) -> None:
    names, settings = list(STEADY), list(STEADY.values())
    whole = run(tiny_untrained, [Session(each, batches) for each in settings])
    run(tiny_untrained, [Session(e, batches[:1], save=tmp_path / "one" / n) for n, e in STEADY.items()])
    load = [Session(e, batches[1:2], tmp_path / "one" / n, tmp_path / "two" / n) for n, e in STEADY.items()]
    by_two = run(tiny_untrained, load, ranks=2)
    back = run(tiny_untrained, [Session(e, batches[2:], tmp_path / "two" / n) for n, e in STEADY.items()])
    for name, uninterrupted, two, one in zip(names, whole, by_two, back, strict=True):
        print(name, [np.abs(a - b).max() for a, b in zip(two + one[1:], uninterrupted[1:], strict=True)])
        assert all(np.abs(after - before).max() > 5e-6 for before, after in pairwise(uninterrupted)), name
        assert np.array_equal(one[0], two[1]), name
        for found, right in zip(two + one[1:], uninterrupted[1:], strict=True):
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-6, err_msg=name)
