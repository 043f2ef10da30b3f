import json

from rl.run.metrics import MetricsWriter, Timings, read_curves


class Clock:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


def test_waits_are_summed_by_step_and_shared_out_over_the_run() -> None:
    clock = Clock()
    timings = Timings(clock)
    assert timings.shares == {}
    for _ in range(2):
        timings.begin_step()
        for what, seconds in (("answers", 0.25), ("learner", 0.5), ("answers", 0.25)):
            with timings.waiting_for(what):
                clock.seconds += seconds
        clock.seconds += 1.0
        assert timings.end_step() == {"seconds/step": 2.0, "seconds/answers": 0.5, "seconds/learner": 0.5}
        clock.seconds += 7.0  # an evaluation between two steps is part of neither
    assert timings.shares == {"answers": 0.25, "learner": 0.25}


def test_seconds_are_written_apart_from_the_numbers_of_which_equal_runs_have_equal_files(tmp_path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.scalars(0, {"reward/mean": 0.5})
    writer.timings(0, {"seconds/step": 1.25})
    writer.close()
    assert read_curves(tmp_path) == {"reward/mean": ([0], [0.5])}
    lines = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 0, "seconds/step": 1.25}]
