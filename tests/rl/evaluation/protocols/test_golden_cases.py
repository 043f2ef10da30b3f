"""What single answers contribute under each published script, by the numbers that its rules give."""

from collections.abc import Sequence

import numpy as np
import pytest

from envs.geometry.rle import rle_from_mask
from envs.polygons import Answer, AnswerStatus
from rl.evaluation.protocols.base import CodedTruth, Judged, protocol_named

OK, EMPTY = AnswerStatus.OK, AnswerStatus.EMPTY
SIZE = 480  # so that scripts which stretch photos to 480 x 480 leave them as they are
CASES = {  # pixels true, drawn, shared; and whether the answer says that there is nothing
    "nothing true, nothing drawn": (0, 0, 0, EMPTY),
    "nothing true, 10 drawn": (0, 10, 0, OK),
    "20 true, nothing drawn": (20, 0, 0, EMPTY),
    "20 true, 20 drawn, 10 of both": (20, 20, 10, OK),
    "the same, but rejected by the model": (20, 20, 10, EMPTY),
}
EXPECTED = {  # term of the mean, and pixels of the pooled IoU above and below the line
    "gres/rela": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (1 / 3, 10, 30), (0, 0, 30)],
    "gres/rela_480": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (1 / 3, 10, 30), (0, 0, 30)],
    "gres/gsva": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00000001, 10, 30), (10 / 30.00000001, 10, 30)],
    "gres/gsva_ref_zom": [(1, 0, 0), (0, 0, 0), (0, 0, 20), (10 / 30.00000001, 10, 30), (10 / 30.00000001, 10, 30)],
    "gres/lisa": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/lisa": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/gsva": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/sa2va": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/text4seg": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/evf": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.0000000001, 10, 30)],
    "reasonseg/lisa": [(1, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.00001, 10, 30)],
    "res/lavt": [(0, 0, 0), (0, 0, 10), (0, 0, 20), (1 / 3, 10, 30)],
    "res/vlt": [
        (1, 0, 0),
        (1e-10 / 10.0000000001, 0, 10),
        (1e-10 / 20.0000000001, 0, 20),
        (10.0000000001 / 30.0000000001, 10, 30),
    ],
    "res/cris": [(0, 0, 0), (0, 0, 10), (0, 0, 20), (10 / 30.000001, 10, 30)],
    "res/seg_zero": [(0, 0, 0), (0, 0, 10), (0, 0, 20), (1 / 3, 10, 30)],
    "reasonseg/seg_zero": [(0, 0, 0), (0, 0, 10), (0, 0, 20), (1 / 3, 10, 30)],
}


def row_of(first: int, num: int) -> str:
    mask = np.zeros((SIZE, SIZE), np.bool_)
    mask[0, first : first + num] = True
    return rle_from_mask(mask)


def judged(name: str, cases: Sequence[str]) -> list[Judged]:
    masks, statuses, truths = [], [], []
    for case in cases:
        true_px, drawn_px, shared_px, status = CASES[case]
        masks.append(row_of(true_px - shared_px, drawn_px))
        statuses.append(status)
        truths.append(CodedTruth(case, SIZE, SIZE, (row_of(0, true_px),) if true_px else ()))
    return protocol_named(name).judge_masks(masks, statuses, truths)


@pytest.mark.parametrize(
    ("name", "case", "expected"),
    [(name, case, row) for name, rows in EXPECTED.items() for case, row in zip(CASES, rows, strict=False)],
)
def test_an_answer_contributes_what_the_script_counts(name: str, case: str, expected: tuple[float, int, int]) -> None:
    [found] = judged(name, [case])
    assert (found.iou, found.shared_px, found.union_px) == expected


@pytest.mark.parametrize(
    ("name", "mean", "giou", "ciou"),
    [
        ("gres/rela", "gIoU", 1 / 3, 1 / 6),
        ("gres/gsva", "gIoU", 1 / 3, 1 / 6),
        ("gres/lisa", "gIoU", 1 / 3, 1 / 6),
        ("reasonseg/lisa", "gIoU", 1 / 3, 1 / 6),
        ("res/lisa", "mIoU", 1 / 3, 1 / 6),
        ("res/lavt", "mIoU", 1 / 12, 1 / 6),
    ],
)
def test_the_first_four_cases_together_give_the_mean_and_the_pooled_iou_of_the_script(
    name: str, mean: str, giou: float, ciou: float
) -> None:
    scores = protocol_named(name).scores(judged(name, list(CASES)[:4]))
    assert scores[mean] == pytest.approx(giou, abs=5e-6)
    assert scores["cIoU"] == pytest.approx(ciou, abs=5e-6)


@pytest.mark.parametrize("name", ["gres/rela", "gres/rela_480", "gres/gsva", "gres/lisa"])
def test_the_first_four_cases_take_half_of_what_is_none_and_half_of_what_is_there_as_such(name: str) -> None:
    scores = protocol_named(name).scores(judged(name, list(CASES)[:4]))
    assert (scores["N-acc"], scores["T-acc"]) == (0.5, 0.5)


