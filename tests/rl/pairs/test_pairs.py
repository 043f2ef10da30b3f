from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.raster import fill
from envs.polygons import Answer, AnswerStatus, answer_from_rings, flat_answers, flatten_rings
from policies.families.base import Response
from rewards.kernels.overlap import boundary_iou
from rl.config.pairs import PairRule
from rl.pairs.select import Pair, choose, spread_out, within_limit
from rl.pairs.shortlist import CANDIDATE, LEFT_OUT, HeldOut, Shortlist, even_shares
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout

SIDE = 16
RESPONSE = Response(np.arange(2), np.zeros(2, np.float32), "stop")


def example(name: str, split: str = "train", image: str = "") -> Example:
    masks = np.zeros((2, SIDE, SIDE), np.bool_)
    masks[0, 2:10, 2:7], masks[1, 2:10, 8] = True, True
    ref = ImageRef(f"scene {name}", (image or name).encode().hex().ljust(64, "0"), SIDE, SIDE)
    return Example(name, ref, Prompt.of_text(f"the {name}"), Truth(masks), split, "made | by hand", "CC0-1.0")


def square(k: int) -> Answer:
    """One of 64 squares, no two of the same pixels."""
    x, y = k % 8, k // 8
    return answer_from_rings([np.array([[x, y], [x + 6.0, y], [x + 6.0, y + 6.0], [x, y + 6.0]])])


def group(step: int, asked: Example, answers: list[tuple[Answer, float]], position: int = 0) -> Group:
    rollouts = tuple(
        Rollout(index, RESPONSE, "", answer, 0, 0, iou, {"mask_iou": iou}, 5, index)
        for index, (answer, iou) in enumerate(answers)
    )
    return Group("run", step, position, asked, np.arange(2), "cd" * 32, 1.0, rollouts, (0.0,) * len(rollouts))


def archive_of(folder: Path, *groups: Group) -> RolloutArchive:
    archive = RolloutArchive(folder / "archive")
    for step in sorted({group.step for group in groups}):
        archive.append(step, [group for group in groups if group.step == step])
    return archive


def pairs_of(archive: RolloutArchive, rule: PairRule) -> list[Pair]:
    return list(choose([archive], rule).pairs())


def places(archive: RolloutArchive, rule: PairRule) -> list[tuple[int, int, int]]:
    return sorted((pair.step, pair.position, pair.index) for pair in pairs_of(archive, rule))


def coarse_mask(pair: Pair) -> np.ndarray:
    return fill(*flatten_rings(pair.coarse_rings), pair.height, pair.width)


def test_a_pair_holds_the_answer_the_truth_and_where_they_came_from(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "demo", group(7, example("apple"), [(square(18), 0.75)], position=3))
    (pair,) = pairs_of(archive, PairRule())
    assert (pair.run, pair.step, pair.position, pair.index, pair.policy_version) == ("demo", 7, 3, 0, 5)
    assert (pair.example_id, pair.prompt, pair.image_key) == ("apple", "the apple", "scene apple")
    assert (pair.height, pair.width, pair.iou, pair.box_px) == (SIDE, SIDE, 0.75, (2, 2, 8, 8))
    assert (pair.source, pair.licence, pair.ignore_rle, pair.damage) == ("made | by hand", "CC0-1.0", None, None)
    expected = np.zeros((SIDE, SIDE), np.bool_)
    expected[2:8, 2:8] = True
    np.testing.assert_array_equal(coarse_mask(pair), expected)
    true_mask = coco.decode({"size": [SIDE, SIDE], "counts": pair.true_rle}).astype(np.bool_)
    np.testing.assert_array_equal(true_mask, example("apple").truth.union)
    assert pair.boundary_iou == boundary_iou(expected, true_mask)


def test_every_answer_left_out_is_counted_under_its_reason(tmp_path: Path) -> None:
    same_image = example("held out", "validation", image="shared")
    empty = Answer(AnswerStatus.EMPTY)
    nothing = replace(example("n"), truth=Truth(np.zeros((0, SIDE, SIDE), np.bool_)))
    boxed = replace(example("f"), prompt=Prompt(Prompt.of_text("f").parts, "box"))
    archive = archive_of(
        tmp_path,
        group(0, example("a"), [(square(0), 0.5), (square(0), 0.5), (empty, 0.0)], position=0),
        group(0, example("a"), [(Answer(AnswerStatus.TRUNCATED), 0.0), (square(1), 0.29)], position=1),
        group(0, example("b"), [(square(0), 0.95), (square(1), 0.6), (square(2), 0.61)], position=2),
        group(0, same_image, [(square(0), 0.5)], position=3),
        group(0, example("c", image="shared"), [(square(0), 0.5)], position=4),
        group(0, example("d", image="barred"), [(square(0), 0.5)], position=5),
        group(0, example("e"), [(square(0), 0.5)], position=6),
        group(0, nothing, [(square(0), 0.5)], position=7),
        group(0, boxed, [(square(0), 0.5)], position=8),
        group(1, example("lost"), [(square(0), 0.5)], position=0),
    )
    (tmp_path / "archive" / "examples" / "step-00000001.parquet").unlink()
    held_out = HeldOut(frozenset({"e"}), frozenset({example("d", image="barred").image.sha256}))
    report = choose([archive], PairRule(max_iou=0.9, per_example=2), held_out).report
    assert report.left_out == {
        "example_missing": 1,
        "not_training": 1,
        "example_held_out": 1,
        "image_held_out": 2,
        "no_mask_asked": 1,
        "unparsable": 1,
        "no_outline": 1,
        "wrong_object": 1,
        "too_good": 1,
        "nothing_there": 1,
        "near_duplicate": 1,
        "over_per_example": 0,
        "over_limit": 0,
    }
    assert (report.answers, report.kept) == (15, 3)


