"""Boxes of none, one or several objects: matched by generalised IoU, each once, and right only where all are."""

import numpy as np
import pytest

from envs.geometry.rle import rle_from_mask
from envs.polygons import Answer, AnswerStatus, Box, Instance, instance_from_rings
from rl.evaluation.protocols.base import CodedTruth, protocol_named
from rl.evaluation.protocols.grec import generalised_iou

OK, EMPTY, UNREADABLE = AnswerStatus.OK, AnswerStatus.EMPTY, AnswerStatus.UNPARSABLE
LEFT, RIGHT, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (40, 20, 60, 40)


def rle(box: Box) -> str:
    mask = np.zeros((40, 60), np.bool_)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return rle_from_mask(mask)


def truth(*boxes: Box, example_id: str = "a") -> CodedTruth:
    return CodedTruth(example_id, 40, 60, tuple(map(rle, boxes)))


def said(*boxes: Box) -> Answer:
    return Answer(OK, tuple(instance_from_rings([], box) for box in boxes))


def drawn(*boxes: Box) -> Answer:
    rings = [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64) for x0, y0, x1, y1 in boxes]
    return Answer(OK, tuple(instance_from_rings([ring]) for ring in rings))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((0, 0, 10, 5), 0.5),
        ((10, 0, 20, 10), 0.0),
        ((20, 0, 30, 10), -1 / 3),  # 100 of 300 between them
        ((1.8, 1.8, 11.8, 11.8), 67.24 / 132.76 - 6.48 / 139.24),
        ((3, 3, 3, 3), 0.0),
    ],
)
def test_generalised_iou_takes_off_what_neither_covers(other: Box, expected: float) -> None:
    assert generalised_iou(LEFT, other) == pytest.approx(expected) == generalised_iou(other, LEFT)


@pytest.mark.parametrize(
    ("answer", "true", "f1"),
    [
        (said(RIGHT, LEFT), (LEFT, RIGHT), 1.0),
        (drawn(LEFT, RIGHT), (LEFT, RIGHT), 1.0),
        (said(LEFT), (LEFT, RIGHT), 2 / 3),
        (said(LEFT, RIGHT, FAR), (LEFT, RIGHT), 4 / 5),
        (said(LEFT, LEFT), (LEFT,), 2 / 3),  # each true box once
        (said(FAR), (LEFT,), 0.0),
        (said((1.8, 1.8, 11.8, 11.8)), (LEFT,), 0.0),  # an IoU of 0.506, and a generalised one of 0.460
        (said((0, 0, 10, 5)), (LEFT,), 1.0),  # at the threshold
        # 0.7 and 0.714, 0.4 and 0.8: in the order of the answer, the first would take what the second alone matches.
        (said((0, 0, 10, 7), (0, 0, 10, 4)), (LEFT, (0, 0, 10, 5)), 1.0),
        (said(LEFT), (), 0.0),
        (Answer(EMPTY), (), 1.0),
        (Answer(EMPTY), (LEFT,), 0.0),
        (Answer(UNREADABLE), (), 0.0),
    ],
)
def test_f1_of_one_answer(answer: Answer, true: tuple[Box, ...], f1: float) -> None:
    [found] = protocol_named("grec").judge([answer], [truth(*true)])
    assert (found.iou, found.box_iou) == (pytest.approx(f1), found.iou)


def test_a_sentence_is_right_only_where_every_box_is_and_accuracies_ask_whether_there_are_boxes() -> None:
    answers = [said(LEFT), said(LEFT), said(FAR), Answer(EMPTY), Answer(EMPTY), said(FAR), Answer(UNREADABLE)]
    truths = [(LEFT,), (LEFT, RIGHT), (LEFT,), (LEFT,), (), (), ()]
    coded = [truth(*boxes, example_id=f"{k}") for k, boxes in enumerate(truths)]
    protocol = protocol_named("grec")
    scores = protocol.scores(protocol.judge(answers, coded))
    assert scores["F1score"] == 2 / 7 and scores["mean F1"] == pytest.approx((1 + 2 / 3 + 1) / 7)
    assert (scores["N-acc"], scores["T-acc"], scores["unreadable"]) == (1 / 3, 3 / 4, 1 / 7)


def test_objects_of_a_low_score_are_left_out_and_a_mask_is_one_box() -> None:
    scored = [Instance(np.zeros((0, 2)), np.zeros(1, np.int64), box, score=s) for box, s in ((LEFT, 0.7), (FAR, 0.69))]
    [found] = protocol_named("grec").judge([Answer(OK, tuple(scored))], [truth(LEFT)])
    assert found.iou == 1
    [found] = protocol_named("grec", {"min_score": 0.5}).judge([Answer(OK, tuple(scored))], [truth(LEFT)])
    assert found.iou == 2 / 3
    protocol, coded = protocol_named("grec"), [truth(LEFT), truth(example_id="none")]
    judged = protocol.judge_masks([rle(LEFT), rle((0, 0, 0, 0))], [OK, EMPTY], coded)
    assert [(one.iou, one.says_none) for one in judged] == [(1.0, False), (1.0, True)]
