"""Pixels, scores and intervals against second implementations, and what holds for all answers."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from envs.geometry.contours import rings_from_mask
from envs.geometry.rle import rle_from_mask, runs_from_rle
from envs.geometry.spans import spans_from_mask
from envs.polygons import Answer, AnswerStatus, Ring, answer_from_rings
from rewards.kernels import cores, judging
from rewards.kernels.bands import eroded, span_sums
from rewards.kernels.overlap import boundary_iou
from rl.evaluation.protocols.base import CodedTruth, Judged, protocol_named, protocol_names
from rl.evaluation.protocols.rec import box_iou
from rl.evaluation.scores import mean_interval

OK = AnswerStatus.OK


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of a few overlapping rectangles, now and then with a hole, or of noise."""
    mask = np.zeros((height, width), np.bool_)
    for value in rng.random(rng.integers(1, 5)) < 0.8:
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[y0:y1, x0:x1] = value
    return mask if rng.random() < 0.8 else rng.random((height, width)) < 0.4


def coco_iou(drawn: np.ndarray, true: np.ndarray) -> float:
    codes = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in (drawn, true)]
    return float(coco_mask.iou(codes[:1], codes[1:], [0])[0, 0])


def drawn_and_true(num: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(1, 60)), int(rng.integers(1, 60))) for _ in range(num)]
    return [(blob(rng, *size), blob(rng, *size)) for size in sizes]


def coded(k: int, mask: np.ndarray) -> CodedTruth:
    return CodedTruth(f"{k}", *mask.shape, (rle_from_mask(mask),))


def test_masks_and_their_outlines_have_the_iou_of_pycocotools_and_the_boundary_iou_of_the_rewards() -> None:
    pairs, protocol = drawn_and_true(700, 0), protocol_named("res")  # more than are judged in one call
    truths = [coded(k, true) for k, (_, true) in enumerate(pairs)]
    of_masks = protocol.judge_masks([rle_from_mask(drawn) for drawn, _ in pairs], [OK] * len(pairs), truths)
    of_rings = protocol.judge([Answer(OK, answer_from_rings(rings_from_mask(d)).instances) for d, _ in pairs], truths)
    assert of_masks == of_rings
    for found, (drawn, true) in zip(of_masks, pairs, strict=True):
        assert found.iou == coco_iou(drawn, true)
        assert (found.true_px, found.drawn_px) == (true.sum(), drawn.sum())
        assert (found.shared_px, found.union_px) == ((drawn & true).sum(), (drawn | true).sum())
        assert found.boundary_iou == (boundary_iou(drawn, true) if true.any() else found.iou)


def test_boundary_iou_and_tight_boxes_are_those_of_faster_coco_eval() -> None:
    faster = pytest.importorskip("faster_coco_eval.core.mask")
    rng = np.random.default_rng(7)
    for k in range(200):
        size = (
            int(rng.integers(20, 60)),
            int(rng.integers(20, 60)),
        )  # in thin strips it misses pixels
        drawn, true = blob(rng, *size), blob(rng, *size)
        if not true.any():
            continue
        codes = [{"size": list(m.shape), "counts": rle_from_mask(m).encode()} for m in (drawn, true)]
        bands = [faster.rleToBoundary(code, dilation_ratio=0.02) for code in codes]
        [[band_iou]] = faster.iou(bands[:1], bands[1:], [0])
        truth = coded(k, true)
        [found] = protocol_named("boundary").judge_masks([codes[0]["counts"].decode()], [OK], [truth])
        assert found.boundary_iou == pytest.approx(band_iou, abs=1e-12)
        boxes = [(x, y, x + width, y + height) for x, y, width, height in map(faster.toBbox, codes)]
        [found] = protocol_named("rec").judge_masks([codes[0]["counts"].decode()], [OK], [truth])
        assert found.box_iou == pytest.approx(box_iou(*boxes), abs=1e-12)


