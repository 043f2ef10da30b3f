"""A contract that every reward file keeps, and hand-computed numbers for each of ours."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.polygons import Answer, AnswerStatus, Ring, answer_from_rings
from rewards import centroid_distance, mask_iou, score
from rewards import format as format_reward
from rewards.score import Comparison, Target, compare

NO_REWARDS = {"__init__", "kernels", "score", "shaping", "hostile"}
NAMES = sorted({path.stem for path in Path(score.__file__).parent.glob("*.py")} - NO_REWARDS)
SIZE = 12
EMPTY = Answer(AnswerStatus.EMPTY)
coordinates = st.floats(-4, 16).map(lambda x: round(x, 2))
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8).map(np.array)


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def compared(answer: Answer, *truth: Ring) -> Comparison:
    return compare([answer], Target.from_rings(truth, SIZE, SIZE))[0]


def reward_of(name: str) -> score.Reward:
    return importlib.import_module(f"rewards.{name}").Reward()


def test_the_three_rewards_of_the_first_run_are_there() -> None:
    assert {"mask_iou", "centroid_distance", "format"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_a_frozen_dataclass_with_a_weight(name: str) -> None:
    reward = reward_of(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reward.weight = 1.0  # type: ignore[misc]
    assert reward.weight > 0
    assert dataclasses.replace(reward, weight=0.5).weight == 0.5


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(truth=st.lists(rings, max_size=2), drawn=st.lists(rings, max_size=2))
def test_a_reward_of_any_valid_answer_is_none_or_within_0_and_1(
    name: str, truth: list[Ring], drawn: list[Ring]
) -> None:
    comparison = compared(answer_from_rings(drawn), *truth)
    value = reward_of(name)(comparison)
    assert value is None or 0.0 <= value <= 1.0
    assert reward_of(name)(comparison) == value


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(truth=st.lists(rings, max_size=2))
def test_the_true_answer_earns_1_wherever_a_reward_applies(name: str, truth: list[Ring]) -> None:
    target = Target.from_rings(truth, SIZE, SIZE)
    [comparison] = compare([answer_from_rings(truth) if target.area_px else EMPTY], target)
    assert reward_of(name)(comparison) in (None, 1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [status for status in AnswerStatus if not status.valid])
@pytest.mark.parametrize("truth", [[], [box(2, 2, 8, 8)]], ids=["empty", "object"])
def test_an_invalid_answer_earns_0_from_every_reward(name: str, status: AnswerStatus, truth: list[Ring]) -> None:
    [breakdown] = score.score([compared(Answer(status), *truth)], {name: reward_of(name)})
    assert breakdown.terms == {name: 0.0}


def test_mask_iou_of_half_overlapping_rows_is_one_third() -> None:
    comparison = compared(answer_from_rings([box(0, 2, 6, 6)]), box(0, 0, 6, 4))
    assert mask_iou.Reward()(comparison) == pytest.approx(1 / 3)


def test_mask_iou_of_an_empty_truth_pays_1_for_saying_so_and_0_for_any_area() -> None:
    assert mask_iou.Reward()(compared(EMPTY)) == 1.0
    assert mask_iou.Reward()(compared(answer_from_rings([box(0, 0, 1, 1)]))) == 0.0
    assert mask_iou.Reward()(compared(EMPTY, box(2, 2, 8, 8))) == 0.0


def test_a_centroid_3_and_4_px_away_from_a_36_px_object_earns_11_of_36() -> None:
    comparison = compared(answer_from_rings([box(3, 4, 9, 10)]), box(0, 0, 6, 6))
    assert centroid_distance.Reward()(comparison) == pytest.approx(1 - 25 / 36)


def test_a_centroid_further_away_than_the_object_is_wide_earns_0() -> None:
    comparison = compared(answer_from_rings([box(9, 9, 11, 11)]), box(0, 0, 4, 4))
    assert centroid_distance.Reward()(comparison) == 0.0


def test_centroid_distance_does_not_change_when_everything_doubles() -> None:
    small = compared(answer_from_rings([box(2, 1, 4, 3)]), box(1, 1, 3, 3))
    large = compared(answer_from_rings([box(4, 2, 8, 6)]), box(2, 2, 6, 6))
    assert centroid_distance.Reward()(small) == centroid_distance.Reward()(large) == 0.75


def test_centroid_distance_is_0_for_an_answer_without_a_pixel_and_none_for_an_empty_truth() -> None:
    assert centroid_distance.Reward()(compared(EMPTY, box(0, 0, 4, 4))) == 0.0
    assert centroid_distance.Reward()(compared(EMPTY)) is None
    assert centroid_distance.Reward()(compared(answer_from_rings([box(0, 0, 4, 4)]))) is None


def test_format_pays_for_the_two_valid_statuses_only() -> None:
    paid = {status for status in AnswerStatus if format_reward.Reward()(compared(Answer(status), box(0, 0, 4, 4)))}
    assert paid == {AnswerStatus.OK, AnswerStatus.EMPTY}
