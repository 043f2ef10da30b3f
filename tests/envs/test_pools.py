"""Pools of candidates: what is in them, which of them a truth means, and the best that a choice can be."""

import numpy as np
import pytest

from envs.codecs.mask_group import Codec, answer_of, choice_of, text_of
from envs.datasets._pool import Segmenter
from envs.datasets.cutout_scenes import Env
from envs.geometry.contours import mask_from_rings
from envs.geometry.masks import iou
from envs.geometry.pools import PoolRule, best_choice, kept_masks, meant, oracle, pairwise_iou
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
    assert not meant(POOL, strip()[None]).any()  # though the pool has one without a pixel
    assert not meant(POOL, strip(3)[None]).any() and not meant(POOL, np.zeros((0, 2, 8), np.bool_)).any()


def test_the_oracle_adds_and_leaves_candidates_until_nothing_helps() -> None:
    assert oracle(POOL, strip(0, 1, 5, 6)) == 1.0
    assert oracle(POOL, strip(0, 1, 3)) == pytest.approx(2 / 3) and oracle(POOL, strip(3)) == 0.0
    assert oracle(POOL, strip()) == 1.0 and oracle(POOL[:0], strip(1)) == 0.0


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


def grown_by_hand(mask: np.ndarray, by: int) -> np.ndarray:
    """Pixel by pixel: one with a neighbour along an axis joins, one without some neighbour leaves; outside is none."""
    for _ in range(abs(by)):
        framed = np.pad(mask, 1)
        beside = np.stack([framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]])
        mask = mask | beside.any(axis=0) if by > 0 else mask & beside.all(axis=0)
    return mask


def test_a_segmenters_mask_is_the_object_grown_or_shrunk_and_moved() -> None:
    mask = np.zeros((14, 12), np.bool_)
    mask[3:9, 2:8], mask[4, 3] = True, False
    possible = {}
    for by in range(-2, 3):
        for down in range(-2, 3):
            for right in range(-2, 3):
                framed = np.pad(grown_by_hand(mask, by), 4)
                moved = np.roll(framed, (down, right), (0, 1))[4:-4, 4:-4]
                possible[moved.tobytes()] = (by, down, right)
    segmenter, seen = Segmenter(off_px=2), set()
    for seed in range(300):
        [found] = segmenter.found(mask[None], np.random.default_rng(seed))
        assert found.any() and found.tobytes() in possible
        seen.add(possible[found.tobytes()])
    assert {by for by, _, _ in seen} >= {-1, 0, 1, 2} and len(seen) > 60
    # What shrinks to nothing stays itself.
    speck = np.zeros((1, 9, 9), np.bool_)
    speck[0, 4, 4] = True
    assert all(Segmenter(off_px=1).found(speck, np.random.default_rng(k))[0].sum() in (1, 5) for k in range(20))


def test_a_pool_lacks_the_share_of_objects_that_it_is_told_to_and_never_all() -> None:
    masks = np.zeros((4, 8, 8), np.bool_)
    for k in range(4):
        masks[k, 2 * k, :] = True
    counts = [len(Segmenter(missing=0.5).found(masks, np.random.default_rng(seed))) for seed in range(2000)]
    # Binomial of 4 and 1/2, but that none becomes one: a mean of 2 + 1/16.
    assert min(counts) == 1 and np.mean(counts) == pytest.approx(2 + 1 / 16, abs=0.08)
    assert all(len(Segmenter(missing=1.0).found(masks, np.random.default_rng(seed))) == 1 for seed in range(20))


