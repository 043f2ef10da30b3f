"""What a step's answers show, against hand-computed numbers."""

from dataclasses import replace

import numpy as np
import pytest

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.base import Response
from rewards.settings import TermShaping
from rewards.shaping import Shaper
from rl.algorithms.gspo import Algorithm
from rl.run.step_numbers import (
    group_histograms,
    group_metrics,
    shaping_metrics,
    staleness_metrics,
    step_numbers,
    thinking_metrics,
)
from rl.run.steps import scored_step
from rollout.records import Group, Rollout

TRIANGLE = answer_from_rings([np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])])
# The 8 x 4 px bow tie crosses itself once, in (4, 2).
BOW_TIE = answer_from_rings([np.array([[0.0, 0.0], [8.0, 4.0], [8.0, 0.0], [0.0, 4.0]])])
CUT = Answer(AnswerStatus.TRUNCATED)
SIGNAL = np.array([True, False])
NOTHING, EIGHT = np.zeros((0, 8, 8), np.bool_), np.arange(64).reshape(1, 8, 8) < 8


def rollout(index: int, answer: Answer, iou: float, near: float | None, area_px: int = 0) -> Rollout:
    finish = "length" if answer is CUT else "stop"
    response = Response(np.arange(3 + index), np.full(3 + index, -0.5 * (1 + index), np.float32), finish)
    return Rollout(index, response, "", answer, 0, area_px, iou, {"mask_iou": iou, "near": near}, 1, index)


def group(position: int, masks: np.ndarray, rollouts: list[Rollout], totals: list[float]) -> Group:
    image = ImageRef("image", "0" * 64, 8, 8)
    example = Example("e", image, Prompt.of_text("a"), Truth(masks), "train", "made", "CC0-1.0")
    return Group("run", 1, position, example, np.arange(5), "0" * 64, 1.0, tuple(rollouts), tuple(totals))


def two_groups() -> list[Group]:
    """Of a true object of 8 px and of none; to the second an unreadable answer, whose overlap is said to be 1."""
    first = [rollout(0, TRIANGLE, 0.6, 0.5, area_px=6), rollout(1, BOW_TIE, 0.2, None, area_px=16)]
    second = [rollout(0, TRIANGLE, 0.0, 0.2, area_px=6), rollout(1, CUT, 1.0, 0.0)]
    return [group(0, EIGHT, first, [0.5, 0.1]), group(1, NOTHING, second, [0.2, 0.2])]


def test_group_metrics_by_hand() -> None:
    metrics = group_metrics(two_groups(), SIGNAL)
    assert metrics["reward/mean"] == pytest.approx(0.25)
    assert metrics["reward/std"] == pytest.approx(0.15)
    assert metrics["reward/group_std"] == pytest.approx(0.1)
    assert metrics["sampled/giou"] == pytest.approx((0.6 + 0.2 + 0 + 0) / 4)
    assert metrics["sampled/best_giou"] == pytest.approx((0.6 + 0.0) / 2)
    assert metrics["answer/valid"] == pytest.approx(0.75)
    assert metrics["answer/status_ok"] == pytest.approx(0.75)
    assert metrics["answer/status_truncated"] == pytest.approx(0.25)
    assert metrics["answer/tokens"] == pytest.approx((3 + 4 + 3 + 4) / 4)
    assert metrics["answer/entropy"] == pytest.approx((3 * 0.5 + 4 * 1.0) / 7)
    assert metrics["answer/cut_short"] == pytest.approx(0.25)
    assert metrics["group/without_signal"] == pytest.approx(0.5)


def test_signs_of_gaming_are_means_over_the_answers_that_drew() -> None:
    metrics = group_metrics(two_groups(), SIGNAL)
    assert metrics["answer/vertices"] == pytest.approx((3 + 4 + 3) / 3)
    assert metrics["answer/self_crossings"] == pytest.approx(1 / 3)
    assert metrics["answer/area_ratio"] == pytest.approx((6 / 8 + 16 / 8) / 2)  # nothing to compare with in the second


