"""Cards change hands when the other side needs them, in an order that never lets both have them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from in_process import LocalLearner, LocalPool, LocalWriter, settings
from processes import forks
from ranks import apart, free_port
from rich.console import Console

from rl.learner.batches.batch import Batch
from rl.learner.turns import Turns
from rl.run.folder import RunFolder
from rl.run.parts import run_parts
from rl.train import begin, loop
from rollout.records import Group
from rollout.worker import Unit

Order = list[str]


class TurnLearner(LocalLearner):
    """A learner that notes what is asked of it, and refuses what needs it awake while it rests."""

    def __init__(self, config: Any, parts: Any, port: int, order: Order) -> None:
        super().__init__(config, parts, port)
        self._order, self._rests = order, False

    def rest(self) -> None:
        self._rank.rest()
        self._rests = True
        self._order.append("rest")

    def wake(self) -> None:
        self._rank.wake()
        self._rests = False
        self._order.append("wake")

    def step(self, batch: Batch) -> dict[str, float]:
        assert not self._rests
        self._order.append("learn")
        return super().step(batch)

    def save(self, folder: Path, tag: str) -> None:
        assert not self._rests
        self._order.append("save")
        super().save(folder, tag)


class TurnPool(LocalPool):
    """A pool that notes what is asked of it."""

    def __init__(self, config: Any, parts: Any, order: Order) -> None:
        super().__init__(config, parts)
        self._order = order

    def set_weights(self, weights: Any, version: int) -> None:
        self._order.append("weights")
        super().set_weights(weights, version)

    def answer(self, units: Iterable[Unit]) -> list[Group]:
        self._order.append("evaluate")
        return super().answer(units)

    def collect(self) -> list[Group]:
        self._order.append("collect")
        return super().collect()

    def sleep(self) -> None:
        self._worker.sleep()
        self._order.append("sleep")


def trained(folder: Path, port: int, colocate: bool) -> Order:
    """The order of calls of a run of two steps, with an evaluation and a checkpoint at steps 0 and 2."""
    shared = [f"pool.colocate={str(colocate).lower()}", "pool.workers=1", "steps=2"]
    config, order = settings(folder, *shared), Order()
    parts = run_parts(config)
    RunFolder(folder).begin(config, parts.data, resume=False)
    actors = TurnLearner(config, parts, port, order), TurnPool(config, parts, order)
    run = begin(config, parts, actors, resume=False)  # type: ignore[arg-type]
    run.archiving = LocalWriter(run.rollouts)  # type: ignore[assignment]
    loop(run, Console(quiet=True))
    run.close()
    return order


@pytest.mark.slow
def test_ranks_rest_before_workers_wake_and_workers_sleep_before_ranks_do_and_the_archive_stays_the_same(
    tmp_path: Path,
) -> None:
    assert forks()
    turns = apart(trained, tmp_path / "turns/run", free_port(), True)
    plain = apart(trained, tmp_path / "plain/run", free_port(), False)
    evaluated = ["rest", "weights", "evaluate", "sleep", "wake", "save"]
    first = ["rest", "weights", "collect", "sleep", "wake", "learn"]
    second = ["rest", "weights", "collect", "sleep", "wake", "learn"]
    assert turns == [*evaluated, *first, *second, *evaluated]
    switches = {"rest", "wake", "sleep"}
    assert plain == [call for call in turns if call not in switches]
    for table in ("rollouts", "examples"):
        for step in (0, 1):
            name = f"archive/{table}/step-{step:08d}.parquet"
            assert (tmp_path / "turns/run" / name).read_bytes() == (tmp_path / "plain/run" / name).read_bytes()
    numbers = [(tmp_path / kind / "run/metrics.jsonl").read_text() for kind in ("turns", "plain")]
    assert numbers[0] == numbers[1] and numbers[0].count("\n") >= 3


def test_a_turn_that_somebody_has_is_not_taken_again() -> None:
    order = Order()

    class Noting:
        def rest(self) -> None:
            order.append("rest")

        def wake(self) -> None:
            order.append("wake")

        def sleep(self) -> None:
            order.append("sleep")

    turns = Turns(Noting(), Noting(), colocated=True)  # type: ignore[arg-type]
    turns.of_ranks()
    assert order == []  # it begins with the ranks
    for call in (turns.of_workers, turns.of_workers, turns.of_ranks, turns.of_ranks, turns.of_workers):
        call()
    assert order == ["rest", "sleep", "wake", "rest"]
