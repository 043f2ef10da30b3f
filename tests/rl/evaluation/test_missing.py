"""Faults of answers, one at a time: each costs what was done to the answer, and nothing else does."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.example import Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from rl.evaluation.missing import FAULTS, Missing, missing_dict, missing_iou, missing_table

SQUARE = np.array([(8.0, 8.0), (24.0, 8.0), (24.0, 24.0), (8.0, 24.0)])


def truth() -> Truth:
    mask = np.zeros((1, 32, 32), np.bool_)
    mask[0, 8:24, 8:24] = True
    return Truth(mask)


def costs(*answers: Answer) -> Missing:
    found = missing_iou(answers, [truth()] * len(answers), max_vertices=12, max_rings=3)
    assert found.iou + sum(found.costs.values()) == pytest.approx(1.0)
    return found


def told(found: Missing) -> dict[str, Any]:
    return {name: cost for name, cost in found.costs.items() if abs(cost) > 1e-9}


def test_the_true_outline_lacks_nothing() -> None:
    assert told(costs(answer_from_rings([SQUARE]))) == {} and costs(answer_from_rings([SQUARE])).iou == 1.0


def test_a_shifted_answer_lacks_its_box_alone() -> None:
    found = costs(answer_from_rings([SQUARE + np.array([4.0, 0.0])]))
    assert found.iou == pytest.approx(12 / 20) and told(found) == pytest.approx({"box": 8 / 20})


def test_an_answer_whose_vertices_come_in_a_wrong_order_lacks_order_alone() -> None:
    found = costs(answer_from_rings([SQUARE[[0, 2, 1, 3]]]))
    assert told(found).keys() == {"order"} and found.iou + found.costs["order"] == 1.0


def test_a_vertex_off_the_outline_lacks_placement() -> None:
    ring = np.insert(SQUARE, 1, (16.0, 16.0), axis=0)  # the middle of the upper side, drawn into the square
    found = costs(answer_from_rings([ring]))
    assert told(found).keys() == {"placement"}
    assert found.costs["placement"] == pytest.approx(1 - found.iou)


def test_a_triangle_on_the_outline_lacks_number() -> None:
    found = costs(answer_from_rings([SQUARE[:3]]))
    assert told(found).keys() == {"number"} and found.iou == pytest.approx(0.5, abs=0.05)


def test_a_wrong_nothing_lacks_everything_and_a_right_one_is_left_out() -> None:
    nothing = Truth(np.zeros((0, 32, 32), np.bool_))
    empty, unread = Answer(AnswerStatus.EMPTY), Answer(AnswerStatus.UNPARSABLE)
    found = missing_iou([empty, unread, empty], [truth(), truth(), nothing], 12, 3)
    assert told(found) == {"unread": 1.0} and found.iou == 0.0
    with pytest.raises(ValueError, match="no scene shows anything"):
        missing_iou([empty], [nothing], 12, 3)


def test_the_table_and_the_json_have_a_column_for_each_stage() -> None:
    found = costs(answer_from_rings([SQUARE]))
    table = missing_table({"sft": found, "rl": found})
    assert table.row_count == 1 + len(FAULTS) and len(table.columns) == 3
    assert missing_dict({"sft": found})["sft"] == {"iou": 1.0} | dict.fromkeys(FAULTS, 0.0)


@pytest.mark.parametrize(("max_vertices", "max_rings"), [(8, 4), (3, 4), (12, 1)])
def test_limits_of_a_codec_that_leave_no_room_for_all_parts_do_not_stop_it(max_vertices: int, max_rings: int) -> None:
    mask: NDArray[np.bool_] = np.zeros((1, 32, 32), np.bool_)
    mask[0, 2:8, 2:8], mask[0, 2:8, 20:28], mask[0, 20:30, 20:30] = True, True, True
    found = missing_iou([answer_from_rings([SQUARE])], [Truth(mask)], max_vertices, max_rings)
    assert found.iou + sum(found.costs.values()) == pytest.approx(1.0)


def test_holes_and_parts_do_not_stop_it() -> None:
    mask: NDArray[np.bool_] = np.zeros((1, 32, 32), np.bool_)
    mask[0, 2:14, 2:14], mask[0, 6:9, 6:9], mask[0, 20:30, 20:30] = True, False, True
    found = missing_iou([answer_from_rings([SQUARE / 2, SQUARE])], [Truth(mask)], 12, 3)
    assert found.iou + sum(found.costs.values()) == pytest.approx(1.0)
