"""What the protocols ask and report: titles, ignored pixels, stretched photos, boxes, tags, names and refusals."""

import numpy as np
import pytest

from envs.example import Example, ImageRef, MaskPart, Prompt, TextPart, Truth
from envs.geometry.rle import rle_from_mask
from envs.polygons import Answer, AnswerStatus, Box, answer_from_rings, instance_from_rings
from rl.evaluation.protocols.base import CodedTruth, Judged, protocol_named, protocol_names
from rl.evaluation.protocols.rec import box_iou

OK, EMPTY = AnswerStatus.OK, AnswerStatus.EMPTY
WIDTH, HEIGHT = 40, 30


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def ring(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def truth_of(*masks: np.ndarray, ignore: np.ndarray | None = None, example_id: str = "a") -> CodedTruth:
    counts = None if ignore is None else rle_from_mask(ignore)
    return CodedTruth(example_id, HEIGHT, WIDTH, tuple(rle_from_mask(mask) for mask in masks), counts)


def example_of(*masks: np.ndarray, parts: tuple[TextPart | MaskPart, ...], example_id: str = "a") -> Example:
    truth = Truth(np.array(masks, np.bool_).reshape(-1, HEIGHT, WIDTH))
    return Example(example_id, ImageRef("a", "0" * 64, HEIGHT, WIDTH), Prompt(parts), truth, "test", "made", "CC0-1.0")


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("res", ["cIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]),
        ("res/lisa", ["cIoU", "mIoU"]),
        ("gres", ["gIoU", "cIoU", "N-acc", "T-acc", "Pr@0.7", "Pr@0.8", "Pr@0.9", "gIoU, targeted"]),
        ("reasonseg", ["gIoU", "cIoU"]),
        ("lvis_mask", ["mIoU", "cIoU", "P@0.5", "P@0.7", "P@0.9", "N-acc", "T-acc"]),
        ("rec", ["Acc@0.5", "mean box IoU"]),
        ("grec", ["F1score", "N-acc", "T-acc", "mean F1"]),
        ("boundary", []),
    ],
)
def test_scores_have_the_titles_of_papers_then_boundary_iou_and_what_could_not_be_read(
    name: str, titles: list[str]
) -> None:
    protocol = protocol_named(name)
    found = protocol.scores(protocol.judge([answer_from_rings([ring(0, 0, 9, 9)])], [truth_of(rectangle(0, 0, 9, 9))]))
    assert list(found) == [*titles, "Boundary IoU", "unreadable"]


@pytest.mark.parametrize("name", protocol_names())
def test_the_exact_outline_scores_1_wherever_one_answer_can(name: str) -> None:
    protocol, box = protocol_named(name), (2.0, 3.0, 20.0, 23.0)
    answer = Answer(OK, (instance_from_rings([ring(*box)], box),))
    [found] = protocol.judge([answer], [truth_of(rectangle(2, 3, 20, 23))])
    # Corners taken from the indices of pixels leave 17 x 19 of 18 x 20.
    expected = 17 * 19 / (18 * 20) if name == "rec/text4seg" else 1.0
    assert (found.iou, found.boundary_iou) == (pytest.approx(expected, abs=1e-6), 1.0)


def test_an_example_and_its_run_lengths_are_judged_alike() -> None:
    masks = rectangle(1, 1, 9, 20), rectangle(5, 10, 30, 28)
    protocol, answer = protocol_named("res"), answer_from_rings([ring(0.3, 2.2, 25.7, 27.1)])
    of_example = protocol.judge([answer], [example_of(*masks, parts=(TextPart("it"),))])
    assert of_example == protocol.judge([answer], [truth_of(*masks)])
    assert of_example[0].true_px == int((masks[0] | masks[1]).sum())


def test_ignored_pixels_leave_truth_and_answer_or_become_true() -> None:
    truth = truth_of(rectangle(0, 0, 10, 10), ignore=rectangle(5, 0, 20, 10))
    answer = answer_from_rings([ring(0, 0, 20, 10)])
    [found] = protocol_named("reasonseg").judge([answer], [truth])
    assert (found.true_px, found.drawn_px, found.iou) == (50, 50, 1.0)
    [found] = protocol_named("reasonseg/seg_zero").judge([answer], [truth])
    assert (found.true_px, found.drawn_px, found.iou) == (200, 200, 1.0)


def test_a_truth_that_is_ignored_altogether_is_right_with_nothing_drawn_beside_it() -> None:
    truth = truth_of(rectangle(0, 0, 10, 10), ignore=rectangle(0, 0, 10, 10))
    answers = [answer_from_rings([ring(0, 0, 10, 10)]), answer_from_rings([ring(0, 0, 10, 11)])]
    assert [protocol_named("reasonseg").judge([answer], [truth])[0].iou for answer in answers] == [1.0, 0.0]


def test_a_photo_stretched_to_480_gives_every_pixel_the_value_under_its_centre() -> None:
    protocol = protocol_named("gres/rela_480")
    left = truth_of(rectangle(0, 0, 20, 30))
    for [found] in (
        protocol.judge([answer_from_rings([ring(0, 0, 40, 15)])], [left]),
        protocol.judge_masks([rle_from_mask(rectangle(0, 0, 40, 15))], [OK], [left]),
    ):
        half = 480 * 240
        assert (found.true_px, found.drawn_px, found.shared_px) == (half, half, half // 2)


def test_the_size_scored_changes_an_iou() -> None:
    # 3 of 40 columns cover 36 of 480; drawn to 3.4 px they stay 3 columns, but become 41 of 480.
    answer, truth = answer_from_rings([ring(0, 0, 3.4, 30)]), truth_of(rectangle(0, 0, 3, 30))
    assert protocol_named("res").judge([answer], [truth])[0].iou == 1.0
    assert protocol_named("res/lavt").judge([answer], [truth])[0].iou == pytest.approx(36 / 41)


def test_ores_splits_its_scores_by_whether_the_query_points_at_a_mask() -> None:
    group = rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10)
    words = example_of(*group, parts=(TextPart("both"),), example_id="words")
    points = example_of(*group, parts=(TextPart("like"), MaskPart(group[0])), example_id="points")
    chosen = [answer_from_rings([ring(0, 0, 10, 10)]), answer_from_rings([ring(0, 0, 10, 10), ring(20, 0, 30, 10)])]
    protocol = protocol_named("ores")
    scores = protocol.scores(protocol.judge(chosen, [words, points]))
    assert (scores["gIoU"], scores["cIoU"]) == (0.75, 300 / 400)
    assert (scores["gIoU, with mask reference"], scores["cIoU, with mask reference"]) == (1.0, 1.0)
    assert (scores["gIoU, without mask reference"], scores["cIoU, without mask reference"]) == (0.5, 0.5)


def test_lvis_means_are_of_categories_that_are_there_and_n_acc_of_those_that_are_not() -> None:
    there, absent = truth_of(rectangle(0, 0, 10, 10)), truth_of(example_id="b")
    protocol = protocol_named("lvis_mask")
    silent = protocol.scores(protocol.judge([Answer(EMPTY)] * 2, [there, absent]))
    assert (silent["mIoU"], silent["cIoU"], silent["N-acc"], silent["T-acc"]) == (0.0, 0.0, 1.0, 0.0)
    drawn = answer_from_rings([ring(0, 0, 10, 10)])
    loud = protocol.scores(protocol.judge([drawn] * 2, [there, absent]))
    assert (loud["mIoU"], loud["cIoU"], loud["N-acc"], loud["P@0.9"]) == (1.0, 1.0, 0.0, 1.0)


def answer_with_boxes(*boxes: Box) -> Answer:
    return Answer(OK, tuple(instance_from_rings([], box) for box in boxes))


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("rec", answer_with_boxes((0, 0, 10, 10)), 1.0),
        ("rec", answer_with_boxes((0, 0, 10, 5)), 0.5),
        ("rec", answer_from_rings([ring(0, 0, 10, 5)]), 0.5),
        ("rec", answer_with_boxes((0, 0, 10, 10), (10, 0, 20, 10)), 0.5),
        ("rec/vision_reasoner", answer_with_boxes((20, 0, 30, 10), (0, 0, 10, 10)), 1.0),
        ("rec/qwen_vl", answer_from_rings([ring(0, 0, 10, 10)]), 0.0),
        ("rec/text4seg", answer_from_rings([ring(0, 0, 10, 10)]), 0.81),
        ("rec", Answer(EMPTY), 0.0),
        ("rec", Answer(AnswerStatus.UNPARSABLE), 0.0),
    ],
)
def test_the_box_of_an_answer_is_the_one_that_the_script_takes(name: str, answer: Answer, expected: float) -> None:
    [found] = protocol_named(name).judge([answer], [truth_of(rectangle(0, 0, 10, 10))])
    assert (found.box_iou, found.iou) == (expected, expected)


