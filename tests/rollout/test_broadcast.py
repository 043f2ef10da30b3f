"""Weights through a process group: they arrive to the bit, and who dies, or missed them, gets them from others."""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from policies.weights import BucketShape, bucket_names, held_checksum, shape_of
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts, worker_settings
from rollout import cluster
from rollout.pool import broadcast, stored
from rollout.pool.broadcast import Meeting
from rollout.pool.handle import Broadcast
from rollout.pool.pool import WorkerPool
from rollout.pool.sender import WeightSender
from rollout.pool.source import Sent
from rollout.pool.stored import WeightRefs
from rollout.records import Group
from rollout.settings import Sampling
from rollout.worker import Unit

BUCKET_BYTES = 100_000


@ray.remote(num_cpus=0)
class Holder:
    """A policy in a process of its own, whose weights can be scaled."""

    def __init__(self, policy: Any) -> None:
        self.model = policy.build().model
        self.sender = WeightSender(torch.device("cpu"))

    def scale(self, factor: float) -> str:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(factor)
        return held_checksum(self.model)

    def shapes(self) -> tuple[BucketShape, ...]:
        return tuple(shape_of(part) for part in bucket_names(self.model, BUCKET_BYTES))

    def meeting(self, receivers: int) -> Meeting:
        return self.sender.meeting(receivers)

    def send(self, meeting: Meeting, strong: bool, seconds: float) -> Sent:
        def slowly() -> Iterator[Any]:
            for part in bucket_names(self.model, BUCKET_BYTES):
                time.sleep(seconds)
                yield part

        return self.sender.send(slowly(), meeting, strong)

    def refs(self) -> WeightRefs:
        from policies.weights import make_bucket

        return stored.put(map(make_bucket, bucket_names(self.model, BUCKET_BYTES)))


@dataclass
class Source:
    """A WeightSource that counts what is asked of it."""

    holder: Any
    state: tuple[int, bool] = (0, False)
    seconds: float = 0.0
    """Pause before each bucket."""
    sent: int = 0
    by_refs: int = 0
    meetings: int = 0

    def shapes(self) -> tuple[BucketShape, ...]:
        return ray.get(self.holder.shapes.remote())

    def meeting(self, receivers: int) -> Meeting:
        self.meetings += 1
        return ray.get(self.holder.meeting.remote(receivers))

    def send(self, meeting: Meeting, strong: bool) -> Sent:
        self.sent += 1
        return ray.get(self.holder.send.remote(meeting, strong, self.seconds))

    def refs(self, strong: bool = False) -> WeightRefs:
        self.by_refs += 1
        return ray.get(self.holder.refs.remote())

    def scaled(self, factor: float) -> str:
        """Other weights; returns their checksum."""
        self.state = (self.state[0] + 1, False)
        return ray.get(self.holder.scale.remote(factor))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    cluster.start(None, num_cpus=8)
    yield
    cluster.stop()


def config(*overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), ["run=unused", "pool.workers=2", *overrides])


