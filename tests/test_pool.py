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


JUDGE = """
import time
from dataclasses import dataclass


@dataclass
class Reward:
    fails_on: str
    says: float
    weight: float = 1.0

    def __call__(self, comparison):
        time.sleep(0.01)
        return self.says if comparison.example_id == self.fails_on else 0.5
"""


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    cluster.start(None, num_cpus=4)
    yield
    cluster.stop()


def started(*overrides: str) -> WorkerPool:
    config = load_settings(RunConfig, Path("demo"), ["run=unused", *overrides])
    parts = run_parts(config)
    pool = WorkerPool(config.pool, worker_settings(config, parts))
    pool.set_weights(pool.checkpoint_weights(Path(parts.policy.settings["checkpoint"])), version=7)
    return pool


@pytest.fixture(scope="module")
def pool(ray_cluster: None) -> Iterator[WorkerPool]:
    pool = started()
    yield pool
    pool.close()


def example_id(index: int) -> str:
    return run_parts(load_settings(RunConfig, Path("demo"), ["run=unused"])).env.build(split="train")[index].id


@pytest.fixture(scope="module")
def judged(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """A pool with a reward in processes that says 7 of example 1, which is skipped, and one that says 9 of 100."""
    file = tmp_path_factory.mktemp("rewards") / "judge.py"
    file.write_text(JUDGE)
    slow = f"{{module: {file}, fails_on: {example_id(1)}, says: 7, processes: 2, seconds: 5, on_error: skip}}"
    strict = f"{{module: {file}, fails_on: {example_id(100)}, says: 9}}"
    pool = started(f"rewards.slow={slow}", f"rewards.strict={strict}")
    yield pool
    pool.close()


def units(num: int, first: int = 0) -> list[Unit]:
    return [
        Unit("train", 5, (2 * k, 2 * k + 1), (2 * k, 2 * k + 1), group_size=8, sampling=Sampling(1.0, 48))
        for k in range(first, first + num)
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
    assert {os.getpriority(os.PRIO_PROCESS, process) for process in before} == {os.nice(0)}
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


def test_with_slow_rewards_in_processes_the_answers_are_the_same_and_what_failed_is_told_by_the_driver(
    pool: WorkerPool, judged: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    groups = judged.answer(units(6))
    assert answers(groups) == answers(pool.answer(units(6)))
    valid = [rollout.terms["slow"] for group in groups for rollout in group.rollouts if rollout.answer.status.valid]
    assert set(valid) == {0.5, None} and judged.skipped == {"slow": valid.count(None)}
    assert f"Reward slow returned 7.0 for example {example_id(1)}" in caplog.text


def test_a_worker_with_several_units_in_hand_is_killed_and_costs_no_answer(judged: WorkerPool) -> None:
    expected = answers(judged.answer(units(12)))
    before = judged.process_ids()
    collected: list[Group] = []
    step = threading.Thread(target=lambda: collected.extend(judged.answer(units(12))))
    step.start()
    time.sleep(0.4)
    assert step.is_alive()
    os.kill(before[1], signal.SIGKILL)
    step.join(timeout=240)
    assert answers(collected) == expected


def test_a_reward_that_stops_the_run_ends_the_drivers_call_with_one_line_of_its_own(judged: WorkerPool) -> None:
    with pytest.raises(ValueError, match=rf"^Reward strict returned 9.0 for example {example_id(100)} ") as caught:
        judged.answer(units(2, first=50))
    assert not isinstance(caught.value, ray.exceptions.RayError)
    assert "\n" not in str(caught.value) and "ray" not in str(caught.value)
