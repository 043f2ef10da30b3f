"""Workers that sleep between two sets of weights, in real processes: the same answers, and no death loses any."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_pool import answers, units, versions

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts, worker_settings
from rollout import cluster
from rollout.pool.pool import WorkerPool

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    cluster.start(None, num_cpus=8)
    yield
    cluster.stop()


def test_a_pool_that_slept_answers_the_same_and_what_dies_asleep_comes_back_asleep(ray_cluster: None) -> None:
    config = load_settings(
        RunConfig, Path("tiny"), ["run=unused", "pool.colocate=true", "learner.ranks=2", "learner.micro_groups=8"]
    )
    parts = run_parts(config)
    pool = WorkerPool(config.pool, worker_settings(config, parts))
    pool.sleep()
    weights = pool.checkpoint_weights(Path(parts.policy.settings["checkpoint"]))
    pool.set_weights(weights, version=7)
    expected = answers(pool.answer(units(4)))
    before = pool.process_ids()
    pool.sleep()
    with pytest.raises(RuntimeError, match="no weights yet; call set_weights first"):
        pool.answer(units(1))
    os.kill(before[0], signal.SIGKILL)
    pool.sleep()
    pool.set_weights(weights, version=8)
    found = pool.answer(units(4))
    assert answers(found) == expected and versions(found) == {8}
    assert pool.process_ids()[0] != before[0] and pool.process_ids()[1] == before[1]
    pool.close()