@pytest.mark.parametrize(("name", "share"), [("rec", 1.0), ("rec/vision_reasoner", 0.0)])
def test_a_box_iou_of_half_is_right_or_not_by_the_sign(name: str, share: float) -> None:
    protocol = protocol_named(name)
    judged = protocol.judge([answer_with_boxes((0, 0, 10, 5))], [truth_of(rectangle(0, 0, 10, 10))])
    assert protocol.scores(judged)["Acc@0.5"] == share


def test_the_data_sets_own_box_comes_before_the_tight_box_of_its_mask() -> None:
    truth = CodedTruth("a", HEIGHT, WIDTH, (rle_from_mask(rectangle(0, 0, 10, 10)),), box_px=(0, 0, 20, 10))
    [found] = protocol_named("rec").judge([answer_with_boxes((0, 0, 20, 10))], [truth])
    assert found.box_iou == 1.0


def test_boxes_that_only_touch_or_have_no_area_share_nothing() -> None:
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == box_iou((0, 0, 0, 1), (0, 0, 0, 1)) == 0.0
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == 1 / 7


def test_the_coco_boundary_term_is_at_most_the_iou_of_the_masks() -> None:
    # Bands are 1 px wide: 136 px along the photo's border are shared, 112 px around the frame's hole are not.
    photo, frame = rectangle(0, 0, 40, 30), rectangle(0, 0, 40, 30) & ~rectangle(4, 4, 36, 26)
    masks, truths = [rle_from_mask(frame)], [truth_of(photo)]
    [plain], [coco] = (protocol_named(name).judge_masks(masks, [OK], truths) for name in ("boundary", "boundary/coco"))
    assert (plain.iou, coco.iou) == (136 / 248, 496 / 1200)


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("ress", {}, "did you mean 'res'"),
        ("res/lavd", {}, "did you mean 'lavt'"),
        ("ores/lavt", {}, "no variant 'lavt'"),
        ("res", {"epsilon_onion": 1}, "epsilon_union"),
        ("res", {"reaches": "=="}, "protocol.reaches is '=='"),
        ("res", {"zero_union": 0.5}, "protocol.zero_union is 0.5"),
        ("res", {"thresholds": [0.5, 1.5]}, "protocol.thresholds has 1.5"),
        ("gres", {"min_pixels": 0}, "protocol.min_pixels is 0"),
        ("res", {"side_px": "480"}, "protocol.side_px is '480'"),
    ],
)
def test_a_wrong_name_or_setting_is_told_with_what_was_meant(name: str, overrides: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        protocol_named(name, overrides)


def test_an_override_is_set_over_the_variant() -> None:
    protocol = protocol_named("res/lavt", {"side_px": 512})
    assert protocol.side_px == 512 and protocol_named("res/lavt").side_px == 480


def test_an_example_judged_twice_is_refused_before_and_after_judging() -> None:
    protocol, truth = protocol_named("res"), truth_of(rectangle(0, 0, 5, 5))
    with pytest.raises(ValueError, match="'a' is judged twice"):
        protocol.judge([Answer(EMPTY)] * 2, [truth] * 2)
    judged = protocol.judge([Answer(EMPTY)], [truth])
    for refused in (protocol.scores, protocol.resampled):
        with pytest.raises(ValueError, match="'a' is judged twice"):
            refused(judged * 2)


def test_no_answer_and_too_few_answers_are_refused() -> None:
    protocol, truth = protocol_named("res"), truth_of(rectangle(0, 0, 5, 5))
    assert protocol.judge([], []) == []
    with pytest.raises(ValueError, match="no answer was judged"):
        protocol.scores([])
    with pytest.raises(ValueError, match="0 answers for 1 examples"):
        protocol.judge([], [truth])
    with pytest.raises(ValueError, match="1 statuses for 2 masks"):
        protocol.judge_masks(["", ""], [OK], [truth])


@pytest.mark.parametrize("where", ["truth", "ignore", "mask"])
def test_run_lengths_of_another_size_are_refused_by_the_id_of_the_example(where: str) -> None:
    right, wrong = rle_from_mask(rectangle(0, 0, 5, 5)), rle_from_mask(np.ones((7, 7), np.bool_))
    truth = CodedTruth(
        "x/7", HEIGHT, WIDTH, (wrong if where == "truth" else right,), wrong if where == "ignore" else None
    )
    with pytest.raises(ValueError, match="'x/7': a run-length text does not cover its photo of 30 x 40"):
        protocol_named("res").judge_masks([wrong if where == "mask" else right], [OK], [truth])


def rows(ious: list[float], shared: list[int], union: list[int]) -> list[Judged]:
    return [
        Judged(f"{k}", OK, False, False, u, u, s, u, iou, iou / 2)
        for k, (iou, s, u) in enumerate(zip(ious, shared, union, strict=True))
    ]


def test_paired_differences_are_of_the_same_examples_in_whatever_order() -> None:
    protocol = protocol_named("res")
    before, after = rows([0.2, 0.4], [2, 8], [10, 20]), rows([0.4, 0.6], [4, 12], [10, 20])
    found = protocol.differences(before, after[::-1])
    assert found["mIoU"].numbers == pytest.approx((0.2, 0.2, 0.2))
    assert found["cIoU"].value == pytest.approx(6 / 30)
    assert all(interval.numbers == (0, 0, 0) for interval in protocol.differences(after, after).values())
    with pytest.raises(ValueError, match=r"of 2 and 1 some are in one alone, such as \['1'\]"):
        protocol.differences(before, after[:1])
