import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_run import RESPONSE, group_of
from rich.console import Console

from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.polygons import Answer, AnswerStatus, flat_answers, instance_from_rings
from policies.heads.base import Unrolled
from rewards.score import Target, compare
from rewards.terms import boundary_iou, mask_iou, refined_iou
from rewards.terms.base import term
from rl.evaluation.answers import score_groups, score_masks
from rl.evaluation.scores import (
    NUM_RESAMPLES,
    Interval,
    SceneScore,
    by_part,
    paired_difference,
    pool_oracle,
    resample_indices,
    score_answer,
    score_mask,
    stage_table,
    summarise,
    summary_dict,
)
from rl.refiner.data import PixelPair
from rl.refiner.scenes import pass_scores
from rl.refiner.scores import score_unrolled
from rollout.records import Group, Rollout


def rectangle(x0: int, y0: int, x1: int, y1: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((size, size), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def truth_of(*masks: np.ndarray, ignore: np.ndarray | None = None) -> Truth:
    return Truth(np.array(masks, np.bool_).reshape(-1, 10, 10), ignore)


def scene(name: str, intersection_px: int, union_px: int, status: AnswerStatus = AnswerStatus.OK) -> SceneScore:
    iou = intersection_px / union_px if union_px else 1.0
    return SceneScore(name, iou, intersection_px, union_px, iou / 2, status.valid, status)


def random_scenes(num: int, seed: int, shift: float = 0.0) -> list[SceneScore]:
    generator = np.random.default_rng(seed)
    union_px = generator.integers(50, 500, num)
    share = np.clip(generator.beta(2, 2, num) + shift, 0, 1)
    return [scene(f"s{i}", int(u * s), int(u)) for i, (u, s) in enumerate(zip(union_px, share, strict=True))]


def test_rectangle_shifted_by_half_scores_one_third():
    score = score_mask(rectangle(2, 0, 6, 4), truth_of(rectangle(0, 0, 4, 4)), AnswerStatus.OK, "a")
    assert (score.intersection_px, score.union_px, score.iou) == (8, 24, 1 / 3)


def test_perfect_mask_scores_one_on_iou_and_boundary():
    score = score_mask(rectangle(1, 1, 8, 8), truth_of(rectangle(1, 1, 8, 8)), AnswerStatus.OK, "a")
    assert (score.iou, score.boundary_iou, score.valid) == (1.0, 1.0, True)


def test_boundary_iou_of_a_square_without_its_core_counts_the_band_alone():
    # The diagonal is 14.1 px, so the band is 1 px: the truth's has 36 - 16 = 20 px, all in the answer's band of 32 px.
    answer = rectangle(0, 0, 6, 6) & ~rectangle(2, 2, 4, 4)
    score = score_mask(answer, truth_of(rectangle(0, 0, 6, 6)), AnswerStatus.OK, "a")
    assert score.iou == 32 / 36
    assert score.boundary_iou == 20 / 32


def test_two_instances_are_scored_as_their_union():
    truth = truth_of(rectangle(0, 0, 2, 2), rectangle(6, 6, 8, 8))
    assert score_mask(rectangle(0, 0, 2, 2), truth, AnswerStatus.OK, "a").iou == 0.5


def test_empty_answer_on_empty_truth_scores_one():
    score = score_mask(rectangle(0, 0, 0, 0), truth_of(), AnswerStatus.EMPTY, "a")
    assert (score.iou, score.union_px, score.boundary_iou, score.valid) == (1.0, 0, 1.0, True)


def test_area_on_empty_truth_scores_zero():
    assert score_mask(rectangle(0, 0, 1, 1), truth_of(), AnswerStatus.OK, "a").iou == 0.0


SLIVER = np.array([[2.6, 2.6], [2.9, 2.6], [2.9, 2.9]])


@pytest.mark.parametrize(
    "truth",
    [truth_of(), truth_of(rectangle(0, 0, 0, 0)), truth_of(rectangle(1, 1, 4, 4), ignore=rectangle(0, 0, 9, 9))],
    ids=["no instance", "an instance without a pixel", "every pixel ignored"],
)
def test_where_no_true_pixel_counts_only_the_answer_empty_is_right(truth):
    thin = Answer(AnswerStatus.OK, (instance_from_rings([SLIVER]),))
    assert not mask_from_rings([SLIVER], 10, 10).any()
    found = score_answer(thin, truth, "a")
    assert (found.iou, found.boundary_iou, found.union_px, found.valid) == (0.0, 0.0, 0, True)
    emptied = score_mask(rectangle(0, 0, 0, 0), truth, AnswerStatus.OK, "a")
    assert (emptied.iou, emptied.boundary_iou) == (0.0, 0.0)
    said = score_answer(Answer(AnswerStatus.EMPTY), truth, "a")
    assert (said.iou, said.boundary_iou) == (1.0, 1.0)
    [thin_reward, said_reward] = compare([thin, Answer(AnswerStatus.EMPTY)], Target.from_truth(truth)).iou
    assert (thin_reward, said_reward) == (0.0, 1.0)


def test_an_outline_that_covers_only_what_is_ignored_beside_a_truth_that_counts_misses_it():
    truth = truth_of(rectangle(0, 0, 2, 2), ignore=rectangle(4, 4, 8, 8))
    drawn = Answer(AnswerStatus.OK, (instance_from_rings(rings_from_mask(rectangle(4, 4, 8, 8))),))
    assert score_answer(drawn, truth, "a").iou == 0.0
    assert (score_answer(drawn, truth, "a").union_px, score_answer(drawn, truth, "a").valid) == (4, True)


MASKS = arrays(np.bool_, (10, 10), elements=st.booleans())
QUARTERS = st.integers(-8, 48).map(lambda quarter: quarter / 4)
RINGS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=3, max_size=6).map(lambda points: np.array(points, float))
ANSWERS = st.one_of(
    st.lists(st.lists(RINGS, min_size=1, max_size=2), min_size=1, max_size=2).map(
        lambda instances: Answer(AnswerStatus.OK, tuple(map(instance_from_rings, instances)))
    ),
    st.sampled_from([Answer(status) for status in AnswerStatus if status is not AnswerStatus.OK]),
)


def asked(truth: Truth, answer: Answer) -> Group:
    """A group of one answer."""
    example = Example("a", ImageRef("", "0" * 64, 10, 10), Prompt.of_text("it"), truth, "test", "", "")
    return group_of("run", 0, 0, example, (Rollout(0, RESPONSE, "", answer, 0, 0, 0.0, {}, 0, 0),))


def by_pixels(mask: np.ndarray, truth: Truth, status: AnswerStatus) -> float:
    """The rule, pixel by pixel."""
    counted = np.ones((10, 10), np.bool_) if truth.ignore is None else ~truth.ignore
    true, drawn = truth.union & counted, mask & counted
    if not status.valid:
        return 0.0
    return (drawn & true).sum() / (drawn | true).sum() if true.any() else float(status is AnswerStatus.EMPTY)


@given(
    masks=st.lists(st.one_of(MASKS, st.just(rectangle(0, 0, 0, 0))), max_size=3),
    ignore=st.one_of(st.none(), MASKS, st.just(rectangle(0, 0, 10, 10))),
    answer=ANSWERS,
    refined=MASKS,
)
@settings(max_examples=300, deadline=None)
def test_rewards_evaluation_and_refiner_scores_agree_to_the_last_bit(masks, ignore, answer, refined):
    truth, status = truth_of(*masks, ignore=ignore), answer.status
    drawn = mask_from_rings(answer.rings_px, 10, 10)
    refined &= drawn.any()  # nothing refines what has no pixel
    exact = flat_answers([rings_from_mask(refined)])
    [seen] = compare([answer], Target.from_truth(truth), refined=exact)
    group, expected = asked(truth, answer), by_pixels(drawn, truth, status)
    unrolled = Unrolled(
        torch.from_numpy(np.array([[drawn], [refined]])), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1)
    )
    by_refiner = score_unrolled(unrolled, 0.0, [truth], [status])
    whole = [
        seen.iou,
        term(mask_iou.Reward(), seen),
        score_answer(answer, truth, "a").iou,
        score_mask(drawn, truth, status, "a").iou,
        score_groups([group])[0].iou,
        score_masks([drawn], [group])[0].iou,
        by_refiner.coarse_iou[0],
    ]
    assert whole == [expected] * len(whole)
    bands = term(boundary_iou.Reward(capped=False), seen)
    assert bands == score_groups([group])[0].boundary_iou == by_refiner.coarse_boundary_iou[0]
    mended = by_pixels(refined, truth, status)
    assert term(refined_iou.Reward(), seen) == score_masks([refined], [group])[0].iou == mended
    if status is AnswerStatus.OK:
        counted = np.ones((10, 10), np.bool_) if ignore is None else ~ignore
        pair = PixelPair(np.zeros((10, 10, 3), np.uint8), drawn, truth.union, counted)
        assert pass_scores(np.array([drawn, refined]), pair)[0].tolist() == [expected, mended]
        assert by_refiner.refined_iou[0] == mended