def test_the_best_choice_from_a_segmenters_pool_falls_short_of_the_truth() -> None:
    exact, off, lacking = (
        Env("train", candidates=12, max_scale=0.45, **settings)
        for settings in ({}, {"candidates_off_px": 2}, {"candidates_missing": 0.4})
    )
    means = []
    for env in (exact, off, lacking):
        examples = [env[index] for index in range(60)]
        assert all(example.candidates.any(axis=(1, 2)).all() for example in examples)
        assert all(len(example.candidates) <= 12 for example in examples)
        means.append(float(np.mean([oracle(example.candidates, example.truth.union) for example in examples])))
    assert means[0] == 1.0 and 0.6 < means[1] < 0.9 and 0.5 < means[2] < 0.95, means
    # The scenes, their questions and truths are the same.
    assert [off[k].id for k in range(20)] == [exact[k].id for k in range(20)]
    assert len({exact.fingerprint, off.fingerprint, lacking.fingerprint}) == 3
    with pytest.raises(ValueError, match=r"^env\.candidates is None, env\.candidates_off_px 2, .*; set candidates_off"):
        Env("train", candidates_off_px=2)
    with pytest.raises(ValueError, match=r"^env\.candidates_missing is 1\.2; a share is 0 to 1"):
        Env("train", candidates=8, candidates_missing=1.2)


def slow_oracle(candidates: np.ndarray, union: np.ndarray) -> float:
    """The same walk, every choice made of whole masks."""
    chosen, best = [False] * len(candidates), 0.0
    while True:
        tried = []
        for k in range(len(candidates)):
            other = [on != (place == k) for place, on in enumerate(chosen)]
            tried.append(iou(candidates[other].any(axis=0), union))
        if max(tried) <= best:
            return best
        best = max(tried)
        chosen[tried.index(best)] ^= True


def test_the_oracle_is_that_of_whole_masks_and_its_choice_reaches_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pool, union = rng.random((rng.integers(1, 8), 6, 7)) < rng.random(), rng.random((6, 7)) < rng.random()
        if union.any():
            assert oracle(pool, union) == slow_oracle(pool, union)
            assert iou(pool[best_choice(pool, union)].any(axis=0), union) == oracle(pool, union)
    # 0 to 2 is worth 3/4, and 4 to 7 less beside it than nothing; none at all is the best of what is not there.
    assert best_choice(POOL, strip(0, 1, 2, 3)).tolist() == [True, False, False, False, False]
    assert not best_choice(POOL, strip()).any() and not best_choice(POOL[:0], strip(1)).size


def test_pairwise_iou_is_that_of_each_two() -> None:
    pool = np.random.default_rng(1).random((7, 5, 9)) < 0.4
    pool[3] = False
    slow = np.array([[1.0 if i == j else iou(one, two) for j, two in enumerate(pool)] for i, one in enumerate(pool)])
    assert np.array_equal(pairwise_iou(pool), slow)


def test_a_pool_keeps_the_best_of_each_kind_and_counts_what_it_leaves_out() -> None:
    weights = np.array([0.5, 0.9, 0.7, 0.8, 1.0])
    kept = kept_masks(POOL, weights, PoolRule(same_iou=0.6, least_share=0.0, most=1))
    # 0 to 2 is a copy of 0 to 1 (2/3), which is surer; of 5 to 6 and 4 to 7 (1/2) both are; the empty one is none.
    assert (kept.places.tolist(), kept.worth.tolist()) == ([1], [0.9])
    assert (kept.small, kept.copies, kept.over_limit) == (1, 1, 2)
    whole = kept_masks(POOL, weights, PoolRule(same_iou=0.6, least_share=5 / 16))
    assert whole.places.tolist() == [3, 0] and whole.small == 3  # four pixels of 16 are too few
    # By agreement: what two of three answers drew nearly alike comes before what one did.
    voted = kept_masks(POOL[:4], np.array([1.0, 1.0, 1.0, 1.5]), PoolRule(same_iou=0.6), by_agreement=True)
    assert voted.places.tolist() == [0, 3, 2] and voted.worth.tolist() == [2.0, 1.5, 1.0] and voted.copies == 1
    assert kept_masks(POOL[:0], np.zeros(0), PoolRule()).places.size == 0


@pytest.mark.parametrize("wrong", [{"same_iou": 0.0}, {"same_iou": 1.1}, {"least_share": 1.0}, {"most": 0}])
def test_a_rule_that_keeps_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^a pool takes masks of IoU"):
        PoolRule(**wrong)