@pytest.fixture(scope="module")
def pool(ray_cluster: None) -> Iterator[WorkerPool]:
    settings = config("pool.transport=broadcast")
    made = WorkerPool(settings.pool, worker_settings(settings, run_parts(settings)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def source(ray_cluster: None) -> Source:
    return Source(Holder.remote(run_parts(config()).policy))  # type: ignore[attr-defined]


def units(num: int = 4, step: int = 5) -> list[Unit]:
    return [
        Unit("train", step, (2 * k, 2 * k + 1), (2 * k, 2 * k + 1), group_size=4, sampling=Sampling(1.0, 48))
        for k in range(num)
    ]


def tokens(groups: list[Group]) -> list[list[list[int]]]:
    return [[rollout.response.tokens.tolist() for rollout in group.rollouts] for group in groups]


def test_weights_arrive_through_one_group_step_after_step_and_answers_are_those_of_the_object_store(
    pool: WorkerPool, source: Source
) -> None:
    first = source.scaled(1.0)
    pool.set_weights(source, version=0)
    answered = pool.answer(units())
    assert {group.policy_checksum for group in answered} == {first}
    second = source.scaled(1.01)
    pool.set_weights(source, version=1)
    again = pool.answer(units())
    assert {group.policy_checksum for group in again} == {second} != {first}
    assert (source.sent, source.meetings, source.by_refs) == (2, 1, 0)
    pool.set_weights(ray.get(source.holder.refs.remote()), version=2)
    assert tokens(pool.answer(units())) == tokens(again) != tokens(answered)


def test_weights_that_nobody_has_changed_are_not_sent_again(pool: WorkerPool, source: Source) -> None:
    source.scaled(1.0)
    before = source.sent
    for _ in range(2):
        pool.set_weights(source, version=3)
    assert source.sent == before + 1
    pool.set_weights(source, version=4)  # under another number they are
    assert source.sent == before + 2


def test_in_one_step_of_many_sha256_is_taken_on_both_sides(pool: WorkerPool, source: Source) -> None:
    source.scaled(1.0)
    pool.set_weights(source, version=100)
    sent = pool.weights
    assert isinstance(sent, Broadcast) and sent.sha256 is not None and len(sent.sha256) == 64
    source.scaled(1.0)
    pool.set_weights(source, version=101)
    assert pool.weights.sha256 is None


def test_a_worker_killed_after_the_delivery_gets_the_weights_from_the_other_and_no_answer_changes(
    pool: WorkerPool, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.scaled(1.0)
    pool.set_weights(source, version=5)
    expected = tokens(pool.answer(units(12)))
    by_refs = source.by_refs
    collected: list[Group] = []
    waiting = threading.Thread(target=lambda: collected.extend(pool.answer(units(12))))
    killed = pool.process_ids()[0]
    waiting.start()
    os.kill(killed, signal.SIGKILL)
    waiting.join(timeout=240)
    assert tokens(collected) == expected
    assert re.search(rf"rollout worker 0 \(process {killed} .*\) died", caplog.text)
    checksum = source.scaled(1.0)
    meetings = source.meetings
    pool.set_weights(source, version=6)  # all take part again, in a group of their own
    assert {group.policy_checksum for group in pool.answer(units())} == {checksum}
    assert (source.meetings, source.by_refs) == (meetings + 1, by_refs)


def test_a_worker_killed_in_the_middle_of_a_delivery_costs_a_delivery_by_the_store_and_no_answer(
    pool: WorkerPool, source: Source, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.scaled(1.0)
    pool.set_weights(source, version=7)
    expected = tokens(pool.answer(units()))
    checksum = source.scaled(1.0)
    source.seconds, by_refs = 0.5, source.by_refs
    killed = pool.process_ids()[1]
    killer = threading.Timer(1.5, os.kill, (killed, signal.SIGKILL))
    killer.start()
    with caplog.at_level(logging.WARNING):
        pool.set_weights(source, version=8)
    source.seconds = 0.0
    assert {group.policy_checksum for group in pool.answer(units())} == {checksum}
    assert tokens(pool.answer(units())) == expected
    assert source.by_refs == by_refs + 1
    assert "the group that weights are sent through broke" in caplog.text
    source.scaled(1.0)
    pool.set_weights(source, version=9)
    assert isinstance(pool.weights, Broadcast) and pool.weights.sent.broken is None
    assert source.by_refs == by_refs + 1


def test_what_was_asked_before_is_answered_with_the_weights_of_its_time(pool: WorkerPool, source: Source) -> None:
    checksums = []
    for version in (10, 11):
        checksums.append(source.scaled(1.0 + version / 1000))
        pool.set_weights(source, version)
        pool.ask(units(6, step=version))
    for version, checksum in zip((10, 11), checksums, strict=True):
        groups = pool.collect()
        assert {group.policy_checksum for group in groups} == {checksum}
        assert {rollout.policy_version for group in groups for rollout in group.rollouts} == {version}


def test_a_group_that_cannot_form_is_told_with_its_address_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "MEET_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "node_address", lambda: "127.0.0.1")
    sender = WeightSender(torch.device("cpu"))
    meeting = sender.meeting(receivers=1)
    parts = [[("weight", torch.arange(3.0))]]
    sent = sender.send(parts, meeting, strong=False)
    assert not sent.formed and sent.broken is not None
    assert re.search(
        r"did not form within 1 s: one sender at 127.0.0.1:\d+ and 1 rollout workers .*all ports", sent.broken
    )
    with pytest.raises(broadcast.BrokenGroupError, match="did not form"):
        broadcast.join(Meeting("127.0.0.1", 1, "nobody", 1), 1, torch.device("cpu"))


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_buckets_come_in_order_to_the_bit_however_many_are_on_the_way(num: int) -> None:
    sender = WeightSender(torch.device("cpu"))
    meeting = sender.meeting(receivers=1)
    parts = [[(f"weight {k}", torch.full((1000 + k,), k, dtype=torch.bfloat16))] for k in range(num)]
    shapes = [shape_of(part) for part in parts]
    received: list[torch.Tensor] = []

    def receive() -> None:
        group = broadcast.join(meeting, 1, torch.device("cpu"))
        received.extend(bucket.data.clone() for bucket in group.receive(shapes))

    thread = threading.Thread(target=receive)
    thread.start()
    sent = sender.send(parts, meeting, strong=True)
    thread.join()
    assert sent.formed and sent.broken is None
    assert [data.view(torch.bfloat16).tolist() for data in received] == [part[0][1].tolist() for part in parts]