@pytest.mark.parametrize("status", [status for status in AnswerStatus if not status.valid])
def test_invalid_status_scores_zero_over_the_true_area_whatever_the_mask(status):
    score = score_mask(rectangle(0, 0, 4, 4), truth_of(rectangle(0, 0, 4, 4)), status, "a")
    assert (score.iou, score.intersection_px, score.union_px, score.boundary_iou, score.valid) == (
        0.0,
        0,
        16,
        0.0,
        False,
    )
    assert score_mask(rectangle(0, 0, 0, 0), truth_of(), status, "a").iou == 0.0


def test_ignored_pixels_count_neither_as_hit_nor_as_miss():
    truth = truth_of(rectangle(0, 0, 4, 4), ignore=rectangle(2, 0, 10, 10))
    score = score_mask(rectangle(0, 0, 9, 4), truth, AnswerStatus.OK, "a")
    assert (score.intersection_px, score.union_px, score.iou, score.boundary_iou) == (8, 8, 1.0, 1.0)
    invalid = score_mask(rectangle(0, 0, 9, 4), truth, AnswerStatus.UNPARSABLE, "a")
    assert invalid.union_px == 8


def test_summary_of_three_scenes_by_hand():
    scenes = [scene("a", 10, 10), scene("b", 25, 50), scene("c", 0, 40, AnswerStatus.TRUNCATED)]
    scores = summarise(scenes)
    assert scores.giou.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.ciou.value == pytest.approx(35 / 100)
    assert scores.acc50.value == pytest.approx(2 / 3)
    assert scores.boundary_iou.value == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert scores.valid.value == pytest.approx(2 / 3)


