"""Targets, comparisons and scores: hand-computed numbers, and pycocotools as the oracle for IoU."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from envs.example import Truth
from envs.geometry.raster import fill
from envs.geometry.rle import rle_from_mask
from envs.polygons import Answer, AnswerStatus, Ring, answer_from_rings, flatten_rings, instance_from_rings
from rewards.kernels.overlap import boundary_iou
from rewards.score import Comparison, Target, compare
from rewards.terms.base import term

H, W = 8, 10
EMPTY = Answer(AnswerStatus.EMPTY)
INVALID = [status for status in AnswerStatus if not status.valid]
SLIVER = np.array([[2.6, 2.6], [2.9, 2.6], [2.9, 2.9]])
quarters = st.integers(-8, 48).map(lambda quarter: quarter / 4)
rings = st.lists(st.tuples(quarters, quarters), max_size=7).map(lambda points: np.array(points, float).reshape(-1, 2))


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def box_mask(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


NOTHING = Target.from_mask(np.zeros((H, W), bool))


@dataclass(frozen=True)
class Constant:
    """A reward that always says the same."""

    value: float | None
    weight: float = 1.0

    def __call__(self, comparison: Comparison) -> float | None:
        """`value`."""
        return self.value


def test_iou_of_half_overlapping_rows_is_one_third() -> None:
    target = Target.from_mask(box_mask(0, 0, 6, 4))
    overlap = target.overlap([[box(0, 2, 6, 6)]])
    assert (overlap.intersection.tolist(), overlap.area.tolist()) == ([12], [24])
    assert overlap.iou[0] == pytest.approx(12 / 36)
    assert overlap.centroid.tolist() == [[3.0, 4.0]]


def test_target_has_size_area_and_centroid_of_its_mask() -> None:
    target = Target.from_mask(box_mask(1, 2, 5, 4))
    assert (target.height, target.width, target.area_px, target.centroid_px) == (H, W, 8, (3.0, 3.0))
    assert (NOTHING.area_px, NOTHING.centroid_px) == (0, None)


def test_targets_from_mask_rle_rings_and_truth_agree() -> None:
    mask = box_mask(1, 2, 5, 4) | box_mask(6, 0, 9, 3)
    parts = np.stack([box_mask(1, 2, 5, 4), box_mask(6, 0, 9, 3)])
    for target in (
        Target.from_rle(rle_from_mask(mask), H, W),
        Target.from_rings([box(1, 2, 5, 4), box(6, 0, 9, 3)], H, W),
        Target.from_truth(Truth(parts)),
    ):
        assert (target.mask == mask).all()
        assert target.area_px == 17
    assert Target.from_truth(Truth(parts[:0])).area_px == 0
    assert Target.from_rings([], H, W).area_px == 0


def test_ignored_pixels_count_in_no_area_intersection_or_centroid() -> None:
    target = Target.from_mask(box_mask(0, 0, 4, 4), ignore=box_mask(2, 0, 6, 8))
    overlap = target.overlap([[box(0, 0, 8, 4)], [box(2, 0, 6, 8)]])
    assert (target.area_px, target.centroid_px) == (8, (1.0, 2.0))
    assert (overlap.intersection.tolist(), overlap.area.tolist()) == ([8, 0], [16, 0])
    assert overlap.iou.tolist() == [0.5, 0.0]
    assert overlap.centroid[0].tolist() == [4.0, 2.0]
    assert np.isnan(overlap.centroid[1]).all()


def test_ignore_of_a_truth_reaches_its_target() -> None:
    truth = Truth(box_mask(0, 0, 4, 4)[None], ignore=box_mask(0, 0, 4, 3))
    assert Target.from_truth(truth).area_px == 4


def test_overlap_of_no_answers_is_empty_and_of_an_answer_without_rings_has_no_pixel() -> None:
    assert NOTHING.overlap([]).iou.shape == (0,) and NOTHING.overlap([]).centroid.shape == (0, 2)
    assert NOTHING.overlap([[], [np.zeros((0, 2))]]).iou.tolist() == [1.0, 1.0]
    assert Target.from_mask(box_mask(0, 0, 2, 2)).overlap([[]]).iou.tolist() == [0.0]


def test_a_hole_and_a_second_part_are_taken_into_account() -> None:
    frame = [box(0, 0, 6, 6), box(2, 2, 4, 4)[::-1], box(8, 0, 10, 2)]
    assert Target.from_mask(box_mask(0, 0, 6, 6)).overlap([frame]).intersection.tolist() == [32]
    assert Target.from_mask(box_mask(0, 0, 6, 6)).overlap([frame]).area.tolist() == [36]


@settings(deadline=None)
@given(st.lists(rings, max_size=3), st.lists(st.lists(rings, max_size=3), min_size=1, max_size=4))
def test_iou_equals_pycocotools_on_the_filled_masks(truth: list[Ring], answers: list[list[Ring]]) -> None:
    target = Target.from_rings(truth, H, W)
    overlap = target.overlap(answers)
    for a, answer in enumerate(answers):
        masks = [fill(*flatten_rings(answer), H, W), target.mask]
        rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
        theirs = coco_mask.iou(rles[:1], rles[1:], [False])[0, 0] if any(mask.any() for mask in masks) else 1.0
        assert overlap.iou[a] == pytest.approx(theirs)


@settings(deadline=None)
@given(st.lists(st.lists(rings, max_size=3), min_size=1, max_size=4))
def test_an_answer_scores_the_same_alone_and_in_a_group(answers: list[list[Ring]]) -> None:
    target = Target.from_mask(box_mask(2, 1, 8, 6), ignore=box_mask(0, 0, 3, 3))
    together = target.overlap(answers)
    alone = [target.overlap([answer]) for answer in answers]
    assert together.iou.tolist() == [overlap.iou[0] for overlap in alone]
    assert np.array_equal(together.centroid, np.concatenate([o.centroid for o in alone]), equal_nan=True)


def test_masks_and_rings_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 8, 10\).*\[H, W\]"):
        Target.from_mask(np.zeros((2, H, W), bool))
    with pytest.raises(ValueError, match=r"ignore has shape \(3, 3\)"):
        Target.from_mask(box_mask(0, 0, 1, 1), ignore=np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\[N, 2\]"):
        NOTHING.overlap([[np.zeros((4, 3))]])
    with pytest.raises(ValueError, match=r"RLE covers 7 pixels"):
        Target.from_rle([7], H, W)


def test_a_comparison_holds_what_the_overlap_of_its_answer_is() -> None:
    target = Target.from_mask(box_mask(0, 0, 6, 4))
    half, empty = compare([answer_from_rings([box(0, 2, 6, 6)]), EMPTY], target)
    assert (half.intersection_px, half.answer_area_px, half.centroid_px) == (12, 24, (3.0, 4.0))
    assert half.iou == pytest.approx(1 / 3)
    assert (empty.answer_area_px, empty.iou, empty.centroid_px) == (0, 0.0, None)


def test_with_an_empty_truth_only_the_empty_answer_has_iou_1() -> None:
    unreadable = [Answer(status) for status in INVALID]
    drawn = [answer_from_rings([box(0, 0, 2, 2)]), answer_from_rings([SLIVER])]
    comparisons = compare([EMPTY, *drawn, *unreadable], NOTHING)
    assert [comparison.answer_area_px for comparison in list(comparisons)[:3]] == [0, 4, 0]
    assert [comparison.iou for comparison in comparisons] == [1.0] + [0.0] * (len(comparisons) - 1)


@pytest.mark.parametrize("status", INVALID)
def test_what_an_invalid_answer_drew_counts_nowhere(status: AnswerStatus) -> None:
    target = Target.from_mask(box_mask(0, 0, 6, 4))
    [comparison] = compare([Answer(status, (instance_from_rings([box(0, 0, 6, 4)]),))], target)
    assert (comparison.intersection_px, comparison.answer_area_px, comparison.iou) == (0, 0, 0.0)


def test_overlapping_instances_of_an_answer_unite() -> None:
    parts = tuple(instance_from_rings([box(0, 0, x, 4)]) for x in (4, 6))
    [comparison] = compare([Answer(AnswerStatus.OK, parts)], Target.from_mask(box_mask(0, 0, 6, 4)))
    assert comparison.iou == 1.0


def test_a_term_is_what_the_reward_says_of_a_valid_answer() -> None:
    [comparison] = compare([answer_from_rings([box(0, 0, 2, 2)])], Target.from_mask(box_mask(0, 0, 6, 4)))
    assert term(Constant(0.75), comparison) == 0.75
    assert term(Constant(None), comparison) is None


def test_a_shape_drawn_where_nothing_is_true_earns_0_wherever_a_reward_applies() -> None:
    drawn, empty = compare([answer_from_rings([box(0, 0, 2, 2)]), EMPTY], NOTHING)
    assert (term(Constant(0.75), drawn), term(Constant(None), drawn)) == (0.0, None)
    assert term(Constant(0.75), empty) == 0.75


@pytest.mark.parametrize("status", INVALID)
@pytest.mark.parametrize("target", [NOTHING, Target.from_mask(box_mask(0, 0, 6, 4))], ids=["empty", "object"])
def test_an_invalid_answer_earns_0_on_every_term(status: AnswerStatus, target: Target) -> None:
    [comparison] = compare([Answer(status)], target)
    assert (term(Constant(0.75), comparison), term(Constant(None), comparison)) == (0.0, 0.0)


def test_box_inner_point_and_second_moments_of_an_l_shape_are_those_of_its_pixels() -> None:
    corner = np.array([[1.0, 1], [3, 1], [3, 3], [6, 3], [6, 5], [1, 5]])
    [comparison] = compare([answer_from_rings([corner])], Target.from_mask(box_mask(0, 0, 6, 4)))
    rows, columns = np.nonzero(fill(*flatten_rings([corner]), H, W))
    assert comparison.box_px == (1.0, 1.0, 6.0, 5.0)
    assert comparison.inner_point_px == (3.5, 3.5)
    expected = np.cov(np.stack([columns, rows]), bias=True)
    assert comparison.second_moments_px == pytest.approx((expected[0, 0], expected[0, 1], expected[1, 1]))


def test_an_answer_without_a_pixel_has_no_box_point_or_moments() -> None:
    sliver, empty = compare([answer_from_rings([SLIVER]), EMPTY], Target.from_mask(box_mask(0, 0, 6, 4)))
    for comparison in (sliver, empty):
        assert (comparison.box_px, comparison.inner_point_px, comparison.second_moments_px) == (None, None, None)


@settings(deadline=None)
@given(st.lists(rings, max_size=3), st.lists(st.lists(rings, max_size=3), min_size=1, max_size=3), st.booleans())
def test_boundary_iou_equals_that_of_the_filled_masks(
    truth: list[Ring], answers: list[list[Ring]], ignoring: bool
) -> None:
    ignore = box_mask(0, 0, 3, 3) if ignoring else np.zeros((H, W), bool)
    target = Target.from_mask(fill(*flatten_rings(truth), H, W), ignore if ignoring else None)
    comparisons = compare([answer_from_rings(answer) for answer in answers], target)
    for answer, comparison in zip(answers, comparisons, strict=True):
        drawn = fill(*flatten_rings(answer), H, W) & ~ignore
        said_empty = float(comparison.status is AnswerStatus.EMPTY)
        assert comparison.boundary_iou == (boundary_iou(drawn, target.mask) if target.area_px else said_empty)


def test_instance_iou_pairs_each_instance_of_the_answer_with_each_of_the_truth() -> None:
    truth = Truth(np.stack([box_mask(0, 0, 4, 4), box_mask(4, 4, 8, 8)]))
    parts = tuple(instance_from_rings([ring]) for ring in (box(4, 4, 8, 6), box(0, 0, 4, 4), box(9, 0, 10, 1)))
    [comparison] = compare([Answer(AnswerStatus.OK, parts)], Target.from_truth(truth))
    assert comparison.instance_iou.tolist() == [[0.0, 0.5], [1.0, 0.0], [0.0, 0.0]]


def test_a_target_knows_its_box_and_which_pixels_are_true() -> None:
    target = Target.from_mask(box_mask(1, 2, 5, 4) | box_mask(7, 2, 8, 7))
    assert target.box_px == (1.0, 2.0, 8.0, 7.0) and NOTHING.box_px is None
    assert [target.contains(x, y) for x, y in ((1.0, 2.0), (4.99, 3.9), (5.0, 3.0), (7.5, 6.9), (-1, 3), (3, 99))] == [
        *(True, True, False, True, False, False)
    ]


def test_a_square_takes_four_vertices_and_an_empty_truth_none() -> None:
    assert Target.from_mask(box_mask(1, 1, 6, 6)).outline_vertices(0.95) == 4
    assert NOTHING.outline_vertices(0.95) == 0


def test_one_comparison_alone_is_the_same_and_can_travel() -> None:
    comparisons = compare([EMPTY, answer_from_rings([box(0, 2, 6, 6)])], NOTHING, "scene/1", "the box")
    [alone] = pickle.loads(pickle.dumps(comparisons.only(1)))
    assert (alone.iou, alone.answer_area_px, alone.example_id, alone.phrase) == (0.0, 24, "scene/1", "the box")


def test_threads_change_nothing() -> None:
    answers = [[box(k % 5, 0, k % 5 + 4, 6)] for k in range(7)]
    target = Target.from_mask(box_mask(0, 0, 6, 4))
    one, three = target.overlap(answers, threads=1), target.overlap(answers, threads=3)
    assert one.iou.tolist() == three.iou.tolist() and one.centroid.tolist() == three.centroid.tolist()


def test_an_image_too_large_for_exact_sums_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 x 32768 pixels; scale it down"):
        Target.from_mask(np.zeros((2, 32768), bool))


@pytest.mark.parametrize("given", [np.full((H, W), 0.4), np.full((H, W), 255, np.uint8), np.full((H, W), "False")])
def test_what_is_no_mask_is_refused_and_not_guessed_at(given: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mask is of .*give a bool mask"):
        Target.from_mask(given)


def test_masks_of_0_and_1_and_the_bytes_of_pycocotools_are_taken() -> None:
    mask = box_mask(1, 2, 5, 4)
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    assert Target.from_mask(mask.astype(np.uint8)).area_px == Target.from_rle(rle, H, W).area_px == 8


def test_a_reward_cannot_write_into_the_mask_that_others_read() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Target.from_mask(box_mask(0, 0, 2, 2)).mask[:] = True
