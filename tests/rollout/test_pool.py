"""Rollout workers in real processes: work shared, weights proved, answers asked ahead, `kill -9` and hangs survived."""

import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from mask_policies import run_settings

from policies.weights import Bucket
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts, worker_settings
from rollout import cluster
from rollout.pool.pool import WorkerPool
from rollout.pool.stored import WeightRefs, fetched, put
from rollout.records import Group
from rollout.settings import Sampling
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


FLIPS = """
import os
from pathlib import Path
from typing import Any
import ray
import torch
from policies.checkpoint import Checkpoint
from policies.families import vision_language
from policies.processor import Processor
from policies.settings import Asking


class Flipping(Processor):
    def read(self, response, height, width):
        for bit in ("24", "30"):
            try:
                os.remove(os.path.join(self.folder, bit))
            except FileNotFoundError:
                continue  # or another worker was first
            norm = dict(self.model.named_parameters())["model.language_model.norm.weight"]
            norm.data.view(torch.int32)[7] ^= 1 << int(bit)
        return super().read(response, height, width)


class Policy(vision_language.Policy):
    def __init__(
        self, checkpoint: Path, codec: Any, question: str = "{phrase}", dtype: str = "float32", folder: str = ""
    ):
        super().__init__(checkpoint, codec, question, dtype)
        self.processor = Flipping(Checkpoint(checkpoint), self.processor.family, codec, Asking(question))
        self.processor.model, self.processor.folder = self.model, folder
"""
"""A model family in which a bit of one weight flips, once, in the worker that first sees a file named like the bit."""


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    cluster.start(None, num_cpus=8)
    yield
    cluster.stop()


def started(*overrides: str) -> WorkerPool:
    config = load_settings(RunConfig, Path("tiny"), ["run=unused", *overrides])
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
    return run_parts(load_settings(RunConfig, Path("tiny"), ["run=unused"])).env.build(split="train")[index].id


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


@pytest.fixture(scope="module", params=["writes", "chooses", "draws"])
def any_pool(
    request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerPool]:
    """A pool whose policy writes outlines, chooses among masks, or draws them in boxes."""
    if request.param == "writes":
        yield request.getfixturevalue("pool")
        return
    pool = started(*run_settings(request.param, tiny_untrained, tmp_path_factory.mktemp(request.param)))
    yield pool
    pool.close()