def test_ciou_of_scenes_without_any_pixel_is_their_mean_iou():
    assert summarise([scene("a", 0, 0, AnswerStatus.EMPTY)] * 3).ciou == Interval(1.0, 1.0, 1.0)


def test_interval_equals_a_slow_loop_over_the_same_resamples():
    scenes = random_scenes(23, seed=1)
    giou, ciou = [], []
    for row in resample_indices(23, seed=4):
        chosen = [scenes[i] for i in row]
        giou.append(sum(one.iou for one in chosen) / 23)
        ciou.append(sum(one.intersection_px for one in chosen) / sum(one.union_px for one in chosen))
    scores = summarise(scenes, seed=4)
    assert len(giou) == NUM_RESAMPLES == 2000
    assert (scores.giou.low, scores.giou.high) == pytest.approx(tuple(np.percentile(giou, [2.5, 97.5])))
    assert (scores.ciou.low, scores.ciou.high) == pytest.approx(tuple(np.percentile(ciou, [2.5, 97.5])))


def test_interval_covers_the_true_mean_in_about_95_of_100_samples():
    covered = 0
    for seed in range(200):
        giou = summarise(random_scenes(60, seed=seed)).giou
        covered += giou.low <= 0.4975 <= giou.high  # Beta(2, 2) has mean 0.5; whole pixels take some 0.0025 of it
    assert 180 <= covered <= 199


def test_interval_is_as_wide_as_the_standard_error_says():
    scenes = random_scenes(500, seed=2)
    giou = summarise(scenes).giou
    standard_error = np.std([one.iou for one in scenes]) / np.sqrt(500)
    assert giou.high - giou.low == pytest.approx(2 * 1.96 * standard_error, rel=0.06)


def test_summary_repeats_by_seed():
    scenes = random_scenes(30, seed=3)
    assert summarise(scenes, seed=1) == summarise(scenes, seed=1)
    assert summarise(scenes, seed=1) != summarise(scenes, seed=2)


def test_summary_of_no_scene_is_refused():
    with pytest.raises(ValueError, match="at least one scene"):
        summarise([])


