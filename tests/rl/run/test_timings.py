import json
import time

import pytest

from rl.run.metrics import MetricsWriter, Timings, read_curves


def test_waits_are_summed_by_step_and_shared_out_over_the_run() -> None:
    timings, learner = Timings(), []
    assert timings.shares == {}
    for _ in range(2):
        for what, seconds in (("answers", 0.02), ("learner", 0.04), ("answers", 0.02)):
            with timings.waiting_for(what):
                time.sleep(seconds)
        numbers = timings.end_step(0.2)
        assert list(numbers) == ["seconds/step", "seconds/answers", "seconds/learner"]
        assert numbers["seconds/answers"] >= 0.04 and numbers["seconds/learner"] >= 0.04
        learner.append(numbers["seconds/learner"])
    assert timings.shares.keys() == {"answers", "learner"}
    assert timings.shares["learner"] == pytest.approx(sum(learner) / 0.4)


def test_seconds_are_written_apart_from_the_numbers_of_which_equal_runs_have_equal_files(tmp_path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.scalars(0, {"reward/mean": 0.5})
    writer.timings(0, {"seconds/step": 1.25})
    writer.close()
    assert read_curves(tmp_path) == {"reward/mean": ([0], [0.5])}
    lines = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 0, "seconds/step": 1.25}]