def test_without_a_drawn_answer_there_is_no_area_ratio_and_no_vertex() -> None:
    metrics = group_metrics([group(0, EIGHT, [rollout(0, CUT, 0.0, None)] * 2, [0.0, 0.0])], SIGNAL[:1])
    assert "answer/area_ratio" not in metrics
    assert (metrics["answer/vertices"], metrics["answer/self_crossings"]) == (0.0, 0.0)


def test_ignored_pixels_are_no_part_of_the_true_area() -> None:
    one = group(0, EIGHT, [rollout(0, TRIANGLE, 0.6, 0.5, area_px=6)], [0.5])
    truth = Truth(EIGHT, ignore=np.arange(64).reshape(8, 8) < 4)
    example = Example("e", one.example.image, Prompt.of_text("a"), truth, "train", "made", "CC0-1.0")
    ignoring = Group("run", 1, 0, example, np.arange(5), "0" * 64, 1.0, one.rollouts, (0.5,))
    assert group_metrics([ignoring], SIGNAL[:1])["answer/area_ratio"] == pytest.approx(6 / 4)


def test_status_shares_sum_to_one() -> None:
    shares = [value for name, value in group_metrics(two_groups(), SIGNAL).items() if name.startswith("answer/status_")]
    assert len(shares) == len(AnswerStatus)
    assert sum(shares) == pytest.approx(1.0)


def test_terms_are_averaged_where_they_apply_and_counted_where_not() -> None:
    metrics = group_metrics(two_groups(), SIGNAL)
    assert metrics["term/near"] == pytest.approx((0.5 + 0.2 + 0.0) / 3)
    assert metrics["term_does_not_apply/near"] == pytest.approx(0.25)
    assert metrics["term_does_not_apply/mask_iou"] == 0.0


def test_terms_are_correlated_with_the_iou_of_valid_answers_that_they_apply_to() -> None:
    rollouts = [rollout(k, TRIANGLE, iou, near) for k, (iou, near) in enumerate([(0.1, 0.0), (0.3, 0.6), (0.5, 0.6)])]
    others = [rollout(3, TRIANGLE, 0.9, None), rollout(4, CUT, 0.0, 1.0)]
    metrics = group_metrics([group(0, EIGHT, rollouts + others, [0.0] * 5)], SIGNAL[:1])
    assert metrics["term_iou_correlation/near"] == pytest.approx(np.sqrt(3) / 2)  # of (-1, 0, 1) and (-2, 1, 1)
    assert metrics["term_iou_correlation/mask_iou"] == pytest.approx(1.0)


def test_a_term_that_does_not_differ_has_no_correlation() -> None:
    same = [rollout(k, TRIANGLE, iou, 0.7) for k, iou in enumerate([0.1, 0.9])]
    never = [rollout(k, TRIANGLE, 0.5, None) for k in range(2)]
    of_same = group_metrics([group(0, EIGHT, same, [0.0] * 2)], SIGNAL[:1])
    of_never = group_metrics([group(0, EIGHT, never, [0.0] * 2)], SIGNAL[:1])
    assert not [name for name in of_same if name.endswith("correlation/near")]
    assert not [name for name in of_never if "correlation" in name]


def test_staleness_counts_from_the_version_that_sampled_to_the_step_that_learns() -> None:
    one, other = two_groups()
    younger = tuple(replace(rollout, policy_version=other.step - 4) for rollout in other.rollouts)
    older = tuple(replace(rollout, policy_version=one.step - 6) for rollout in one.rollouts)
    groups = [replace(one, rollouts=older), replace(other, rollouts=younger)]
    mean = (6 * len(older) + 4 * len(younger)) / (len(older) + len(younger))
    assert staleness_metrics(groups) == {"rollout/staleness": mean}