def test_texts_of_pycocotools_are_read_as_its_own_decoder_reads_them() -> None:
    for k, (drawn, true) in enumerate(drawn_and_true(50, 1)):
        codes = [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in (drawn, true)]
        truth = CodedTruth(f"{k}", *true.shape, (codes[1],))
        [found] = protocol_named("res").judge_masks(codes[:1], [OK], [truth])
        assert (found.drawn_px, found.true_px, found.shared_px) == (drawn.sum(), true.sum(), (drawn & true).sum())


def test_several_instances_and_ignored_pixels_are_counted_as_on_bitmaps() -> None:
    rng, protocol = np.random.default_rng(2), protocol_named("reasonseg")
    for _ in range(100):
        size = int(rng.integers(1, 40)), int(rng.integers(1, 40))
        drawn, first, second, ignore = (blob(rng, *size) for _ in range(4))
        truth = CodedTruth("a", *size, (rle_from_mask(first), rle_from_mask(second)), rle_from_mask(ignore))
        [found] = protocol.judge_masks([rle_from_mask(drawn)], [OK], [truth])
        true, counted = (first | second) & ~ignore, drawn & ~ignore
        assert (found.true_px, found.drawn_px) == (true.sum(), counted.sum())
        assert found.union_px == (true | counted).sum()
        assert found.iou == (coco_iou(counted, true) if found.union_px else 1.0)


def test_a_photo_is_stretched_as_by_indexing_its_pixels_under_the_new_centres() -> None:
    protocol = protocol_named("res/lavt")
    for k, (drawn, true) in enumerate(drawn_and_true(20, 3)):
        places = [((np.arange(480) + 0.5) * length / 480).astype(int) for length in true.shape]
        large, large_true = (mask[np.ix_(*places)] for mask in (drawn, true))
        [found] = protocol.judge_masks([rle_from_mask(drawn)], [OK], [coded(k, true)])
        assert (found.drawn_px, found.shared_px) == (large.sum(), (large & large_true).sum())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_run_lengths_become_spans_and_cores_as_bitmaps_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, band_px = blob(rng, int(rng.integers(1, 40)), int(rng.integers(1, 40))), int(rng.integers(1, 7))
    height, width = mask.shape
    spans, expected = (
        judging.spans_from_runs(runs_from_rle(rle_from_mask(mask), height, width), height),
        spans_from_mask(mask),
    )
    assert all(np.array_equal(found, wanted) for found, wanted in zip(spans, expected, strict=True))
    (core, core_px), expected = cores.core(expected, band_px), eroded(expected, width, band_px)
    assert all(np.array_equal(found, wanted) for found, wanted in zip(core, expected, strict=True))
    assert core_px == span_sums(expected)[0]


def test_a_row_of_many_spans_between_whole_ones_leaves_its_gaps_in_all_rows_around() -> None:
    mask = np.ones((40, 600), np.bool_)
    mask[20, 7::9] = False
    spans = spans_from_mask(mask)
    found, wanted = cores.core(spans, 3), eroded(spans, 600, 3)
    assert all(np.array_equal(one, other) for one, other in zip(found[0], wanted, strict=True))
    assert found[1] == span_sums(wanted)[0] == 27 * 594 + 7 * (1 + 65 * 2 + 1)


def test_sentences_about_one_object_are_judged_as_they_are_one_by_one() -> None:
    rng, protocol = np.random.default_rng(4), protocol_named("res")
    masks = [blob(rng, 20, 30) for _ in range(4)]
    true = [masks[k] for k in (0, 0, 0, 1, 1, 0, 2, 2)]
    truths = [CodedTruth(f"{k}", 20, 30, (rle_from_mask(mask),)) for k, mask in enumerate(true)]
    truths[4] = CodedTruth("4", 20, 30, truths[4].instances, rle_from_mask(masks[3]))
    drawn = [rle_from_mask(blob(rng, 20, 30)) for _ in true]
    together = protocol.judge_masks(drawn, [OK] * len(true), truths)
    assert together == [protocol.judge_masks([rle], [OK], [t])[0] for rle, t in zip(drawn, truths, strict=True)]


