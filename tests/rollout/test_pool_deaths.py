import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.core.generated.common_pb2 import WorkerExitType
from ray.core.generated.gcs_pb2 import WorkerTableData

from rollout.engines.shared import Sampling
from rollout.pool.actor import Vitals
from rollout.pool.deaths import _cause, cause_of_death, death_report
from rollout.pool.dispatch import Dispatcher
from rollout.pool.handle import Batch, Doing, Task, WeightVersion, WorkerHandle
from rollout.pool.source import Broadcast, Sent
from rollout.pool.stored import WeightRefs
from rollout.settings import PoolSettings
from rollout.worker import Unit

VITALS = Vitals(4242, "ab" * 28, "10.0.0.5", memory_bytes=3 * 2**29, available_bytes=2**28)
WEIGHTS = WeightVersion(7, WeightRefs((), "0" * 32))
UNIT = Unit("train", 5, (4, 5), (0, 1), group_size=2, sampling=Sampling(1.0, 8))


def test_a_worker_is_hung_by_the_silence_since_its_last_word_and_not_while_the_driver_itself_stood_still() -> None:
    dispatcher = Dispatcher([WorkerHandle("0", None)], PoolSettings(unit_seconds=30.0), units_each=2)
    (worker,) = dispatcher.workers
    worker.heard(VITALS)
    assert worker.silent_seconds == 0.0
    long_ago = time.monotonic() - 100
    worker.tasks = {
        "first": Task(Doing.TAKING, WEIGHTS, since=long_ago),
        "second": Task(Doing.TAKING, WEIGHTS, since=long_ago + 1),
    }
    assert worker.silent_seconds < 1.0  # it has just said something
    worker._heard_at = long_ago - 50
    assert 99 < worker.silent_seconds < 130
    dispatcher.end_silent()  # the first look in a long time: nobody is killed
    assert worker.silent_seconds < 1.0 and worker.died_at is None


def test_a_report_says_who_died_where_of_what_with_how_much_memory_and_in_the_middle_of_what() -> None:
    (request,) = Batch([UNIT], WEIGHTS, verify_every=1).requests
    tasks = [
        Task(Doing.ANSWERING, WEIGHTS, request),
        Task(Doing.TAKING, WEIGHTS),
        Task(Doing.PROVING, WEIGHTS),
        Task(Doing.STARTING),
    ]
    report = death_report("3", VITALS, tasks, "it fell")
    assert report == (
        "rollout worker 3 (process 4242 on 10.0.0.5) died: it fell. Last task: step 5 of split train, positions 4, 5, "
        "version 7, for 0.0 s; taking weights version 7 for 0.0 s; proving weights version 7 for 0.0 s; "
        "starting for 0.0 s. Memory at its last word: 1.50 GiB of its own, 0.25 GiB free on its machine"
    )
    assert death_report("3", None, [], "it fell") == (
        "rollout worker 3 died before it was first heard of: it fell. Last task: nothing in hand"
    )


@pytest.mark.parametrize(
    ("kind", "detail", "said"),
    [
        (
            WorkerExitType.NODE_OUT_OF_MEMORY,
            "1 worker(s) were killed due to the node running low on memory. Memory was 23.0GB of 23.5GB.\n...",
            "Ray's memory monitor killed it for lack of memory (1 worker(s) were killed due to the node running low on "
            "memory. Memory was 23.0GB of 23.5GB)",
        ),
        (
            WorkerExitType.SYSTEM_ERROR,
            "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: ...",
            "its process ended without a word, as by SIGKILL, by the kernel for lack of memory (dmesg tells), or by a "
            "crash in native code",
        ),
        (WorkerExitType.INTENDED_SYSTEM_EXIT, "Asked to.", "INTENDED_SYSTEM_EXIT, Asked to"),
    ],
)
def test_what_ray_wrote_down_becomes_a_cause(kind: int, detail: str, said: str) -> None:
    assert _cause(WorkerTableData(exit_type=kind, exit_detail=detail)) == said


def test_of_a_worker_never_heard_of_the_cause_is_what_the_error_says_first() -> None:
    assert cause_of_death(None, RuntimeError("it fell.\nAnd more")) == "it fell"


@pytest.mark.parametrize(("verify_every", "verified"), [(0, False), (1, True), (2, False), (5, True)])
def test_answers_of_every_so_many_steps_count_only_when_the_weights_are_proved(verify_every, verified) -> None:
    batch = Batch([UNIT], WEIGHTS, verify_every)
    (request,) = batch.requests
    assert not batch.done
    request.settle([])
    assert batch.done is not verified
    batch.unproved.clear()
    assert batch.done and batch.groups == []
    request.forget()
    assert not batch.done


class _Calls:
    """Stands for an actor and for each of its methods: counts what is asked, and returns marks for Ray's references."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        def remote(*_: object) -> object:
            self.asked.append(method)
            return object()

        return SimpleNamespace(remote=remote)


class _Store:
    """A source whose weights have to go through the object store."""

    def __init__(self) -> None:
        self.by_refs = 0

    def refs(self, strong: bool = False) -> WeightRefs:
        self.by_refs += 1
        return WeightRefs((), "0" * 32)


@pytest.mark.parametrize("broken", [None, "the group broke"])
def test_who_comes_back_while_another_takes_the_weights_waits_for_that_one_unless_the_group_broke(
    broken: str | None,
) -> None:
    source: Any = _Store()
    sent = WeightVersion(7, Broadcast(source, Sent("0" * 32, None, broken)))
    back, taking = WorkerHandle("0", _Calls()), WorkerHandle("1", _Calls())
    for worker in (back, taking):
        worker.heard(VITALS)
    dispatcher = Dispatcher([back, taking], PoolSettings(), units_each=2)
    dispatcher.set_weights(sent)
    taking.is_taking("word", sent)
    dispatcher.hand_out()
    assert (back.actor.asked, source.by_refs) == (([], 0) if broken is None else (["take"], 1))
    taking.tasks, taking.holds, taking.num_buckets = {}, sent.key, 3
    back.tasks = {}
    dispatcher.hand_out()
    assert taking.actor.asked == ["bucket"] * 3 and back.actor.asked[-1:] == ["take"]
    assert source.by_refs == (broken is not None)
