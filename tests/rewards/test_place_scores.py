"""Boxes and points are worth what they hit, one each, and rewards of masks say nothing about them."""

import numpy as np
import pytest

from envs.codecs._places import answer_of_places
from envs.example import Truth
from envs.geometry.boxes import box_ious
from envs.polygons import Answer, AnswerStatus
from rewards.places import matched_share
from rewards.score import Target, compare, term
from rewards.terms import box_iou, centroid_distance, mask_iou, point_in_mask
from rewards.terms import format as format_reward

MASKS = np.zeros((2, 20, 30), np.bool_)
MASKS[0, 2:6, 2:6] = True
MASKS[1, 10:14, 10:18] = True
BOTH, NOTHING = Target.from_truth(Truth(MASKS)), Target.from_truth(Truth(MASKS[:0]))


def boxes(*corners: tuple[float, float, float, float]) -> Answer:
    return answer_of_places([np.array(each, np.float64).reshape(2, 2) for each in corners])


def points(*places: tuple[float, float]) -> Answer:
    return answer_of_places([np.array([each], np.float64) for each in places])


def worth(answer: Answer, asked: str, target: Target = BOTH) -> float:
    return compare([answer], target, asked=asked).iou[0]


def test_box_ious_by_hand() -> None:
    found = box_ious([(0, 0, 4, 4), (2, 0, 6, 4)], [(2, 0, 6, 4), (10, 10, 11, 11)])
    np.testing.assert_allclose(found, [[8 / 24, 0], [1, 0]])


def test_neither_a_missing_nor_a_superfluous_box_is_free() -> None:
    first, second = (2, 2, 6, 6), (10, 10, 18, 14)
    assert worth(boxes(second, first), "box") == 1.0
    assert worth(boxes(first), "box") == 0.5
    assert worth(boxes(first, second, (0, 0, 1, 1)), "box") == pytest.approx(2 / 3)
    assert worth(boxes(first, first), "box") == 0.5  # one object is matched once
    assert worth(boxes((2, 2, 6, 4)), "box") == 0.25  # half of the first, and one is missing
    assert matched_share(np.array([[0.9, 0.8], [0.8, 0.1]])) == pytest.approx(0.8)  # not the greedy 0.5


def test_a_point_counts_for_the_object_it_lies_on() -> None:
    assert worth(points((3.5, 3.5), (12.0, 11.0)), "point") == 1.0
    assert worth(points((3.5, 3.5), (4.0, 4.0)), "point") == 0.5
    assert worth(points((6.0, 3.5)), "point") == 0.0  # the right edge is outside
    assert worth(points((-1.0, 500.0), (float("nan"), 2.0)), "point") == 0.0


@pytest.mark.parametrize("asked", ["box", "point"])
def test_where_nothing_is_true_only_the_empty_answer_is_right(asked: str) -> None:
    said = boxes((2, 2, 6, 6)) if asked == "box" else points((3, 3))
    assert worth(Answer(AnswerStatus.EMPTY), asked, NOTHING) == 1.0
    assert worth(said, asked, NOTHING) == 0.0
    assert worth(Answer(AnswerStatus.UNPARSABLE), asked, NOTHING) == 0.0
    assert worth(Answer(AnswerStatus.EMPTY), asked) == 0.0


def test_rewards_apply_where_they_can() -> None:
    [box] = compare([boxes((2, 2, 6, 6))], BOTH, asked="box")
    [point] = compare([points((3.5, 3.5))], BOTH, asked="point")
    assert [term(reward, box) for reward in (box_iou.Reward(), format_reward.Reward())] == [0.5, 1.0]
    assert [term(reward, point) for reward in (point_in_mask.Reward(), format_reward.Reward())] == [0.5, 1.0]
    for reward in (mask_iou.Reward(), centroid_distance.Reward()):
        assert (term(reward, box), term(reward, point)) == (None, None)
    assert term(point_in_mask.Reward(), box) is None
    [unread] = compare([Answer(AnswerStatus.TRUNCATED)], BOTH, asked="box")
    assert term(mask_iou.Reward(), unread) == term(box_iou.Reward(), unread) == 0.0


def test_the_ignored_pixels_of_an_object_are_not_of_its_box() -> None:
    ignore = np.zeros((20, 30), np.bool_)
    ignore[2:6, 4:6] = True
    target = Target.from_truth(Truth(MASKS[:1], ignore))
    assert worth(boxes((2, 2, 4, 6)), "box", target) == 1.0
