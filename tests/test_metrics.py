import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.base import Response
from rl.metrics import MetricsWriter, group_histograms, group_metrics, read_curves
from rollout.records import Group, Rollout

TRIANGLE = answer_from_rings([np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])])


def rollout(index: int, answer: Answer, iou: float, near: float | None, finish: str = "stop") -> Rollout:
    response = Response(np.arange(3 + index), np.zeros(3 + index, np.float32), finish)
    return Rollout(index, response, "", answer, 0, 0, iou, {"mask_iou": iou, "near": near}, 1, index)


def group(position: int, rollouts: list[Rollout], totals: list[float]) -> Group:
    image = ImageRef("image", "0" * 64, 8, 8)
    example = Example("e", image, Prompt(("a",)), Truth(np.zeros((0, 8, 8), np.bool_)), "train", "made", "CC0-1.0")
    return Group("run", 1, position, example, np.arange(5), "0" * 64, 1.0, tuple(rollouts), tuple(totals))


def two_groups() -> list[Group]:
    first = [rollout(0, TRIANGLE, 0.6, 0.5), rollout(1, TRIANGLE, 0.2, None)]
    # An unreadable answer on an empty truth: both masks are empty, so its overlap says 1.
    cut = rollout(1, Answer(AnswerStatus.TRUNCATED), 1.0, None, finish="length")
    second = [rollout(0, Answer(AnswerStatus.EMPTY), 0.0, None), cut]
    return [group(0, first, [0.5, 0.1]), group(1, second, [0.2, 0.2])]


def test_group_metrics_by_hand():
    metrics = group_metrics(two_groups())
    assert metrics["reward/mean"] == pytest.approx(0.25)
    assert metrics["reward/std"] == pytest.approx(0.15)
    assert metrics["reward/group_std"] == pytest.approx(0.1)
    assert metrics["sampled/giou"] == pytest.approx((0.6 + 0.2 + 0 + 0) / 4)
    assert metrics["sampled/best_giou"] == pytest.approx((0.6 + 0.0) / 2)
    assert metrics["term/near"] == pytest.approx(0.5)
    assert metrics["answer/valid"] == pytest.approx(0.75)
    assert metrics["answer/status_ok"] == pytest.approx(0.5)
    assert metrics["answer/status_truncated"] == pytest.approx(0.25)
    assert metrics["answer/status_degenerate"] == 0.0
    assert metrics["answer/tokens"] == pytest.approx((3 + 4 + 3 + 4) / 4)
    assert metrics["answer/vertices"] == pytest.approx(3.0)
    assert metrics["answer/cut_short"] == pytest.approx(0.25)
    assert metrics["group/without_signal"] == pytest.approx(0.5)


def test_status_shares_sum_to_one():
    shares = [value for name, value in group_metrics(two_groups()).items() if name.startswith("answer/status_")]
    assert len(shares) == len(AnswerStatus)
    assert sum(shares) == pytest.approx(1.0)


def test_histograms_hold_each_term_where_it_applies():
    values = group_histograms(two_groups())
    assert values["histogram/term_mask_iou"].tolist() == [0.6, 0.2, 0.0, 1.0]
    assert values["histogram/term_near"].tolist() == [0.5]
    assert values["histogram/total"].tolist() == [0.5, 0.1, 0.2, 0.2]


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
    writer.scalars(3, group_metrics(two_groups()))
    writer.histograms(3, group_histograms(two_groups()) | {"empty": np.zeros(0)})
    writer.pictures(3, {"scene/first": np.zeros((8, 6, 3), np.uint8)})
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == set(group_metrics(two_groups()))
    assert set(tags["histograms"]) == set(group_histograms(two_groups()))
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