def test_histograms_hold_each_term_where_it_applies() -> None:
    values = group_histograms(two_groups())
    assert values["histogram/term_mask_iou"].tolist() == [0.6, 0.2, 0.0, 1.0]
    assert values["histogram/term_near"].tolist() == [0.5, 0.2, 0.0]
    assert values["histogram/iou"].tolist() == [0.6, 0.2, 0.0, 0.0]
    assert values["histogram/total"].tolist() == [0.5, 0.1, 0.2, 0.2]


@pytest.mark.parametrize(("min_std", "share"), [(1e-6, 0.5), (0.19, 0.5), (0.21, 1.0)])
def test_a_group_is_without_signal_by_the_settings_of_the_algorithm(min_std: float, share: float) -> None:
    # Totals of 0.5 and 0.1 have a standard deviation of 0.2; those of the other group are equal.
    groups, terms = two_groups(), {"mask_iou": np.array([[0.5, 0.1], [0.2, 0.2]])}
    shaper = Shaper({"mask_iou": 1.0})
    scored = scored_step(1, groups, terms, shaper.shape(1, terms), Algorithm(min_std=min_std), num=2)
    numbers = step_numbers(scored, shaper, {"loss": 0.25}, refills=0).scalars
    assert numbers["group/without_signal"] == share
    assert numbers["learner/loss"] == 0.25 and numbers["rollout/staleness"] == 0.0
    assert scored.advantages.counts.tolist() == [share < 1, False]
    assert not [name for name in numbers if name.startswith(("refill/", "shaped/", "schedule/"))]


def test_reasoning_is_counted_over_the_answers_that_have_a_block_and_only_where_a_run_asks_for_it() -> None:
    said = [replace(TRIANGLE, thinking="the left one"), replace(CUT, thinking="so"), replace(TRIANGLE, thinking="")]
    groups = [group(0, EIGHT, [rollout(k, one, 0.5, None) for k, one in enumerate([*said, TRIANGLE])], [0.0] * 4)]
    assert thinking_metrics(groups) == {"answer/thinking": 0.75, "answer/thinking_words": pytest.approx(4 / 3)}
    assert thinking_metrics(two_groups()) == {"answer/thinking": 0.0, "answer/thinking_words": 0.0}
    shaper, terms = Shaper({"mask_iou": 1.0}), {"mask_iou": np.zeros((1, 4))}
    scored = scored_step(1, groups, terms, shaper.shape(1, terms), Algorithm(), num=1)
    logged = [step_numbers(scored, shaper, {}, 0, thinks).scalars for thinks in (False, True)]
    assert [sorted(name for name in numbers if "thinking" in name) for numbers in logged] == [
        [],
        ["answer/thinking", "answer/thinking_words"],
    ]


def test_shaping_shows_the_reward_before_it_and_where_its_schedules_stand() -> None:
    a = TermShaping("threshold", weight_schedule=[[0, 1.0], [10, 3.0]], threshold_schedule=[[0, 0.2], [10, 0.8]])
    shaper = Shaper({"a": 1.0, "b": 2.0}, {"a": a, "total": TermShaping("rank")})
    terms = {"a": np.array([[0.4, 0.8, np.nan]]), "b": np.array([[1.0, 0.5, 0.0]])}
    assert shaping_metrics(shaper, 5, terms, shaper.shape(5, terms)) == {
        "reward/unshaped_mean": pytest.approx((0.7 + 0.65 + 0.0) / 3),
        "shaped/a": 0.5,
        "schedule/weight_a": 2.0,
        "schedule/threshold_a": pytest.approx(0.5),
    }


def test_a_run_that_shapes_nothing_shows_nothing_of_it() -> None:
    shaper, terms = Shaper({"a": 1.0}), {"a": np.zeros((1, 2))}
    assert shaping_metrics(shaper, 0, terms, shaper.shape(0, terms)) == {}
