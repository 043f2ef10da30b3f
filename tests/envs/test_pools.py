"""Pools of candidates: what is in them, which of them a truth means, and the best that a choice can be."""

import numpy as np
import pytest

from envs.codecs.mask_group import Codec, answer_of, choice_of, text_of
from envs.datasets.cutout_scenes import Env
from envs.geometry.contours import mask_from_rings
from envs.geometry.pools import iou, meant, oracle
from envs.polygons import AnswerStatus


def strip(*columns: int) -> np.ndarray:
    """[2, 8] with some columns filled."""
    mask = np.zeros((2, 8), np.bool_)
    mask[:, list(columns)] = True
    return mask


POOL = np.stack([strip(0, 1, 2), strip(0, 1), strip(5, 6), strip(4, 5, 6, 7), strip()])


def test_each_truth_is_meant_by_its_best_candidate_and_none_by_two() -> None:
    assert meant(POOL, strip(0, 1)[None]).tolist() == [False, True, False, False, False]
    # IoUs 2/3 and 1; 3/4 and 2/4: of two that would take 3 the later takes the next best, at just one half.
    assert meant(POOL, np.stack([strip(0, 1, 2), strip(4, 5, 6)])).tolist() == [True, False, False, True, False]
    assert meant(POOL, np.stack([strip(4, 5, 6, 7), strip(4, 5, 6, 7)])).tolist() == [False, False, True, True, False]
    assert not meant(POOL, strip(3)[None]).any() and not meant(POOL, np.zeros((0, 2, 8), np.bool_)).any()


def test_the_oracle_adds_and_leaves_candidates_until_nothing_helps() -> None:
    assert oracle(POOL, strip(0, 1, 5, 6)) == 1.0
    assert oracle(POOL, strip(0, 1, 3)) == pytest.approx(2 / 3) and oracle(POOL, strip(3)) == 0.0
    assert oracle(POOL, strip()) == 1.0 and oracle(POOL[:0], strip(1)) == 0.0
    assert iou(strip(), strip()) == 0.0


def test_a_choice_is_numbers_of_a_count_and_any_other_text_says_none() -> None:
    assert text_of([True, False, True]) == "0 2 of 3" and text_of([False, False]) == "none of 2"
    for chosen in ([True, False, True], [False, False], [True]):
        assert choice_of(text_of(chosen)).tolist() == chosen
    for text in ("2 0 of 3", "0 0 of 3", "3 of 3", "0 2", "of 3", "none", "-1 of 3", "0 of 3 cats", "9999999 of 3"):
        assert choice_of(text) is None


def test_an_answer_covers_the_union_of_its_candidates_each_an_instance() -> None:
    answer = answer_of(np.array([True, True, False, True, True]), POOL)
    assert answer.status is AnswerStatus.OK and len(answer.instances) == 3  # the one without a pixel covers nothing
    assert np.array_equal(mask_from_rings(answer.rings_px, 2, 8), strip(0, 1, 2, 4, 5, 6, 7))
    assert answer_of(np.zeros(5, np.bool_), POOL).status is AnswerStatus.EMPTY
    assert answer_of(np.ones(4, np.bool_), POOL).status is AnswerStatus.UNPARSABLE
    assert answer_of(np.ones(4, np.bool_), None).status is AnswerStatus.UNPARSABLE


def test_composed_pools_hold_all_objects_and_others_that_differ_and_are_the_same_each_time() -> None:
    settings = {"image_size": 48, "candidates": 10, "several_share": 0.4, "max_scale": 0.45}
    env, again = (Env(split="train", **settings) for _ in range(2))
    sizes = []
    for index in range(120):
        scene = env.scene(index)
        pool = scene[0].candidates
        sizes.append(len(pool))
        assert all(np.array_equal(example.candidates, pool) for example in [*scene, env[index], again[index]])
        assert pool.any(axis=(1, 2)).all() and len(pool) <= 10
        truths = [mask for example in scene for mask in example.truth.masks]
        assert all(any(np.array_equal(mask, held) for held in pool) for mask in truths)
        alike = [iou(pool[a], pool[b]) for a in range(len(pool)) for b in range(a)]
        assert max(alike, default=0.0) < 1.0
        for example in scene:
            assert oracle(pool, example.truth.union) == 1.0
            chosen = choice_of(Codec().chosen_text(pool, example.truth.masks))
            union = pool[chosen].any(axis=0) if chosen.any() else np.zeros_like(example.truth.union)
            assert np.array_equal(union, example.truth.union)
    assert set(sizes) >= {4, 7, 10} and len({env[k].candidates[0].sum() for k in range(20)}) > 10
    assert Env(split="train", image_size=48)[0].candidates is None
    assert env.fingerprint != Env(split="train", **settings | {"candidates": 9}).fingerprint


def test_a_pool_too_small_for_the_objects_and_an_example_without_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^env\.candidates is 3; set it to 4 or more"):
        Env(split="train", candidates=3)
    with pytest.raises(ValueError, match=r"^env\.candidates is 5; set it to 6 or more"):
        Env(split="train", candidates=5, max_objects=6)
    for candidates in (None, POOL[:0]):
        with pytest.raises(ValueError, match=r"^codec mask_group needs candidates to choose from"):
            Codec().chosen_text(candidates, POOL[:1])
    with pytest.raises(ValueError, match=r"writes no outlines; give data with candidates"):
        Codec().encode([], 8, 8)
    assert Codec().read("0 of 3", 8, 8).status is AnswerStatus.UNPARSABLE