def test_answers_whose_examples_are_all_lost_are_counted_and_make_no_pair(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, group(0, example("a"), [(square(0), 0.5)]))
    (tmp_path / "archive" / "examples" / "step-00000000.parquet").unlink()
    report = choose([archive], PairRule()).report
    assert (report.kept, report.left_out["example_missing"]) == (0, 1)


def test_pairs_of_an_example_are_spread_over_iou(tmp_path: Path) -> None:
    ious = [0.31, 0.32, 0.33, 0.34, 0.35, 0.66, 0.67, 0.99]
    archive = archive_of(tmp_path, group(0, example("a"), [(square(8 * k), iou) for k, iou in enumerate(ious)]))
    for seed in range(5):
        kept = [pair.iou for pair in pairs_of(archive, PairRule(per_example=3, seed=seed))]
        assert [sum(low <= iou < high for iou in kept) for low, high in ((0.3, 0.5), (0.6, 0.7), (0.9, 1))] == [1, 1, 1]
    # Strata take turns: the low one has more to give once the others are empty.
    assert len(pairs_of(archive, PairRule(per_example=6))) == 6


def test_answers_of_one_iou_are_spread_over_shape() -> None:
    near, far = [square(k) for k in (0, 1, 8)], square(63)  # the first three overlap one another by half and more
    answers = flat_answers([answer.rings_px for answer in (*near, far)])
    spread = spread_out(answers, np.zeros(4, np.int8), SIDE, SIDE, PairRule(per_example=2), 0)
    assert spread.taken == [0, 3]


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_two_pairs_of_an_example_are_near_duplicates_by_a_bitmap(tmp_path_factory, data) -> None:
    shapes = data.draw(st.lists(st.integers(0, 63), min_size=2, max_size=10))
    threshold = data.draw(st.sampled_from([0.3, 0.6, 0.75, 1.0]))
    archive = archive_of(
        tmp_path_factory.mktemp("run"), group(0, example("a"), [(square(k), 0.5 + k / 200) for k in shapes])
    )
    choice = choose([archive], PairRule(per_example=10, near_duplicate_iou=threshold))
    masks = [coarse_mask(pair) for pair in choice.pairs()]
    for a in range(len(masks)):
        for b in range(a):
            assert (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() < threshold
    assert choice.report.left_out["near_duplicate"] == len(shapes) - len(masks)
    if threshold == 1.0:
        assert len(masks) == len(set(shapes))


def test_the_choice_is_repeated_by_its_seed_and_differs_between_seeds(tmp_path: Path) -> None:
    answers = [(square(8 * k), 0.5) for k in range(8)]
    archive = archive_of(tmp_path, *(group(k, example(f"e{k}"), answers) for k in range(6)))
    chosen = [places(archive, PairRule(per_example=2, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_an_example_that_two_runs_asked_counts_once_and_its_answers_keep_apart(tmp_path: Path) -> None:
    one = archive_of(tmp_path / "one", group(0, example("a"), [(square(0), 0.4), (square(3), 0.6)]))
    two = archive_of(tmp_path / "two", group(0, example("a"), [(square(32), 0.5), (square(60), 0.9)]))
    pairs = list(choose([one, two], PairRule(per_example=3)).pairs())
    assert len(pairs) == 3
    assert {pair.run for pair in pairs} == {"one", "two"}
    everything = list(choose([one, two], PairRule(per_example=4)).pairs())
    assert {(pair.run, pair.step, pair.index, pair.iou) for pair in everything} == {
        ("one", 0, 0, 0.4),
        ("one", 0, 1, 0.6),
        ("two", 0, 0, 0.5),
        ("two", 0, 1, 0.9),
    }


def test_an_example_with_another_image_in_another_run_is_refused(tmp_path: Path) -> None:
    one = archive_of(tmp_path / "one", group(0, example("a"), [(square(0), 0.5)]))
    two = archive_of(tmp_path / "two", group(0, example("a", image="changed"), [(square(1), 0.5)]))
    with pytest.raises(ValueError, match=r"different images in these runs \(a has .* export the runs apart"):
        choose([one, two], PairRule())


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_caps_hold_and_counts_add_up(tmp_path_factory, data) -> None:
    answer = st.tuples(st.integers(0, 63).map(square), st.sampled_from([0.1, 0.3, 0.5, 0.55, 0.9, 1.0]))
    asked = st.tuples(st.sampled_from("abcd"), st.lists(answer, min_size=1, max_size=6))
    groups = [
        group(step, example(name), answers)
        for step, (name, answers) in enumerate(data.draw(st.lists(asked, min_size=1, max_size=5)))
    ]
    per_example, limit = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    archive = archive_of(tmp_path_factory.mktemp("run"), *groups)
    everything = choose([archive], PairRule(per_example=per_example))
    limited = choose([archive], PairRule(per_example=per_example, limit=limit))
    for choice in (everything, limited):
        report = choice.report
        assert report.answers == sum(len(group.rollouts) for group in groups)
        assert report.answers == report.kept + sum(report.left_out.values())
        assert list(report.left_out) == list(LEFT_OUT)
        names = Counter(pair.example_id for pair in choice.pairs())
        assert all(num <= per_example for num in names.values())
    assert len(limited) <= limit
    assert (len(limited) > 0) == (len(everything) > 0)


def test_a_limit_is_shared_evenly_by_strata_as_far_as_they_reach() -> None:
    assert even_shares(np.array([10, 2, 5]), 12).tolist() == [5, 2, 5]
    assert even_shares(np.array([10, 2, 5]), 11).tolist() == [5, 2, 4]
    assert even_shares(np.array([1, 2]), 9).tolist() == [1, 2]
    iou, boundary = np.array([0] * 8 + [1] * 2, np.int8), np.array([0] * 6 + [1] * 2 + [0, 1], np.int8)
    kept = within_limit(iou, boundary, 6)
    # The rare stratum gives both of its pairs; the other one two of each boundary error, the first ones.
    assert np.flatnonzero(kept).tolist() == [0, 1, 6, 7, 8, 9]


def slow_shortlist(rows: np.ndarray, rule: PairRule) -> set[tuple[int, int, int]]:
    """First per_example answers of each example and stratum; of the first examples of each, the fewest that do."""
    by_stratum = [sorted((int(r["example"]), int(r["order"])) for r in rows if r["stratum"] == s) for s in range(3)]
    names = [sorted({name for name, _ in mine}) for mine in by_stratum]
    for level in range(1, len(rows) + 1):
        strata_of = Counter(name for mine in names for name in mine[:level])
        promised = sum(min(num, rule.per_example) for num in strata_of.values())
        if rule.limit is not None and promised >= int(np.ceil(rule.limit * 1.25)):
            break
    return {
        (stratum, *pair)
        for stratum, mine in enumerate(by_stratum)
        for name in names[stratum][:level]
        for pair in [pair for pair in mine if pair[0] == name][: rule.per_example]
    }


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), per_example=st.integers(1, 4), limit=st.none() | st.integers(1, 24))
def test_the_shortlist_is_that_of_a_slow_sort_whatever_the_order_and_size_of_batches(seed, per_example, limit) -> None:
    rng = np.random.default_rng(seed)
    rule = PairRule(per_example=per_example, limit=limit, iou_strata=3)
    rows = np.zeros(60, CANDIDATE)
    rows["stratum"], rows["example"] = rng.choice(3, 60, p=[0.6, 0.3, 0.1]), rng.integers(0, 30, 60)
    rows["order"] = rng.permutation(60)
    shortlist = Shortlist(rule)
    for batch in np.array_split(rows[rng.permutation(60)], 7):
        shortlist.offer(batch)
        shortlist.compact()
    chosen = shortlist.chosen()
    assert {(int(r["stratum"]), int(r["example"]), int(r["order"])) for r in chosen} == slow_shortlist(rows, rule)
    assert len(chosen) + sum(shortlist.left_out.values()) == 60


def test_the_shortlist_under_a_limit_promises_the_limit_from_every_stratum_alike() -> None:
    rows = np.zeros(3000, CANDIDATE)
    rows["example"], rows["order"] = np.arange(3000), np.arange(3000)
    rows["stratum"][2900:] = 1
    shortlist = Shortlist(PairRule(limit=400, iou_strata=2))
    shortlist.offer(rows)
    chosen = np.bincount(shortlist.chosen()["stratum"])
    assert chosen.tolist() == [400, 100]  # a quarter over the limit, the rare stratum whole


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"min_iou": 0.8, "max_iou": 0.7}, "min_iou is 0.8 and max_iou 0.7"),
        ({"max_iou": 1.1}, "max_iou is 1.1; set it to 0..1"),
        ({"min_iou": -0.1}, "min_iou is -0.1; set it to 0..1"),
    ],
)
def test_an_impossible_iou_range_is_refused(setting: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PairRule(**setting)


@pytest.mark.parametrize("setting", [{"per_example": 0}, {"limit": 0}])
def test_a_cap_of_nothing_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is 0; set it to 1 or more"):
        PairRule(**setting)


def test_strata_and_near_duplicates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"iou_strata is 0; set it to 1..100"):
        PairRule(iou_strata=0)
    with pytest.raises(ValueError, match="near_duplicate_iou is 0"):
        PairRule(near_duplicate_iou=0)
