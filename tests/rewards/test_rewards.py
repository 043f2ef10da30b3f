"""A contract that every reward file keeps, and hand-computed numbers for each of ours."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.codecs import point_text
from envs.example import Truth
from envs.plugin import plugin_names
from envs.polygons import Answer, AnswerStatus, Box, Ring, answer_from_rings, flat_answers, instance_from_rings
from envs.ranges import check_ranges
from rewards import score
from rewards.score import Comparison, Target, compare
from rewards.terms import (
    boundary_iou,
    box_iou,
    centroid_distance,
    improvement,
    instance_f1,
    length_penalty,
    mask_iou,
    matched_iou,
    point_in_mask,
    thinking_format,
    thinking_length,
    vertex_economy,
)
from rewards.terms import format as format_reward
from rewards.terms.base import term

NAMES = plugin_names("rewards.terms")
SIZE = 12
EMPTY = Answer(AnswerStatus.EMPTY)
coordinates = st.floats(-4, 16).map(lambda x: round(x, 2))
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8).map(np.array)


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def compared(answer: Answer, *truth: Ring) -> Comparison:
    """An answer against a truth, beside a refiner that leaves everything as it is."""
    refined = flat_answers([answer.rings_px])
    return compare([answer], Target.from_rings(truth, SIZE, SIZE), refined=refined)[0]


def reward_of(name: str) -> score.Reward:
    return importlib.import_module(f"rewards.terms.{name}").Reward()


def several(*rings: Ring) -> Answer:
    """An answer of one instance a ring."""
    return Answer(AnswerStatus.OK, tuple(instance_from_rings([ring]) for ring in rings))


def compared_with_several(answer: Answer, *truth: Ring) -> Comparison:
    """An answer against a truth of one instance a ring."""
    masks = [Target.from_rings([ring], SIZE, SIZE).mask for ring in truth]
    return compare([answer], Target.from_truth(Truth(np.stack(masks))))[0]


def full_marks(name: str, comparison: Comparison) -> float:
    """What a true answer earns: redundant vertices are not economical, however true."""
    if name != "vertex_economy" or comparison.num_vertices <= 8:
        return 1.0
    return min(1.0, max(8, comparison.target.outline_vertices(0.95)) / comparison.num_vertices)


def test_every_reward_that_is_spoken_of_is_there() -> None:
    first = {"mask_iou", "centroid_distance", "format", "boundary_iou", "box_iou", "point_in_mask"}
    assert first | {"length_penalty", "vertex_economy", "matched_iou"} <= set(NAMES)


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
def test_a_reward_of_any_valid_answer_is_none_or_a_float_within_0_and_1(
    name: str, truth: list[Ring], drawn: list[Ring]
) -> None:
    comparison = compared(answer_from_rings(drawn), *truth)
    value = reward_of(name)(comparison)
    assert value is None or (type(value) is float and 0.0 <= value <= 1.0)
    assert reward_of(name)(comparison) == value


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(truth=st.lists(rings, max_size=2))
def test_the_true_answer_earns_full_marks_wherever_a_reward_applies(name: str, truth: list[Ring]) -> None:
    target = Target.from_rings(truth, SIZE, SIZE)
    comparison = compared(answer_from_rings(truth) if target.area_px else EMPTY, *truth)
    assert reward_of(name)(comparison) in (None, full_marks(name, comparison))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(truth=st.lists(rings, max_size=2), drawn=st.lists(rings, max_size=2))
def test_no_drawing_can_make_a_reward_not_apply(name: str, truth: list[Ring], drawn: list[Ring]) -> None:
    comparison = compared(answer_from_rings(drawn), *truth)
    applies = reward_of(name)(compared(EMPTY, *truth)) is not None
    assert (reward_of(name)(comparison) is not None) == applies


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "drawn", [[box(0, 0, 12, 12)], [box(3, 3, 4, 4)], [box(3, 3, 9, 3)]], ids=["all", "px", "line"]
)
def test_an_empty_truth_pays_full_marks_for_empty_and_nothing_for_a_shape(name: str, drawn: list[Ring]) -> None:
    assert term(reward_of(name), compared(EMPTY)) in (None, 1.0)
    assert term(reward_of(name), compared(answer_from_rings(drawn))) in (None, 0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [status for status in AnswerStatus if not status.valid])
@pytest.mark.parametrize("truth", [[], [box(2, 2, 8, 8)]], ids=["empty", "object"])
def test_an_invalid_answer_earns_0_from_every_reward(name: str, status: AnswerStatus, truth: list[Ring]) -> None:
    assert term(reward_of(name), compared(Answer(status), *truth)) == 0.0


@pytest.mark.parametrize(
    ("reward", "wrong", "says"),
    [
        (boundary_iou.Reward, {"weight": -0.1}, "weight is -0.1; set it to 0 or more"),
        (box_iou.Reward, {"weight": float("nan")}, "weight is nan"),
        (point_in_mask.Reward, {"weight": float("inf")}, "weight is inf; set it to 0 or more, and finite"),
        (matched_iou.Reward, {"weight": -1.0}, "weight is -1.0"),
        (instance_f1.Reward, {"min_iou": 0.4}, r"min_iou is 0.4; set it to 0.5..1"),
        (length_penalty.Reward, {"free_vertices": -1}, "free_vertices is -1; set it to 0 or more"),
        (length_penalty.Reward, {"max_vertices": 16}, "max_vertices is 16, free_vertices 16; set max_vertices above"),
        (thinking_length.Reward, {"least": 9, "most": 8}, "most is 8, least 9; set most to 9 or more"),
        (thinking_length.Reward, {"unit": "tokens"}, "unit is 'tokens'; set it to words or characters"),
        (vertex_economy.Reward, {"free_vertices": 2}, "free_vertices is 2; set it to 3 or more, as a ring needs"),
        (vertex_economy.Reward, {"min_iou": 1.01}, "min_iou is 1.01; set it to 0..1, 0 not included"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_to_do(reward: type, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_ranges(reward(**wrong))


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


def test_format_pays_what_it_is_told_for_a_valid_answer_with_something_around_it() -> None:
    earned = {
        (status, bare): format_reward.Reward(wrapped=0.25)(compared(Answer(status, bare=bare), box(0, 0, 4, 4)))
        for status in (AnswerStatus.EMPTY, AnswerStatus.UNPARSABLE)
        for bare in (True, False)
    }
    assert list(earned.values()) == [1.0, 0.25, 0.0, 0.0]
    assert format_reward.Reward()(compared(Answer(AnswerStatus.EMPTY, bare=False))) == 1.0


def reasoned(thinking: str | None, status: AnswerStatus = AnswerStatus.EMPTY) -> Comparison:
    """An answer behind some reasoning to a question about nothing."""
    return compared(Answer(status, thinking=thinking))


@pytest.mark.parametrize(
    ("rows", "earned"),
    [
        (8, 0.5),  # the answer again
        (5, (1 - 1 / 12) / 2),  # IoU 40/48, the answer's 48/64
        (2, 0.6),  # IoU 16/48: a gain above what counts
        (6, 0.4),  # exact: a loss above what counts
    ],
)
def test_improvement_is_the_gain_over_the_draft_within_what_counts(rows: int, earned: float) -> None:
    codec = {"name": "point_text", "coordinates": "unit", "decimals": 3}
    reward, truth = improvement.Reward(most=0.2, codec=codec), box(0, 0, 8, 6)
    draft = point_text.Codec(coordinates="unit", decimals=3).encode([[box(0, 0, 8, rows)]], SIZE, SIZE)
    answer = dataclasses.replace(answer_from_rings([box(0, 0, 8, 8)]), thinking=draft)
    assert reward(compared(answer, truth)) == pytest.approx(earned)
    for text in ("", "so", draft[:9]):
        assert reward(compared(dataclasses.replace(answer, thinking=text), truth)) == 0
    assert reward(compared(dataclasses.replace(answer, thinking=None), truth)) is None
    assert improvement.Reward()(compared(answer, truth)) is None  # without a codec
    assert reward(compared(answer)) is None  # where nothing is true


def test_thinking_format_pays_for_a_block_costs_an_unreadable_answer_and_leaves_one_without_to_other_terms() -> None:
    reward = thinking_format.Reward()
    assert [reward(reasoned(thinking)) for thinking in ("so", "", None)] == [1.0, 1.0, None]
    invalid = [status for status in AnswerStatus if not status.valid]
    assert {reward(reasoned(thinking, status)) for thinking in ("so", None) for status in invalid} == {0.0}


@pytest.mark.parametrize(
    ("num", "earned"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (10, 1.0), (15, 0.5), (19, 0.1), (20, 0.0), (99, 0.0)]
)
def test_thinking_length_rises_to_4_stays_to_10_and_falls_to_20(num: int, earned: float) -> None:
    words, characters = (thinking_length.Reward(least=4, most=10, unit=unit) for unit in ("words", "characters"))
    assert words(reasoned("again  " * num)) == pytest.approx(earned)
    assert characters(reasoned("a" * num)) == pytest.approx(earned)
    assert (words(reasoned(None)), words(reasoned("a b c d", AnswerStatus.DEGENERATE))) == (None, 0.0)
    assert thinking_length.Reward(least=0)(reasoned("")) == 1.0


def test_reasoning_in_its_form_does_not_make_up_for_an_outline() -> None:
    shapes = {1.0: box(2, 2, 8, 8), 0.25: box(0, 0, 12, 12)}
    totals = {}
    for iou, ring in shapes.items():
        answer = dataclasses.replace(answer_from_rings([ring]), thinking="word " * 20)
        comparison = compared(answer, box(2, 2, 8, 8))
        rewards = [reward_of(name) for name in ("mask_iou", "thinking_format", "thinking_length")]
        weights = [reward.weight for reward in rewards]
        totals[iou] = np.average([term(reward, comparison) for reward in rewards], weights=weights)
    assert totals == {1.0: pytest.approx(1.0), 0.25: pytest.approx((0.25 + 0.15) / 1.15)}


def test_boundary_iou_in_a_small_image_compares_frames_one_pixel_wide() -> None:
    # Frames of 5 x 6 and 6 x 6 boxes that share three sides: 18 and 20 px, 14 of them common.
    comparison = compared(answer_from_rings([box(2, 2, 8, 7)]), box(2, 2, 8, 8))
    assert boundary_iou.Reward()(comparison) == pytest.approx(14 / 24)


def test_a_hollow_outline_earns_no_more_than_its_mask_iou_unless_asked_for() -> None:
    comparison = compared(answer_from_rings([box(2, 2, 8, 8), box(3, 3, 7, 7)[::-1]]), box(2, 2, 8, 8))
    assert boundary_iou.Reward()(comparison) == pytest.approx(20 / 36)
    assert boundary_iou.Reward(capped=False)(comparison) == 1.0


def test_boundary_iou_of_an_empty_truth_pays_1_for_saying_so_and_0_for_a_line_without_a_pixel() -> None:
    assert boundary_iou.Reward()(compared(EMPTY)) == 1.0
    assert boundary_iou.Reward()(compared(answer_from_rings([box(3, 3, 9, 3)]))) == 0.0


def test_box_iou_of_a_triangle_in_the_true_box_is_1_and_a_spike_costs_nothing() -> None:
    spiked = np.array([(2, 2), (8, 2), (8, 8), (12, 0), (8, 8), (2, 8)], np.float64)
    assert box_iou.Reward()(compared(answer_from_rings([spiked]), box(2, 2, 8, 8))) == 1.0
    triangle = np.array([(2, 2), (9, 2), (2, 9)], np.float64)
    assert box_iou.Reward()(compared(answer_from_rings([triangle]), box(2, 2, 8, 8))) == 1.0


def test_box_iou_counts_the_boxes_of_pixels() -> None:
    comparison = compared(answer_from_rings([box(0, 2, 6, 6)]), box(0, 0, 6, 4))
    assert box_iou.Reward()(comparison) == pytest.approx(12 / 36)
    assert box_iou.Reward()(compared(answer_from_rings([box(9, 9, 11, 11)]), box(0, 0, 6, 4))) == 0.0
    assert box_iou.Reward()(compared(EMPTY, box(0, 0, 6, 4))) == 0.0


def said(*boxes: Box | None) -> Answer:
    """An answer of one small instance a box."""
    return Answer(AnswerStatus.OK, tuple(instance_from_rings([box(0, 0, 1, 1)], said_box) for said_box in boxes))


def test_a_said_box_is_scored_whatever_is_drawn_and_several_by_the_box_around_them() -> None:
    reward, truth = box_iou.Reward(said=True), box(2, 2, 8, 8)
    assert reward(compared(said((2.0, 2.0, 8.0, 8.0)), truth)) == 1.0
    assert reward(compared(said((2.0, 2.0, 5.0, 8.0)), truth)) == 0.5
    assert reward(compared(said((2.0, 2.0, 4.0, 4.0), None, (6.0, 6.0, 8.0, 8.0)), truth)) == 1.0


def test_a_said_box_does_not_apply_where_none_was_said_but_empty_is_no_way_around_it() -> None:
    reward, truth = box_iou.Reward(said=True), box(2, 2, 8, 8)
    assert reward(compared(said(None), truth)) is None
    assert reward(compared(EMPTY, truth)) == 0.0
    assert reward(compared(EMPTY)) == 1.0


def test_point_in_mask_asks_for_the_middle_of_the_longest_run() -> None:
    truth = box(2, 2, 8, 8)
    assert point_in_mask.Reward()(compared(answer_from_rings([box(4, 4, 12, 5)]), truth)) == 1.0  # pixel 7 of row 4
    assert point_in_mask.Reward()(compared(answer_from_rings([box(6, 4, 12, 5)]), truth)) == 0.0
    assert point_in_mask.Reward()(compared(EMPTY, truth)) == 0.0
    assert point_in_mask.Reward()(compared(answer_from_rings([box(2, 2, 8, 2)]), truth)) == 0.0


@pytest.mark.parametrize(
    ("num_vertices", "earned"), [(3, 1.0), (16, 1.0), (44, 0.75), (72, 0.5), (128, 0.0), (500, 0.0)]
)
def test_length_penalty_falls_from_16_to_128_vertices(num_vertices: int, earned: float) -> None:
    comparison = compared(answer_from_rings([np.ones((num_vertices, 2))]), box(2, 2, 8, 8))
    assert length_penalty.Reward()(comparison) == earned


def test_vertex_economy_pays_the_iou_up_to_what_the_truth_needs_and_a_share_beyond() -> None:
    dozen = np.repeat(box(2, 2, 8, 8), 4, axis=0)  # the truth needs 4 vertices, 8 are free, 16 are spent
    assert vertex_economy.Reward()(compared(answer_from_rings([dozen]), box(2, 2, 8, 8))) == 0.5
    assert vertex_economy.Reward(free_vertices=16)(compared(answer_from_rings([dozen]), box(2, 2, 8, 8))) == 1.0
    half = np.repeat(box(2, 2, 5, 8), 4, axis=0)
    assert vertex_economy.Reward()(compared(answer_from_rings([half]), box(2, 2, 8, 8))) == 0.25


def test_vertex_economy_allows_a_truth_the_vertices_that_it_needs() -> None:
    plus = np.array(
        [(4, 0), (8, 0), (8, 4), (12, 4), (12, 8), (8, 8), (8, 12), (4, 12), (4, 8), (0, 8), (0, 4), (4, 4)]
    )
    comparison = compared(answer_from_rings([plus.astype(np.float64)]), plus.astype(np.float64))
    assert vertex_economy.Reward()(comparison) == 1.0
    # 80 true pixels; a corner of the plus less adds 8 or takes 8 away: at 11 vertices, 80 / 88 or better.
    assert vertex_economy.Reward(min_iou=0.9)(comparison) == pytest.approx(11 / 12)


def test_matched_iou_pairs_each_drawn_instance_with_one_true_one() -> None:
    truth = box(0, 0, 4, 4), box(6, 6, 10, 10)
    swapped = compared_with_several(several(box(6, 6, 10, 10), box(0, 0, 4, 2)), *truth)
    assert matched_iou.Reward()(swapped) == pytest.approx((1 + 0.5) / 2)


def test_matched_iou_divides_by_the_larger_number() -> None:
    truth, other = box(0, 0, 4, 4), box(6, 6, 10, 10)
    assert matched_iou.Reward()(compared_with_several(several(truth), truth, other)) == 0.5
    assert matched_iou.Reward()(compared_with_several(several(truth, other, truth, other), truth, other)) == 0.5
    around = compared_with_several(several(box(0, 0, 10, 10)), truth, other)
    assert matched_iou.Reward()(around) == pytest.approx(16 / 100 / 2)
    assert matched_iou.Reward()(compared_with_several(EMPTY, truth, other)) == 0.0


def test_instance_f1_counts_what_is_found_and_what_is_too_many() -> None:
    truth, other = box(0, 0, 4, 4), box(6, 6, 10, 10)
    f1 = instance_f1.Reward()
    assert f1(compared_with_several(several(truth, box(6, 6, 10, 8)), truth, other)) == 1.0  # IoUs 1 and 0.5
    assert instance_f1.Reward(min_iou=0.6)(compared_with_several(several(truth, box(6, 6, 10, 8)), truth, other)) == 0.5
    assert f1(compared_with_several(several(truth), truth, other)) == pytest.approx(2 / 3)
    assert f1(compared_with_several(several(truth, truth, other), truth, other)) == pytest.approx(4 / 5)
    assert f1(compared_with_several(several(box(0, 0, 10, 10)), truth, other)) == 0.0
    assert f1(compared_with_several(EMPTY, truth, other)) == 0.0
    # The first fits both, the second only what the first fits best: still two pairs.
    one, two = box(0, 0, 4, 8), box(0, 0, 4, 4)
    drawn = several(box(0, 0, 4, 6), box(0, 2, 4, 8))
    assert f1(compared_with_several(drawn, one, two)) == 1.0


def test_matched_iou_finds_the_best_matching_not_the_greedy_one() -> None:
    truth = box(0, 0, 4, 4), box(4, 0, 8, 4)
    # IoUs 12 / 24 and 8 / 28 of the first, 6 / 16 and 0 of the second: the best pair first would leave the second 0.
    drawn = several(box(1, 0, 6, 4), box(0, 0, 2, 3))
    assert matched_iou.Reward()(compared_with_several(drawn, *truth)) == pytest.approx((8 / 28 + 6 / 16) / 2)
