"""Kept answers: gone on with at the right example, refused where they were asked otherwise, and asked once only."""

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from in_process import LocalPool
from made_answers import about, answered, block, box, four_rows, prepared
from rich.console import Console

from envs.polygons import AnswerStatus
from rl.benchmark import Benchmark, answer_all, files_of, judged
from rl.benchmarks import answers
from rl.benchmarks.answers import AnswerFiles
from rl.benchmarks.models import benchmark_model
from rl.benchmarks.sets import benchmark_sets
from rollout.archive.schema import answer_from_row
from rollout.worker import RolloutWorker

QUIET = Console(quiet=True)
ASKED = {"checkpoint": "tiny", "max_tokens": 48, "policy": {"dtype": "float32"}}


def many(count: int) -> list[dict[str, object]]:
    row = answered(about("some", block(2, 2, 6, 6)), box(2, 2, 6, 4))
    return [row | {"example_id": f"{k}"} for k in range(count)]


def kept(files: AnswerFiles) -> list[str]:
    return [row["example_id"] for row in files.rows()]


def test_answers_come_back_as_they_were_kept(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path / "answers")
    assert files.num_kept(4) == 0 and kept(files) == []
    files.add(four_rows(), 0)
    back = list(files.rows())
    assert [row["example_id"] for row in back] == ["full", "half", "unread", "none"]
    assert [AnswerStatus(row["status"]) for row in back] == [
        *[AnswerStatus.OK] * 2,
        AnswerStatus.UNPARSABLE,
        AnswerStatus.EMPTY,
    ]
    assert answer_from_row(back[1]).rings_px[0].tolist() == box(2, 2, 6, 4).rings_px[0].tolist()
    assert (back[0]["tokens"], back[0]["height"], back[0]["width"], back[0]["size"]) == (2, 8, 10, 0.2**0.5)
    assert back[3]["masks"] == [] and back[3]["size"] is None and back[3]["codec_bound"] is None
    assert back[0]["true_box"] == back[1]["true_box"] == back[0]["masks"][0] and back[2]["true_box"] is None


def test_a_file_that_a_smaller_limit_left_short_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "CHUNK", 4)
    rows, files = many(11), AnswerFiles(tmp_path)
    files.add(rows[:4], 0)
    files.add(rows[4:6], 4)
    assert [files.num_kept(total) for total in (3, 4, 6, 7, 11)] == [6, 6, 6, 4, 4]
    files.add(rows[4:8], 4)
    files.add(rows[8:11], 8)
    assert kept(files) == [f"{k}" for k in range(11)] and files.num_kept(11) == 11
    # A file behind a short one is of no use until that is whole.
    files.add(rows[4:6], 4)
    assert kept(files) == [f"{k}" for k in range(6)] and files.num_kept(11) == 4


def test_answers_that_were_asked_otherwise_are_refused_by_what_differs(tmp_path: Path) -> None:
    files = AnswerFiles(tmp_path)
    files.begin(ASKED)
    files.begin(json.loads(json.dumps(ASKED)))
    with pytest.raises(ValueError, match="max_tokens there is 48, here 64; give another --out, or delete that folder"):
        files.begin(ASKED | {"max_tokens": 64})
    with pytest.raises(ValueError, match="refiner there is None, here r"):
        files.begin(ASKED | {"refiner": "r"})


class CountingPool(LocalPool):
    """One worker in this process, which remembers what it was asked."""

    asked_about: ClassVar[list[int]] = []

    def __init__(self, _: Any, settings: Any) -> None:
        self._worker, self._version, self._asked = RolloutWorker(settings, "0"), -1, deque()

    def ask(self, units: Any) -> None:
        units = list(units)
        self.asked_about += [index for unit in units for index in unit.indices]
        super().ask(units)


def test_a_benchmark_goes_on_and_asks_no_example_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rl.benchmark", "rl.benchmarks.answers"):
        monkeypatch.setattr(f"{module}.CHUNK", 2)
    monkeypatch.setattr("rl.run.workers.WorkerPool", CountingPool)
    monkeypatch.setattr("rl.run.workers.cluster", SimpleNamespace(start=lambda *_: None, stop=lambda: None))
    monkeypatch.setattr(CountingPool, "asked_about", [])
    shards = prepared(tmp_path, "--image-side", "64", "--square")
    sets = benchmark_sets([f"mine={shards}:train"], None, tmp_path / "out", QUIET)
    model = benchmark_model("tiny", None, False, 1, 24)

    def ask(limit: int | None) -> list[int]:
        del CountingPool.asked_about[:]
        asked = Benchmark(tmp_path / "out", [model], sets, limit=limit)
        answer_all(asked, model, sets[0], QUIET)
        env = sets[0].env()
        assert kept(files_of(asked, model, sets[0]))[:limit] == [env[k].id for k in range(limit or 3)]
        assert len(judged(asked)[0].judged) == (limit or 3)
        return CountingPool.asked_about.copy()

    assert ask(1) == [0] and ask(1) == []
    assert ask(None) == [0, 1, 2] and ask(None) == [] and ask(2) == []
