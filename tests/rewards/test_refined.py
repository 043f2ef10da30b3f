"""Rewards on the refined mask: hand-computed numbers, a loop over pixels as the oracle, the way into a process."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.geometry.contours import mask_from_rings, rings_from_mask
from envs.plugin import Plugin
from envs.polygons import Answer, AnswerStatus, Ring, answer_from_rings, flat_answers
from envs.ranges import check_ranges
from rewards.score import Comparison, Comparisons, Target, compare
from rewards.scorer import Scorer
from rewards.settings import RewardRecipe
from rewards.terms import mask_iou, refined_iou, unmended
from rewards.terms.base import term

SIZE = 12
EMPTY = Answer(AnswerStatus.EMPTY)
BOTH = (refined_iou.Reward(), unmended.Reward())
coordinates = st.floats(-4, 16).map(lambda x: round(x, 2))
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8).map(np.array)
seeds = st.integers(0, 2**32 - 1)


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


TRUTH = Target.from_rings([box(2, 2, 8, 8)], SIZE, SIZE)
NOTHING = Target.from_rings([], SIZE, SIZE)


def compared(answer: Answer, refined: list[Ring], target: Target = TRUTH) -> Comparison:
    return compare([answer], target, refined=flat_answers([refined]))[0]


def earned(drawn: Ring, refined: Ring) -> tuple[float | None, ...]:
    comparison = compared(answer_from_rings([drawn]), [refined])
    return tuple(term(reward, comparison) for reward in (mask_iou.Reward(), *BOTH))


def test_what_the_refiner_mends_costs_nothing_and_what_it_spoils_is_not_the_outlines_fault() -> None:
    # The outline misses 2 of 6 columns. The refiner adds them, and takes a good one away.
    assert earned(box(2, 2, 6, 8), box(3, 2, 8, 8)) == (24 / 36, 30 / 36, 1.0)


def test_pixels_that_stay_wrong_are_counted_in_truth_and_outside() -> None:
    # Outline: 24 of 36 true pixels and 12 others. Refined: 25 true ones and 5 others, all of which the outline had; of
    # the true pixels the column at 7 and the pixel (6, 2) are in neither. So 7 + 5 stay wrong, over 36 + 5 pixels.
    iou, refined, mended = earned(box(0, 2, 6, 8), box(1, 3, 7, 8))
    assert (iou, refined) == (24 / 48, 25 / 41)
    assert mended == pytest.approx(29 / 41)


def test_an_outline_that_the_refiner_leaves_alone_earns_its_own_iou() -> None:
    iou, refined, mended = earned(box(0, 2, 6, 8), box(0, 2, 6, 8))
    assert iou == refined == 0.5 and mended == pytest.approx(0.5)


def test_drawing_everything_earns_what_the_refined_mask_is_worth_and_nothing_for_the_size_of_the_mistake() -> None:
    # 28 of the 108 wrong pixels stay. Over the 144 pixels drawn that would be a loss of 0.19; it is one of 28 / 64.
    iou, refined, mended = earned(box(0, 0, 12, 12), box(1, 1, 9, 9))
    assert (iou, refined) == (0.25, 36 / 64)
    assert mended == pytest.approx(36 / 64)


@pytest.mark.parametrize("reward", BOTH)
def test_an_empty_truth_pays_for_saying_so_alone_and_an_empty_answer_to_an_object_nothing(reward) -> None:
    assert term(reward, compared(EMPTY, [], NOTHING)) == 1.0
    assert term(reward, compared(answer_from_rings([box(2, 2, 8, 8)]), [], NOTHING)) == 0.0
    assert term(reward, compared(answer_from_rings([box(2, 2, 8, 2)]), [], NOTHING)) == 0.0
    assert term(reward, compared(EMPTY, [])) == 0.0


@pytest.mark.parametrize("reward", BOTH)
@pytest.mark.parametrize("status", [status for status in AnswerStatus if not status.valid])
@pytest.mark.parametrize("target", [TRUTH, NOTHING])
def test_an_invalid_answer_earns_0(reward, status: AnswerStatus, target: Target) -> None:
    assert term(reward, compared(Answer(status), [], target)) == 0.0


@pytest.mark.parametrize("reward", BOTH)
def test_without_a_refiner_there_is_nothing_to_say(reward) -> None:
    [comparison] = compare([answer_from_rings([box(2, 2, 8, 8)])], TRUTH)
    assert (comparison.refined_iou, comparison.unmended, comparison.refined_rings_px) == (None, None, None)
    assert reward(comparison) is None
    with pytest.raises(ValueError, match="weight is -1; set it to 0 or more"):
        check_ranges(type(reward)(weight=-1))


def slowly(target: Target, ignore: NDArray[np.bool_], drawn: NDArray[np.bool_], refined: NDArray[np.bool_]) -> float:
    """What `unmended` says, pixel by pixel: wrong in both, over the pixels that are true or stay wrong."""
    wrong = either = 0
    for i in range(SIZE):
        for j in range(SIZE):
            if ignore[i, j]:
                continue
            true = bool(target.mask[i, j])
            stays = drawn[i, j] != true and refined[i, j] != true
            wrong, either = wrong + stays, either + (true or stays)
    return wrong / either


@settings(max_examples=60)
@given(truth=rings, drawn=st.lists(st.lists(rings, min_size=1, max_size=2), min_size=1, max_size=3), seed=seeds)
def test_a_loop_over_pixels_comes_to_the_same(truth: Ring, drawn: list[list[Ring]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ignore, masks = rng.random((SIZE, SIZE)) < 0.1, rng.random((len(drawn), SIZE, SIZE)) < 0.4
    target = Target.from_mask(mask_from_rings([truth], SIZE, SIZE), ignore)
    answers = [answer_from_rings(shape) for shape in drawn]
    flat = flat_answers([rings_from_mask(mask) for mask in masks])
    for comparison, shape, mask in zip(compare(answers, target, refined=flat), drawn, masks, strict=True):
        if not target.area_px:
            assert (comparison.refined_iou, comparison.unmended) == (0.0, 1.0)
            continue
        assert comparison.unmended == slowly(target, ignore, mask_from_rings(shape, SIZE, SIZE), mask)
        counted = mask & ~ignore
        assert comparison.refined_iou == (counted & target.mask).sum() / (counted | target.mask).sum()
        rings_px = comparison.refined_rings_px
        assert rings_px is not None and (mask_from_rings(rings_px, SIZE, SIZE) == mask).all()


@settings(max_examples=60)
@given(truth=rings, drawn=rings, seed=seeds)
def test_what_cannot_be_mended_is_never_more_than_what_is_wrong_before_or_after(
    truth: Ring, drawn: Ring, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((SIZE, SIZE)) < 0.4
    comparison = compared(answer_from_rings([drawn]), rings_from_mask(mask), Target.from_rings([truth], SIZE, SIZE))
    iou, refined, mended = (term(reward, comparison) for reward in (mask_iou.Reward(), *BOTH))
    assert iou is not None and refined is not None and mended is not None
    assert 1 >= mended >= max(iou, refined) - 1e-12


def group() -> Comparisons:
    answers = [answer_from_rings([box(2, 2, 6, 8)]), Answer(AnswerStatus.TRUNCATED), EMPTY]
    answers.append(answer_from_rings([box(0, 2, 6, 8)]))
    refined = [[box(3, 2, 8, 8)], [], [], [box(1, 3, 7, 8)]]
    return compare(answers, TRUTH, "an-example", "the box", flat_answers(refined))


def test_one_answer_of_a_group_takes_its_refined_mask_along() -> None:
    for k, comparison in enumerate(group()):
        alone = pickle.loads(pickle.dumps(group().only(k)))[0]
        assert (alone.refined_iou, alone.unmended) == (comparison.refined_iou, comparison.unmended)


def test_a_refined_mask_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="2 refined masks for 1 answers"):
        compare([EMPTY], TRUTH, refined=flat_answers([[], []]))


def test_a_reward_in_a_process_of_its_own_sees_the_refined_mask(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Reward:\n    needs_refined = True\n"
        "    weight: float = 1.0\n\n    def __call__(self, comparison):\n        return comparison.refined_iou\n"
    )
    recipes = {
        "refined_iou": RewardRecipe(Plugin("rewards.terms", "Reward", "refined_iou", {})),
        "unmended": RewardRecipe(Plugin("rewards.terms", "Reward", "unmended", {})),
        "own": RewardRecipe(Plugin("rewards.terms", "Reward", "own", {}, str(own)), processes=1),
    }
    assert [recipe.needs_refined for recipe in recipes.values()] == [True, True, True]
    assert not RewardRecipe(Plugin("rewards.terms", "Reward", "mask_iou", {})).needs_refined
    scorer = Scorer(recipes)
    try:
        columns = scorer.columns(group())
    finally:
        scorer.close()
    assert columns["refined_iou"] == columns["own"] == [30 / 36, 0.0, 0.0, 25 / 41]
    assert columns["unmended"] == pytest.approx([1.0, 0.0, 0.0, 29 / 41])