def test_paired_difference_is_the_mean_gain_and_narrower_than_two_separate_intervals():
    before = random_scenes(200, seed=5)
    after = [scene(one.example_id, one.intersection_px + one.union_px // 20, one.union_px + 30) for one in before]
    gain = paired_difference(before, after)
    assert gain.value == pytest.approx(np.mean([b.iou - a.iou for a, b in zip(before, after, strict=True)]))
    separate = summarise(after).giou.high - summarise(before).giou.low
    apart = summarise(after).giou.low - summarise(before).giou.high
    assert gain.high - gain.low < 0.25 * (separate - apart)
    assert gain.low <= gain.value <= gain.high


def test_paired_difference_of_a_stage_with_itself_is_exactly_zero():
    scenes = random_scenes(20, seed=6)
    assert paired_difference(scenes, scenes) == Interval(0.0, 0.0, 0.0)


def test_paired_difference_of_other_scenes_is_refused_by_name():
    scenes = random_scenes(3, seed=7)
    with pytest.raises(ValueError, match="'s0' meets 's1'"):
        paired_difference(scenes[:1], scenes[1:2])
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference(scenes, scenes[:2])


def test_table_fits_eighty_columns_and_shows_value_and_interval():
    stages = {
        name: summarise(random_scenes(50, seed=8, shift=0.1 * k)) for k, name in enumerate(["sft", "rl", "refined"])
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(stage_table(stages))
    text = console.export_text()
    assert all(str(stage.giou) in text for stage in stages.values())
    assert max(len(line) for line in text.splitlines()) <= 80


def test_of_four_stages_every_name_and_number_is_whole_on_eighty_columns():
    names = ["sft", "control", "rl", "refined"]
    stages = {name: summarise(random_scenes(50, seed=8, shift=0.1 * k)) for k, name in enumerate(names)}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(stage_table(stages))
    text = console.export_text()
    for scores in stages.values():
        value, interval = str(scores.giou).split(" ", 1)
        assert value in text and interval in text
    assert "SFT, as long" in text and "boundary" in text and "…" not in text


def test_summary_json_has_the_promised_keys_and_plain_numbers():
    scenes = random_scenes(40, seed=9)
    stages = {name: summarise(scenes) for name in ("sft", "rl", "refined")}
    paired = {name: Interval(0.06, 0.04, 0.08) for name in ("rl_minus_sft", "refined_minus_rl")}
    summary = json.loads(json.dumps(summary_dict(stages, paired, 40, 812.5, 5.5, {"seed": 3})))
    assert set(summary) == {"stages", "paired", "num_scenes", "seconds", "peak_rss_gib", "seed"}
    assert set(summary["stages"]["sft"]) == {"giou", "ciou", "acc50", "boundary_iou", "valid", "intervals"}
    assert summary["stages"]["rl"]["giou"] == stages["rl"].giou.value
    assert summary["stages"]["rl"]["intervals"]["ciou"] == {
        "low": stages["rl"].ciou.low,
        "high": stages["rl"].ciou.high,
    }
    assert summary["paired"]["rl_minus_sft"] == {"giou": 0.06, "low": 0.04, "high": 0.08}


def test_summary_extras_cannot_overwrite_a_promised_key():
    with pytest.raises(ValueError, match="seconds"):
        summary_dict({}, {}, 0, 0.0, 0.0, {"seconds": 1})


def test_scores_of_a_mixture_are_told_by_part_and_those_of_one_data_set_have_none() -> None:
    scenes = [scene("many::a", 2, 2), scene("few::b", 1, 2), scene("many::c", 0, 2)]
    assert {part: [one.iou for one in of] for part, of in by_part(scenes).items()} == {"few": [0.5], "many": [1.0, 0.0]}
    assert by_part([scene("alone/1", 2, 2)]) == {}


def test_the_best_choice_of_pools_is_told_of_examples_that_have_some() -> None:
    strips = np.zeros((3, 2, 6), np.bool_)
    for k in range(3):
        strips[k, :, 2 * k : 2 * k + 2] = True
    image = ImageRef("a", "0" * 64, 2, 6)

    def example(truth: np.ndarray, candidates: np.ndarray | None) -> Example:
        return Example("a", image, Prompt.of_text("it"), Truth(truth), "test", "made", "CC0-1.0", candidates)

    # The first two strips are had exactly; of all three the pool has two; what is not there need not be chosen.
    pools = [example(strips[:2], strips), example(strips, strips[:2]), example(strips[:0], strips[:1])]
    found = pool_oracle([*pools, example(strips, None)])
    assert found is not None and found.value == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert pool_oracle([example(strips, None)]) is None
