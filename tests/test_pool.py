"""Rollout workers in real processes: work shared, weights proved, `kill -9` survived."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rl.config import RunConfig, run_parts, worker_settings
from rl.settings import load_settings
from rollout import cluster
from rollout.engine_shared import Sampling
from rollout.pool import WeightRefs, WorkerPool
from rollout.records import Group
from rollout.worker import Unit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    config = load_settings(RunConfig, Path("demo"), ["run=unused"])
    parts = run_parts(config)
    cluster.start(None, num_cpus=2)
    pool = WorkerPool(config.pool, worker_settings(config, parts))
    pool.set_weights(pool.checkpoint_weights(Path(parts.policy.settings["checkpoint"])), version=7)
    yield pool
    pool.close()
    cluster.stop()


def units(num: int) -> list[Unit]:
    return [
        Unit("train", 5, (2 * k, 2 * k + 1), (2 * k, 2 * k + 1), group_size=8, sampling=Sampling(1.0, 48))
        for k in range(num)
    ]


def answers(groups: list[Group]) -> list[tuple[int, list[list[int]], list[list[float]]]]:
    return [
        (
            group.position,
            [rollout.response.tokens.tolist() for rollout in group.rollouts],
            [rollout.response.logprobs.tolist() for rollout in group.rollouts],
        )
        for group in groups
    ]


def test_a_worker_killed_in_mid_step_costs_no_answer_and_serves_again_only_with_current_weights(
    pool: WorkerPool,
) -> None:
    expected = answers(pool.answer(units(24)))
    before = pool.process_ids()
    collected: list[Group] = []
    step = threading.Thread(target=lambda: collected.extend(pool.answer(units(24))))
    step.start()
    time.sleep(0.4)
    assert step.is_alive()
    os.kill(before[0], signal.SIGKILL)
    step.join(timeout=240)
    assert not step.is_alive()
    assert answers(collected) == expected
    assert {rollout.policy_version for group in collected for rollout in group.rollouts} == {7}

    pool.set_weights(pool.weights, version=7)  # waits for the worker that restarts
    assert answers(pool.answer(units(24))) == expected
    after = pool.process_ids()
    assert after[0] != before[0] and after[1] == before[1]
    assert pool.versions() == [7, 7]


def test_weights_that_do_not_arrive_as_sent_are_refused_by_name(pool: WorkerPool) -> None:
    sent = pool.weights
    false_hashes = ("0" * 64, *sent.hashes[1:])
    with pytest.raises(RuntimeError, match=r"worker \d reports checksum .* the learner's is"):
        pool.set_weights(WeightRefs(sent.refs, false_hashes), version=8)
    pool.set_weights(sent, version=7)


def test_a_unit_for_another_version_is_refused_by_the_worker(pool: WorkerPool) -> None:
    with pytest.raises(
        ray.exceptions.RayTaskError, match="worker 0 holds weights of version 7, the unit of step 5 wants 9"
    ):
        ray.get(pool.actors[0].answer.remote(units(1)[0], 9))
