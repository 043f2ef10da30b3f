from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.base import Response
from rl.export import export_pairs
from rl.pair_rule import PairRule
from rl.pairs import LEFT_OUT, select, select_pairs
from rollout.archive import RolloutArchive
from rollout.records import Group, Rollout

SQUARE = np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])
RESPONSE = Response(np.arange(2), np.zeros(2, np.float32), "stop")


def example(name: str, split: str = "train", image: str = "") -> Example:
    masks = np.zeros((2, 8, 10), np.bool_)
    masks[0, 2:6, 2:5], masks[1, 2:6, 6] = True, True
    ref = ImageRef(f"scene {name}", (image or name).ljust(64, "0"), 8, 10)
    return Example(name, ref, Prompt((f"the {name}",)), Truth(masks), split, "made | by hand", "CC0-1.0")


def outline(shift: float) -> Answer:
    return answer_from_rings([SQUARE + shift])


def group(step: int, asked: Example, answers: list[tuple[Answer, float]], position: int = 0) -> Group:
    rollouts = tuple(
        Rollout(index, RESPONSE, "", answer, 0, 0, iou, {"mask_iou": iou}, 5, index)
        for index, (answer, iou) in enumerate(answers)
    )
    totals = (0.0,) * len(rollouts)
    return Group("run", step, position, asked, np.arange(2), "cd" * 32, 1.0, rollouts, totals)


def archive_of(folder: Path, *groups: Group) -> RolloutArchive:
    archive = RolloutArchive(folder / "archive")
    for step in sorted({group.step for group in groups}):
        archive.append(step, [group for group in groups if group.step == step])
    return archive


def places(archive: RolloutArchive, rule: PairRule) -> list[tuple[int, int, int]]:
    return [(pair.step, pair.position, pair.index) for pair in select(archive, rule).pairs]


def test_a_pair_holds_the_answer_the_truth_and_where_they_came_from(tmp_path: Path) -> None:
    (pair,) = select_pairs(archive_of(tmp_path, group(7, example("apple"), [(outline(0), 0.75)], position=3)))
    assert (pair.run, pair.step, pair.position, pair.index, pair.policy_version) == ("run", 7, 3, 0, 5)
    assert (pair.example_id, pair.prompt, pair.image_key) == ("apple", "the apple", "scene apple")
    assert (pair.height, pair.width, pair.iou, pair.box_px) == (8, 10, 0.75, (2, 2, 6, 6))
    assert (pair.source, pair.licence, pair.ignore_rle) == ("made | by hand", "CC0-1.0", None)
    np.testing.assert_array_equal(pair.coarse_rings[0], SQUARE)
    expected = np.zeros((8, 10), np.bool_)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(pair.coarse_mask, expected)
    true_mask = coco.decode({"size": [8, 10], "counts": pair.true_rle}).astype(np.bool_)
    np.testing.assert_array_equal(true_mask, example("apple").truth.union)


def test_every_answer_left_out_is_counted_under_its_reason(tmp_path: Path) -> None:
    same_image = example("held out", "validation", image="shared")
    archive = archive_of(
        tmp_path,
        group(0, example("a"), [(outline(0), 0.5), (outline(0), 0.5), (Answer(AnswerStatus.EMPTY), 0.0)], position=0),
        group(0, example("a"), [(Answer(AnswerStatus.TRUNCATED), 0.0), (outline(1), 0.29)], position=1),
        group(0, example("b"), [(outline(0), 0.95), (outline(1), 0.6), (outline(2), 0.61)], position=2),
        group(0, same_image, [(outline(0), 0.5)], position=3),
        group(0, example("c", image="shared"), [(outline(0), 0.5)], position=4),
        group(1, example("lost"), [(outline(0), 0.5)], position=0),
    )
    (tmp_path / "archive" / "examples" / "step-00000001.parquet").unlink()
    report = select(archive, PairRule(max_iou=0.9, per_example=1)).report
    assert report.left_out == {
        "example_missing": 1,
        "not_training": 1,
        "image_held_out": 1,
        "no_outline": 2,
        "wrong_object": 1,
        "too_good": 1,
        "duplicate": 1,
        "over_per_example": 1,
        "over_limit": 0,
    }
    assert (report.answers, report.kept) == (11, 2)


def test_pairs_of_an_example_are_spread_over_iou(tmp_path: Path) -> None:
    ious = [0.31, 0.32, 0.33, 0.34, 0.35, 0.66, 0.67, 0.99]
    answers = [(outline(k / 8), iou) for k, iou in enumerate(ious)]
    archive = archive_of(tmp_path, group(0, example("a"), answers))
    for seed in range(5):
        kept = [pair.iou for pair in select_pairs(archive, per_example=3, seed=seed)]
        assert [sum(low <= iou < high for iou in kept) for low, high in ((0.3, 0.5), (0.6, 0.7), (0.9, 1))] == [1, 1, 1]
    # Bins take turns: the low one has more to give once the others are empty.
    assert len(select_pairs(archive, per_example=6)) == 6


