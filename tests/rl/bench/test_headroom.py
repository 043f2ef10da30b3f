"""What a better choice among a policy's own answers is worth, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from envs.datasets.cutout_scenes import Env
from envs.polygons import Answer, AnswerStatus
from rl.bench.learning.headroom import as_json, baseline_line, consensus, line, mutual_iou, of_groups, table
from tests.made_run import group_of, scored

LEFT = np.array([(0.0, 0.0), (4.0, 0.0), (4.0, 8.0), (0.0, 8.0)])


def test_the_consensus_is_the_answer_that_agrees_most_with_the_others_whatever_is_true() -> None:
    asked = Env("train", image_size=32)[0]
    group = group_of("run", 0, 0, asked, scored(asked, [[LEFT], [LEFT * [1.5, 1]], [LEFT * [2, 1]], []]))
    ious = mutual_iou(group)
    # Rectangles of 4, 6 and 8 columns, and nothing.
    rows = [[1, 4 / 6, 4 / 8, 0], [4 / 6, 1, 6 / 8, 0], [4 / 8, 6 / 8, 1, 0], [0, 0, 0, 1]]
    assert ious == pytest.approx(np.array(rows))
    assert consensus(ious) == 1


def test_unreadable_answers_agree_with_none() -> None:
    asked = Env("train", image_size=32)[0]
    empty, square = scored(asked, [[], [LEFT]])
    broken = replace(empty, answer=Answer(AnswerStatus.UNPARSABLE))
    ious = mutual_iou(group_of("run", 0, 0, asked, (broken, broken, empty, empty, square)))
    assert ious[0].tolist() == [0.0] * 5 and ious[2].tolist() == [0, 0, 1, 1, 0]
    assert consensus(ious) == 2


def test_of_scenes_the_gain_is_that_of_the_chosen_answers_over_the_greedy_ones() -> None:
    asked = Env("train", image_size=32)[0]
    drawn = scored(asked, [[LEFT], [LEFT * [1.5, 1]], [LEFT * [2, 1]]])
    rated = tuple(replace(one, iou=iou) for one, iou in zip(drawn, (0.2, 0.4, 0.9), strict=True))
    group = group_of("run", 0, 0, asked, rated)
    found = of_groups([0.0, 0.1], [group, group], 0.6)
    assert found.gain.value == pytest.approx(0.4 - 0.05)  # the second agrees most with the others
    assert (found.giou["best"].value, found.giou["sampled"].value) == (0.9, 0.5)
    assert as_json(found)["samples"] == 3 and table(found).row_count == 4
    assert line(found).startswith("consensus less greedy: ")
    # Mean squares against 0 and 0.1: (0.04 + 0.16 + 0.81) / 3 and (0.01 + 0.09 + 0.64) / 3; the variance is 0.13.
    assert found.greedy_baseline == pytest.approx((0.33667 + 0.24667) / 2 / 0.13, abs=1e-3)
    assert found.group_baseline(8) == pytest.approx(8 / 7)
    assert "of a group of 8 1.14, against the greedy answer" in baseline_line(found, 8)
