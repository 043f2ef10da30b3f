import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl.run.metrics import MetricsWriter, read_curves


def test_curves_read_back_exactly_what_was_written(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    writer.scalars(1, {"reward/mean": 0.1 + 0.2, "loss": float("nan")})
    writer.scalars(1, {"validation/giou": 0.5})
    writer.scalars(2, {"reward/mean": 1 / 3})
    assert read_curves(tmp_path / "run") == {
        "reward/mean": ([1, 2], [0.1 + 0.2, 1 / 3]),
        "validation/giou": ([1], [0.5]),
    }


def test_a_resumed_run_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path):
    through, stopped = MetricsWriter(tmp_path / "a"), MetricsWriter(tmp_path / "b")
    for step in range(6):
        through.scalars(step, {"x": step / 7})
    for step in range(5):
        stopped.scalars(step, {"x": step / 7})
    stopped.close()
    resumed = MetricsWriter(tmp_path / "b")
    resumed.drop_after(2)
    for step in range(3, 6):
        resumed.scalars(step, {"x": step / 7})
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_line_torn_by_a_kill_is_dropped_and_does_not_swallow_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    MetricsWriter(tmp_path).scalars(2, {"x": 2.0})
    assert read_curves(tmp_path) == {"x": ([1, 2], [1.0, 2.0])}


def test_lines_are_json_without_nan(tmp_path):
    MetricsWriter(tmp_path).scalars(1, {"x": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "x": None}


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 1.0}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2"):
        read_curves(tmp_path)


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl does not exist"):
        read_curves(tmp_path)


def test_tensorboard_shows_scalars_histograms_and_pictures(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.scalars(3, {"reward/mean": 0.5, "answer/valid": 1.0})
    writer.histograms(3, {"histogram/iou": np.array([0.25, 0.75]), "empty": np.zeros(0)})
    writer.pictures(3, {"scene/first": np.zeros((8, 6, 3), np.uint8)})
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert (set(tags["scalars"]), tags["histograms"]) == ({"reward/mean", "answer/valid"}, ["histogram/iou"])
    picture = events.Images("scene/first")[0]
    assert (picture.step, picture.height, picture.width) == (3, 8, 6)


def test_events_after_the_checkpoint_are_purged_on_resume(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(5):
        writer.scalars(step, {"x": 0.0})
    writer.drop_after(2)
    writer.scalars(3, {"x": 1.0})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(0, 0), (1, 0), (2, 0), (3, 1)]