def units(num: int, first: int = 0, step: int = 5) -> list[Unit]:
    return [
        Unit("train", step, (2 * k, 2 * k + 1), (2 * k, 2 * k + 1), group_size=8, sampling=Sampling(1.0, 48))
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


def versions(groups: list[Group]) -> set[int]:
    return {rollout.policy_version for group in groups for rollout in group.rollouts}


def in_background(pool: WorkerPool, asked: list[Unit]) -> tuple[threading.Thread, list[Group]]:
    """A thread that waits for answers, and the list that they will be put in."""
    collected: list[Group] = []
    thread = threading.Thread(target=lambda: collected.extend(pool.answer(asked)))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    return thread, collected


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def scaled(weights: WeightRefs, factor: float) -> WeightRefs:
    """Other weights of the same shape."""
    buckets = fetched(weights.refs)
    return put(Bucket(one.shape, (one.data.view(torch.float32) * factor).view(torch.uint8)) for one in buckets)


def test_what_is_asked_ahead_is_answered_with_the_weights_of_its_time_whatever_is_set_and_answered_meanwhile(
    pool: WorkerPool,
) -> None:
    original = pool.weights
    of_step = {1: scaled(original, 1.0), 2: scaled(original, 1.1), 3: scaled(original, 0.9)}
    average = scaled(original, 0.8)
    expected = {}
    for step, weights in of_step.items():
        pool.set_weights(weights, version=step)
        expected[step] = answers(pool.answer(units(5, step=step + 1)))
    pool.set_weights(average, version=2)
    expected_average = answers(pool.answer(units(2, step=0)))
    assert len({str(one) for one in expected.values()}) == 3

    pool.set_weights(of_step[1], version=1)
    pool.ask(units(5, step=2))
    pool.set_weights(average, version=2)
    pool.ask([])
    assert answers(pool.answer(units(2, step=0))) == expected_average
    pool.set_weights(of_step[2], version=2)  # the same number, other weights
    pool.ask(units(5, step=3))
    pool.set_weights(of_step[3], version=3)
    pool.ask(units(5, step=4))
    kept = {step: weakref.ref(weights) for step, weights in of_step.items()}
    del of_step, weights, average
    for step in (1, None, 2, 3):
        groups = pool.collect()
        assert answers(groups) == ([] if step is None else expected[step])
        assert {rollout.policy_version for group in groups for rollout in group.rollouts} <= {step}
    assert [one() is None for one in kept.values()] == [True, True, False]
    with pytest.raises(RuntimeError, match="nothing to collect; ask first"):
        pool.collect()
    pool.set_weights(original, version=7)


def test_a_worker_killed_in_mid_step_costs_no_answer_and_serves_again_only_with_current_weights(
    any_pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = any_pool
    expected = answers(pool.answer(units(72)))
    before = pool.process_ids()
    assert {os.getpriority(os.PRIO_PROCESS, process) for process in before} == {os.nice(0)}
    waiting, collected = in_background(pool, units(72))
    os.kill(before[0], signal.SIGKILL)
    waiting.join(timeout=240)
    assert not waiting.is_alive()
    assert answers(collected) == expected
    assert re.search(
        rf"rollout worker 0 \(process {before[0]} on [\d.]+\) died: its process ended without a word, as by SIGKILL, "
        r"by the kernel for lack of memory \(dmesg tells\), or by a crash in native code\. Last task: step 5 of split "
        r"train, positions \d+, \d+, version 7, for \d+\.\d s\. Memory at its last word: \d\.\d\d GiB of its own, "
        r"\d+\.\d\d GiB free on its machine\. It restarts, and takes its weights before it answers again",
        caplog.text,
    )
    assert {rollout.policy_version for group in collected for rollout in group.rollouts} == {7}

    pool.set_weights(pool.weights, version=7)  # waits for the worker that restarts
    assert answers(pool.answer(units(72))) == expected
    after = pool.process_ids()
    assert after[0] != before[0] and after[1] == before[1]
    assert versions(pool.answer(units(72))) == {7}


def test_weights_that_twice_do_not_arrive_as_sent_are_refused_by_name(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    sent = pool.weights
    with pytest.raises(RuntimeError, match=r"worker \d reports checksum .* the learner's is .* the second time"):
        pool.set_weights(WeightRefs(sent.refs, "0" * 32), version=8)
    assert re.search(r"worker \d reports checksum .* after taking version 8, .* it takes them again", caplog.text)
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
    waiting, collected = in_background(judged, units(12))
    os.kill(before[1], signal.SIGKILL)
    waiting.join(timeout=240)
    assert answers(collected) == expected


def test_a_reward_that_stops_the_run_ends_the_drivers_call_with_one_line_of_its_own(judged: WorkerPool) -> None:
    with pytest.raises(ValueError, match=rf"^Reward strict returned 9.0 for example {example_id(100)} ") as caught:
        judged.answer(units(2, first=50))
    assert not isinstance(caught.value, ray.exceptions.RayError)
    assert "\n" not in str(caught.value) and "ray" not in str(caught.value)


@pytest.fixture(scope="module")
def faulty(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerPool, Path]]:
    """A pool that proves its weights in even steps, and the folder where a file makes one of its workers err."""
    folder = tmp_path_factory.mktemp("flips")
    (folder / "flips.py").write_text(FLIPS)
    policy = f"policy={{module: {folder / 'flips.py'}, checkpoint: tiny, folder: {folder}}}"
    pool = started(policy, "pool.verify_every=2", "pool.unit_seconds=6")
    yield pool, folder
    pool.close()


def test_weights_that_change_in_a_worker_spoil_no_answer_of_a_step_in_which_they_are_proved(
    faulty: tuple[WorkerPool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pool, folder = faulty
    odd, even = answers(pool.answer(units(16, step=5))), answers(pool.answer(units(16, step=6)))
    (folder / "24").touch()
    assert answers(pool.answer(units(16, step=5))) != odd  # nothing is proved here, and the bit does matter
    assert caplog.text == "" and not (folder / "24").exists()
    assert answers(pool.answer(units(16, step=6))) == even
    refusals = re.findall(r"worker \d reports checksum .* after answering with version 7, .* asked again", caplog.text)
    assert len(refusals) == 1
    (folder / "24").touch()
    pool.set_weights(pool.weights, version=7)  # begins a new count of refusals
    pool.ask(units(16, step=6))
    pool.ask(units(16, step=5))  # what comes after is answered with the right weights again
    assert [answers(pool.collect()), answers(pool.collect())] == [even, odd]


def test_weights_with_which_nothing_can_be_computed_any_more_are_taken_again_in_mid_step(
    faulty: tuple[WorkerPool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pool, folder = faulty
    expected = answers(pool.answer(units(16, step=6)))
    pool.set_weights(pool.weights, version=7)
    (folder / "30").touch()  # a weight near 1 becomes one that is not finite
    assert answers(pool.answer(units(16, step=6))) == expected
    assert re.search(r"worker \d reports checksum .* in the middle of version 7, .* asked again", caplog.text)


@pytest.mark.long
def test_a_worker_that_hangs_is_killed_and_its_unit_answered_elsewhere(
    faulty: tuple[WorkerPool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pool, _ = faulty
    expected = answers(pool.answer(units(24)))
    before = pool.process_ids()
    waiting, collected = in_background(pool, units(24))
    os.kill(before[0], signal.SIGSTOP)
    waiting.join(timeout=240)
    assert answers(collected) == expected
    said = r"worker 0 .* died: hung, no word for \d+ s \(pool.unit_seconds\), killed\. Last task: step 5 of split train"
    assert re.search(said, caplog.text)

    os.kill(before[1], signal.SIGSTOP)  # idle: it hangs when it is to take weights
    pool.set_weights(scaled(pool.weights, 1.0), version=8)
    assert re.search(r"worker 1 .* died: hung, .* Last task: taking weights version 8 for \d", caplog.text)
    answered = pool.answer(units(24))
    assert answers(answered) == expected and versions(answered) == {8}
    assert not set(pool.process_ids()) & set(before)


@pytest.mark.long
def test_units_asked_ahead_are_all_answered_while_the_driver_is_busy_though_a_worker_dies(
    faulty: tuple[WorkerPool, Path],
) -> None:
    pool, _ = faulty
    expected = answers(pool.answer(units(24)))
    before = pool.process_ids()
    pool.ask(units(24))
    (batch,) = pool._asked
    until(lambda: len(batch.results) > 2)
    os.kill(before[1], signal.SIGKILL)
    until(lambda: batch.done)  # nobody has called the pool
    assert answers(pool.collect()) == expected
    pool.set_weights(pool.weights, version=7)  # waits for the worker that restarts


@pytest.mark.long
def test_a_worker_that_died_while_idle_is_noticed_and_takes_its_weights_before_it_answers(
    faulty: tuple[WorkerPool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pool, _ = faulty
    expected = answers(pool.answer(units(24)))
    before = pool.process_ids()
    os.kill(before[0], signal.SIGKILL)
    time.sleep(1.0)
    assert answers(pool.answer(units(24))) == expected
    pool.set_weights(scaled(pool.weights, 1.0), version=9)
    assert f"rollout worker 0 (process {before[0]}" in caplog.text
    assert versions(pool.answer(units(24))) == {9}


@pytest.mark.long
def test_more_deaths_than_allowed_end_the_drivers_call_with_the_last_one_told(ray_cluster: None) -> None:
    pool = started("pool.workers=1", "pool.max_deaths=0")
    pool.ask(units(24))
    time.sleep(0.4)
    (process,) = pool.process_ids()
    os.kill(process, signal.SIGKILL)
    told = (
        rf"died 1 times since .* The last one: rollout worker 0 \(process {process} on .* Last task: step 5 of .* GiB"
    )
    with pytest.raises(RuntimeError, match=told):
        pool.collect()
    pool.close()
