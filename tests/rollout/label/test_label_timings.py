"""What stages take: carried by blocks however they are cut and joined, and told of every shard once."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest
from made_labels import QUIET, STAGES, config

from rl import label as verb
from rl.labels.report import LabelReport
from rollout.label import writer as label_writer
from rollout.label.timings import Spent, Timings, read_timings, spent_of, timed


def test_seconds_travel_with_blocks_that_are_cut_and_joined() -> None:
    began = time.process_time()
    block = pa.table({"id": list(range(4))})
    for seconds in (0.02, 0.06):

        def work(held: pa.Table, seconds: float = seconds) -> pa.Table:
            time.sleep(seconds)
            return held.select(["id"])

        block = timed(work, block)
    first, second = spent_of(pa.concat_tables([block.slice(3), block.slice(0, 3)]))
    assert 0.02 <= first.wall < second.wall and second.wall >= 0.06
    assert 0 <= first.core + second.core <= time.process_time() - began


def test_the_slowest_stage_is_that_of_most_seconds_by_the_clock() -> None:
    timings = Timings()
    assert timings.slowest() is None
    timings.add(8, {"find": Spent(2.0, 4.0), "cut": Spent(1.0, 9.0)})
    timings.add(8, {"find": Spent(2.0, 4.0), "cut": Spent(1.0, 1.0)})
    assert timings.slowest() == ("find", 4.0) and timings.stages["cut"] == Spent(2.0, 10.0)


def test_a_shard_that_was_written_again_counts_once(tmp_path: Path) -> None:
    for part, seconds in ((0, 1.0), (1, 2.0), (1, 3.0)):
        Timings(10, {"find": Spent(seconds, seconds)}).write(tmp_path, part)
    assert read_timings(tmp_path) == Timings(20, {"find": Spent(4.0, 4.0)})
    assert read_timings(tmp_path / "none") == Timings()


def test_a_report_says_where_the_time_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_writer, "SHARD_IMAGES", 8)
    began = time.process_time()
    verb.label(config(tmp_path / "out", num=16, stages=STAGES[:4]), QUIET)
    took = time.process_time() - began
    held = [json.loads((tmp_path / "out" / f"timings-0000{k}.json").read_text()) for k in range(2)]
    assert [one["images"] for one in held] == [8, 8]
    times = LabelReport(tmp_path / "out").times()
    # What the last block took to be written is known after its shard is.
    names = ["decode", "policy_boxes", "grabcut", "clean", "templates", "encode", "write"]
    assert [one.stage for one in times] == names
    assert sum(one.share for one in times) == pytest.approx(1.0)
    assert 0 < sum(one.core for one in times) < took
    assert all(one.images_a_core_second == pytest.approx(16 / one.core) for one in times if one.core > 0)