def test_the_choice_is_repeated_by_its_seed_and_differs_between_seeds(tmp_path: Path) -> None:
    answers = [(outline(k / 8), 0.5) for k in range(8)]
    archive = archive_of(tmp_path, *(group(k, example(f"e{k}"), answers) for k in range(6)))
    chosen = [places(archive, PairRule(per_example=2, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(kept) for kept in chosen] == [12] * 3


def test_an_outline_drawn_again_at_a_later_step_is_a_duplicate(tmp_path: Path) -> None:
    groups = [group(step, example("a"), [(outline(0), 0.5), (outline(step), 0.6)]) for step in (1, 2)]
    assert places(archive_of(tmp_path, *groups), PairRule()) == [(1, 0, 0), (1, 0, 1), (2, 0, 1)]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_caps_hold_counts_add_up_and_a_limit_takes_from_the_unlimited_choice(tmp_path_factory, data) -> None:
    answer = st.tuples(st.integers(0, 5).map(outline), st.sampled_from([0.1, 0.3, 0.5, 0.55, 0.9, 1.0]))
    asked = st.tuples(st.sampled_from("abcd"), st.lists(answer, min_size=1, max_size=6))
    groups = [
        group(step, example(name), answers)
        for step, (name, answers) in enumerate(data.draw(st.lists(asked, min_size=1, max_size=5)))
    ]
    per_example, limit = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    archive = archive_of(tmp_path_factory.mktemp("run"), *groups)
    everything = select(archive, PairRule(per_example=per_example))
    limited = select(archive, PairRule(per_example=per_example, limit=limit))
    for selection in (everything, limited):
        report = selection.report
        assert report.answers == sum(len(group.rollouts) for group in groups)
        assert report.answers == report.kept + sum(report.left_out.values())
        assert list(report.left_out) == list(LEFT_OUT)
        names = [pair.example_id for pair in selection.pairs]
        assert all(names.count(name) <= per_example for name in names)
    assert len(limited.pairs) == min(limit, len(everything.pairs))
    whole = {(pair.step, pair.index) for pair in everything.pairs}
    assert {(pair.step, pair.index) for pair in limited.pairs} <= whole


@pytest.mark.parametrize("setting", [{"min_iou": 0.8, "max_iou": 0.7}, {"max_iou": 1.1}, {"min_iou": -0.1}])
def test_an_impossible_iou_range_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 <= min_iou <= max_iou <= 1"):
        PairRule(**setting)


@pytest.mark.parametrize("setting", [{"per_example": 0}, {"limit": 0}])
def test_a_cap_of_nothing_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="set each to 1 or more"):
        PairRule(**setting)


def test_exported_masks_boxes_and_provenance_can_be_read_by_others(tmp_path: Path) -> None:
    archive_of(tmp_path, group(0, example("a"), [(outline(0), 0.5), (outline(1), 0.75)]))
    report = export_pairs(tmp_path, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert report.kept == len(rows) == 2
    row = rows[1]
    coarse = coco.decode({"size": [row["height"], row["width"]], "counts": row["coarse_rle"]})
    assert (coarse.sum(), coarse[3:7, 3:7].sum()) == (16, 16)
    assert coco.decode({"size": [8, 10], "counts": row["true_rle"]}).sum() == 16
    assert (row["iou"], row["box_px"]) == (0.75, [3, 3, 7, 7])
    assert [row[name] for name in ("run", "step", "position", "index", "policy_version")] == ["run", 0, 0, 1, 5]
    assert (row["image_key"], row["licence"], row["source"]) == ("scene a", "CC0-1.0", "made | by hand")
    assert row["image_sha256"] == "a".ljust(64, "0")


def test_the_data_card_counts_pairs_licences_and_what_was_left_out(tmp_path: Path) -> None:
    archive_of(tmp_path, group(0, example("a"), [(outline(0), 0.5), (outline(1), 0.75), (outline(2), 0.1)]))
    export_pairs(tmp_path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 pairs from 1 training examples" in card
    assert "| CC0-1.0 | made / by hand | 2 |" in card
    assert "| 0.7 to 0.8 | 1 |" in card
    assert f"| {LEFT_OUT['wrong_object']} | 1 |" in card
    assert "min_iou=0.3" in card


def test_equal_exports_are_equal_files(tmp_path: Path) -> None:
    answers = [(outline(k / 8), 0.3 + k / 20) for k in range(8)]
    archive_of(tmp_path, *(group(k, example(f"e{k}"), answers) for k in range(3)))
    for name in ("one", "two"):
        export_pairs(tmp_path, tmp_path / name)
    for name in ("pairs.parquet", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_full_folder_an_empty_choice_and_a_missing_archive_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    archive_of(tmp_path, group(0, example("a"), [(outline(0), 0.2)]))
    with pytest.raises(ValueError, match=r"keeps none of the 1 answers.*'wrong_object': 1"):
        export_pairs(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is not empty"):
        export_pairs(tmp_path, tmp_path / "archive")
    with pytest.raises(FileNotFoundError, match="No archive in"):
        export_pairs(tmp_path / "elsewhere", tmp_path / "out")