def test_lisa_divides_by_a_little_more_than_the_number_of_examples() -> None:
    scores = protocol_named("res/lisa").scores(judged("res/lisa", list(CASES)[:4]))
    assert scores["mIoU"] == (1 + 10 / 30.00001) / 4.00001
    assert scores["cIoU"] == 10 / 60.0000000001


def test_a_rejected_answer_may_count_as_an_empty_mask_too() -> None:
    protocol = protocol_named("gres", {"rejected": "truth"})
    [found] = protocol.judge_masks([row_of(10, 20)], [EMPTY], [CodedTruth("a", SIZE, SIZE, (row_of(0, 20),))])
    assert (found.iou, found.shared_px, found.union_px, found.says_none) == (0.0, 0, 20, True)


def test_saying_nothing_always_scores_the_share_of_what_is_none() -> None:
    num, num_none = 14_229, 8_905  # of the validation split of gRefCOCO
    answers = [Answer(EMPTY)] * num
    truths = [CodedTruth(f"{k}", SIZE, SIZE, () if k < num_none else (row_of(0, 20),)) for k in range(num)]
    protocol = protocol_named("gres")
    scores = protocol.scores(protocol.judge(answers, truths))
    assert scores["gIoU"] == num_none / num == pytest.approx(0.6258, abs=5e-5)
    assert (scores["cIoU"], scores["N-acc"], scores["T-acc"], scores["gIoU, targeted"]) == (0.0, 1.0, 0.0, 0.0)
    assert (scores["Pr@0.7"], scores["unreadable"]) == (0.0, 0.0)


@pytest.mark.parametrize(("drawn_px", "says_none"), [(0, True), (49, True), (50, False)])
def test_fewer_than_fifty_pixels_are_none_under_that_rule(drawn_px: int, says_none: bool) -> None:
    truths = [CodedTruth("none", SIZE, SIZE, ()), CodedTruth("some", SIZE, SIZE, (row_of(0, 100),))]
    protocol = protocol_named("gres/fifty_pixels")
    none, some = protocol.judge_masks([row_of(0, drawn_px)] * 2, [OK, OK], truths)
    assert (none.says_none, none.iou, none.union_px) == (says_none, float(says_none), 0 if says_none else drawn_px)
    assert some.iou == (0.0 if says_none else drawn_px / 100) and some.union_px == 100


def test_a_model_that_is_never_taken_at_its_none_gets_no_n_acc() -> None:
    scores = protocol_named("gres/psalm").scores(judged("gres/psalm", list(CASES)[:4]))
    assert (scores["N-acc"], scores["T-acc"], scores["gIoU"]) == (0.0, 1.0, pytest.approx(1 / 12))


def test_ref_zom_leaves_what_is_none_out_of_both_ious() -> None:
    scores = protocol_named("gres/ref_zom").scores(judged("gres/ref_zom", list(CASES)[:4]))
    assert (scores["gIoU"], scores["cIoU"], scores["N-acc"]) == (pytest.approx(1 / 6), 10 / 50, 0.5)


UNREADABLE = [status for status in AnswerStatus if not status.valid]


@pytest.mark.parametrize("status", UNREADABLE)
@pytest.mark.parametrize("name", ["res", "res/lisa", "gres", "gres/lisa", "reasonseg", "ores", "lvis_mask"])
def test_an_unreadable_answer_is_an_empty_mask_with_the_truth_for_its_union(name: str, status: AnswerStatus) -> None:
    protocol, truth = protocol_named(name), CodedTruth("a", SIZE, SIZE, (row_of(0, 20),))
    for [found] in (
        protocol.judge([Answer(status)], [truth]),
        protocol.judge_masks([row_of(0, 20)], [status], [truth]),
    ):
        assert (found.iou, found.shared_px, found.union_px, found.boundary_iou) == (0.0, 0, 20, 0.0)
        assert protocol.scores([found])["unreadable"] == 1.0


@pytest.mark.parametrize(
    ("name", "earned"),
    [("gres", 0.0), ("gres/gsva", 0.0), ("reasonseg", 0.0), ("lvis_mask", 0.0), ("gres/lisa", 1.0), ("res/lisa", 1.0)],
)
def test_an_unreadable_answer_says_none_only_to_scripts_that_see_masks_alone(name: str, earned: float) -> None:
    protocol = protocol_named(name)
    [found] = protocol.judge([Answer(AnswerStatus.TRUNCATED)], [CodedTruth("a", SIZE, SIZE, ())])
    assert (found.iou, found.boundary_iou, found.is_none) == (earned, earned, True)


@pytest.mark.parametrize(("reaches", "share"), [(">=", 1.0), (">", 0.0)])
def test_half_reaches_a_threshold_of_half_by_one_sign_and_not_by_the_other(reaches: str, share: float) -> None:
    protocol = protocol_named("res", {"reaches": reaches, "thresholds": [0.5]})
    found = protocol.judge_masks([row_of(0, 10)], [OK], [CodedTruth("a", SIZE, SIZE, (row_of(0, 20),))])
    assert protocol.scores(found)["P@0.5"] == share