def script_scores(rings: list[list[Ring]], truths: list[np.ndarray]) -> dict[str, float]:
    ious, shared_px, union_px = [], 0, 0
    for drawn, true in zip(rings, truths, strict=True):
        height, width = true.shape
        parts = coco_mask.frPyObjects([ring.ravel().tolist() for ring in drawn], height, width)
        mask = coco_mask.decode(coco_mask.merge(parts)).astype(bool)
        ious.append((mask & true).sum() / (mask | true).sum())
        shared_px, union_px = shared_px + int((mask & true).sum()), union_px + int((mask | true).sum())
    return {"cIoU": shared_px / union_px, "mIoU": float(np.mean(ious)), "P@0.5": float(np.mean(np.array(ious) >= 0.5))}


def test_outlines_along_pixel_edges_score_just_what_a_pycocotools_script_gives() -> None:
    rng = np.random.default_rng(5)
    made = [(rectangle_pair(rng), rectangle_pair(rng)) for _ in range(200)]
    rings, truths = [rings_from_mask(drawn) for drawn, _ in made], [true for _, true in made]
    protocol = protocol_named("res")
    found = protocol.scores(
        protocol.judge([answer_from_rings(each) for each in rings], [coded(k, t) for k, t in enumerate(truths)])
    )
    for title, value in script_scores(rings, truths).items():
        assert found[title] == pytest.approx(value, abs=1e-15)


def rectangle_pair(rng: np.random.Generator) -> np.ndarray:
    """Two overlapping rectangles: one outline without a hole."""
    mask = np.zeros((40, 50), np.bool_)
    x, y = rng.integers(5, 20, 2)
    mask[y : y + 10, x : x + 12] = mask[y + 3 : y + 15, x + 4 : x + 25] = True
    return mask


@st.composite
def answers_and_truths(draw: Callable) -> tuple[list[str], list[AnswerStatus], list[CodedTruth]]:
    """Masks in one row of 64 pixels; statuses of any kind."""

    def row(first: int, num: int) -> str:
        return rle_from_mask((np.arange(64) >= first)[None] & (np.arange(64) < first + num)[None])

    masks, statuses, truths = [], [], []
    for k in range(draw(st.integers(1, 12))):
        masks.append(row(draw(st.integers(0, 30)), draw(st.integers(0, 40))))
        statuses.append(draw(st.sampled_from(list(AnswerStatus))))
        instances = tuple(row(0, draw(st.integers(0, 40))) for _ in range(draw(st.integers(0, 2))))
        ignore = draw(st.none() | st.builds(row, st.integers(0, 60), st.integers(0, 40)))
        truths.append(CodedTruth(f"{k}", 1, 64, instances, ignore))
    return masks, statuses, truths


@pytest.mark.parametrize("name", [name for name in protocol_names() if not protocol_named(name).side_px])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_lie_in_0_to_1_and_do_not_depend_on_the_order_of_answers(name: str, data: st.DataObject) -> None:
    protocol, (masks, statuses, truths) = protocol_named(name), data.draw(answers_and_truths())
    judged = protocol.judge_masks(masks, statuses, truths)
    scores = protocol.scores(judged)
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    for row in judged:
        assert 0.0 <= row.iou <= 1.0 and 0.0 <= row.boundary_iou <= 1.0 and 0 <= row.shared_px <= row.union_px
    assert protocol.scores(data.draw(st.permutations(judged))) == scores


def test_intervals_are_those_of_resampled_means() -> None:
    rng, protocol = np.random.default_rng(6), protocol_named("res")
    ious = rng.random(50)
    judged = [Judged(f"{k}", OK, False, False, 10, 10, 5, 10, iou, iou) for k, iou in enumerate(ious.tolist())]
    found, expected = protocol.resampled(judged, seed=3), mean_interval(ious, seed=3)
    assert found["mIoU"].numbers == pytest.approx(expected.numbers, abs=1e-12)
    assert found["cIoU"].numbers == (0.5, 0.5, 0.5)


def test_a_resample_without_a_sentence_that_counts_says_nothing_about_its_score() -> None:
    protocol = protocol_named("gres")
    judged = [Judged(f"{k}", OK, k > 0, True, 0, 0, 0, 0, 1.0, 1.0) for k in range(3)]
    assert protocol.resampled(judged)["gIoU, targeted"].numbers == (1.0, 1.0, 1.0)
