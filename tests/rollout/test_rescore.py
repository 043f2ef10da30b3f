"""Rescoring an archive: the run's own rewards come out to the last bit, others as if they had been the run's."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from envs.example import Example, ImageRef, Prompt, Truth
from envs.polygons import Answer, AnswerStatus, answer_from_rings, instance_from_rings
from policies.families.base import Response
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.config.rewards import RewardParts, load_rewards, reward_parts
from rl.lab.score import as_dict, rescore_run
from rl.run.steps import group_terms, with_totals
from rollout.archive.archive import RolloutArchive
from rollout.archive.rescore import rescore
from rollout.records import Group, Rollout

H, W, G = 16, 20, 4
NAMES = ("mask_iou", "centroid_distance", "boundary_iou", "matched_iou", "box_iou", "vertex_economy", "point_in_mask")
QUIET = Console(quiet=True)


def reward_file(folder: Path, text: str) -> Path:
    path = folder / "rewards.yaml"
    path.write_text(text)
    return path


def random_example(rng: np.random.Generator, name: str) -> Example:
    """Nothing, one or two instances, and every third time pixels to ignore."""
    masks = np.zeros((rng.integers(0, 3), H, W), np.bool_)
    for mask in masks:
        y, x = rng.integers(0, 8, 2)
        mask[y : y + 7, x : x + 9] = True
    ignore = np.zeros((H, W), np.bool_)
    ignore[:4, :6] = True
    truth = Truth(masks, ignore if rng.random() < 0.3 else None)
    return Example(name, ImageRef(name, "ab" * 32, H, W), Prompt.of_text("it"), truth, "train", "by hand", "CC0-1.0")


def random_answer(rng: np.random.Generator) -> Answer:
    status = rng.choice([AnswerStatus.OK, AnswerStatus.OK, AnswerStatus.OK, AnswerStatus.EMPTY, AnswerStatus.TRUNCATED])
    if status is not AnswerStatus.OK:
        return Answer(AnswerStatus(status), bare=bool(rng.random() < 0.5))
    rings = [rng.uniform(-2, 20, (rng.integers(3, 9), 2)) for _ in range(3)]
    instances = (instance_from_rings(rings[:2], (1.0, 2.0, 9.0, 8.0)), instance_from_rings(rings[2:]))
    thinking = "word " * rng.integers(0, 9) if rng.random() < 0.5 else None
    return Answer(AnswerStatus.OK, instances[: rng.integers(1, 3)], bool(rng.random() < 0.5), thinking)


def archived(folder: Path, parts: RewardParts, num_steps: int = 3) -> Path:
    """A run that scored random answers as a worker does; three groups a step."""
    rng, scorer, shaper = np.random.default_rng(0), Scorer(parts.recipes), parts.shaper()
    archive, response = RolloutArchive(folder / "archive"), Response(np.arange(3), np.zeros(3, np.float32), "stop")
    asked = [random_example(rng, f"example {k}") for k in range(5)]
    for step in range(num_steps):
        groups = []
        for position in range(3):
            example = asked[rng.integers(len(asked))]
            compared = compare([random_answer(rng) for _ in range(G)], Target.from_truth(example.truth), example.id)
            columns = scorer.columns(compared)
            terms = [{name: column[k] for name, column in columns.items()} for k in range(G)]
            rollouts = tuple(
                Rollout(k, response, "", one.answer, one.intersection_px, one.answer_area_px, one.iou, terms[k], 0, k)
                for k, one in enumerate(compared)
            )
            groups.append(Group("run", step, position, example, np.arange(4), "cd" * 32, 1.0, rollouts))
        archive.append(step, with_totals(groups, shaper.totals(step, group_terms(groups))))
    return folder


def test_all_built_in_rewards_and_every_kind_of_shaping_come_out_to_the_last_bit(tmp_path: Path) -> None:
    shaping = {
        "mask_iou": {"kind": "quantile", "history": 20},
        "boundary_iou": {"kind": "power", "weight_schedule": [[0, 0.2], [2, 0.9]]},
        "matched_iou": {"kind": "threshold"},
        "total": {"kind": "rank"},
    }
    more = {"format": {"wrapped": 0.5}, "thinking_format": {}, "thinking_length": {"least": 3, "most": 5}}
    parts = reward_parts({name: {} for name in NAMES} | more, shaping)
    run = archived(tmp_path, parts)
    for step in rescore(run, Scorer(parts.recipes), parts.shaper()):
        assert set(step.terms) == {*NAMES, *more} == set(step.archived_terms)
        for name, values in step.terms.items():
            assert np.array_equal(values, step.archived_terms[name], equal_nan=True), name
        assert np.array_equal(step.totals, step.archived_totals)


def test_other_rewards_are_scored_as_if_the_run_had_had_them(tmp_path: Path) -> None:
    first, second = reward_parts({"mask_iou": {}}, {}), reward_parts({"box_iou": {}, "format": {}}, {})
    run, other = archived(tmp_path / "a", first), archived(tmp_path / "b", second)
    ours = list(rescore(run, Scorer(second.recipes), second.shaper()))
    theirs = list(rescore(other, Scorer(second.recipes), second.shaper()))
    assert len(ours) == 3
    for one, its in zip(ours, theirs, strict=True):
        assert np.array_equal(one.totals, its.archived_totals)
        assert list(one.archived_terms) == ["mask_iou"]


def test_iou_is_0_for_what_cannot_be_read_and_vertices_are_counted(tmp_path: Path) -> None:
    parts = reward_parts({"mask_iou": {}}, {})
    run = archived(tmp_path, parts)
    rows = [row for batch in RolloutArchive(run / "archive").rollouts() for row in batch.to_pylist()]
    steps = list(rescore(run, Scorer(parts.recipes), parts.shaper()))
    assert [len(row["vertices_px"]) // 2 for row in rows] == np.concatenate(
        [step.num_vertices.ravel() for step in steps]
    ).tolist()
    for row, iou in zip(rows, np.concatenate([step.iou.ravel() for step in steps]).tolist(), strict=True):
        assert iou == (row["iou"] if row["status"] in ("ok", "empty") else 0.0)


def test_only_the_steps_that_are_asked_for_are_read(tmp_path: Path) -> None:
    parts = reward_parts({"mask_iou": {}}, {})
    run = archived(tmp_path, parts)
    assert [step.step for step in rescore(run, Scorer(parts.recipes), parts.shaper(), {0, 2})] == [0, 2]


def test_a_rewards_own_file_is_rescored_and_written_a_row_an_answer(tmp_path: Path) -> None:
    run = archived(tmp_path / "run", reward_parts({"mask_iou": {}}, {}))
    file, out = (
        reward_file(tmp_path, "rewards: {mask_iou: {weight: 0.5}, format: {weight: 0.5}}"),
        tmp_path / "x.parquet",
    )
    found = rescore_run(run, file, out, QUIET)
    table = pq.read_table(out)
    assert table.column_names == [
        "step",
        "position",
        "index",
        "example_id",
        "reward_mask_iou",
        "reward_format",
        "total",
    ]
    assert len(table) == found.answers == 3 * 3 * G
    assert found.sums["mask_iou"].differing == 0 and found.sums["format"].archived_mean is None
    assert found.sums["total"].mean == pytest.approx(np.mean(table["total"].to_numpy()))
    assert json.loads(json.dumps(as_dict(found)))["identical"] is False


def test_a_run_under_its_own_rewards_is_identical_and_one_altered_term_is_counted(tmp_path: Path) -> None:
    config = "run: x\nrewards: {mask_iou: {}, format: {}}\n"
    run = archived(tmp_path, reward_parts({"mask_iou": {}, "format": {}}, {}))
    (run / "config.yaml").write_text(config)
    assert rescore_run(run, None, None, QUIET).identical
    (run / "config.yaml").write_text(config.replace("format: {}", "format: {weight: 0.3}"))
    found = rescore_run(run, None, None, QUIET)
    assert not found.identical and found.sums["total"].differing > 0 and found.sums["format"].differing == 0


def test_a_reward_that_breaks_leaves_no_file_behind(tmp_path: Path) -> None:
    module = tmp_path / "broken.py"
    module.write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Reward:\n    weight: float = 1.0\n"
        "    def __call__(self, comparison):\n        return 2.0\n"
    )
    run, out = archived(tmp_path / "run", reward_parts({"mask_iou": {}}, {})), tmp_path / "x.parquet"
    with pytest.raises(ValueError, match=r"broken returned 2.0 for example example \d"):
        rescore_run(run, module, out, QUIET)
    assert list(tmp_path.glob("*x.parquet*")) == []


def test_an_archive_without_the_example_of_an_answer_is_refused_by_name(tmp_path: Path) -> None:
    parts = reward_parts({"mask_iou": {}}, {})
    run = archived(tmp_path, parts)
    for shard in (run / "archive" / "examples").iterdir():
        shard.unlink()
    with pytest.raises(ValueError, match=r"answers to example \d, but not that example"):
        list(rescore(run, Scorer(parts.recipes), parts.shaper()))


def test_groups_of_different_sizes_are_refused(tmp_path: Path) -> None:
    parts = reward_parts({"mask_iou": {}}, {})
    run = archived(tmp_path, parts, num_steps=1)
    asked = random_example(np.random.default_rng(1), "one more")
    response = Response(np.arange(3), np.zeros(3, np.float32), "stop")
    square = answer_from_rings([np.array([[1.0, 1], [5, 1], [5, 5]])])
    one = Rollout(0, response, "", square, 0, 0, 0.0, {"mask_iou": 0.0}, 0, 0)
    two = (one, replace(one, index=1))
    groups = [Group("run", 1, k, asked, np.arange(4), "cd" * 32, 1.0, two[: k + 1], (0.0,) * (k + 1)) for k in range(2)]
    RolloutArchive(run / "archive").append(1, groups)
    with pytest.raises(ValueError, match="step 1 has groups of different sizes"):
        list(rescore(run, Scorer(parts.recipes), parts.shaper()))


def test_the_rewards_of_a_run_are_those_of_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: x\nrewards: {mask_iou: {weight: 0.8}}\nsteps: 3\n")
    assert load_rewards(tmp_path).weights == {"mask_iou": 0.8}


def test_an_archive_without_a_step_or_with_one_missing_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file, out = reward_file(tmp_path, "rewards: {format: {}}"), tmp_path / "new" / "x.parquet"
    with pytest.raises(FileNotFoundError, match="holds no archived answers; give the folder of a run"):
        rescore_run(tmp_path / "nothing", file, out, QUIET)
    run = archived(tmp_path / "run", reward_parts({"mask_iou": {}}, {}))
    (run / "archive" / "rollouts" / "step-00000001.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds 2 of the 3 steps up to its last; `polytrace archive verify"):
        rescore_run(run, file, out, QUIET)
    assert not out.parent.exists()


def test_an_output_that_is_no_ordinary_file_is_left_alone(tmp_path: Path) -> None:
    run = archived(tmp_path / "run", reward_parts({"mask_iou": {}}, {}))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no ordinary file"):
        rescore_run(run, reward_file(tmp_path, "rewards: {format: {}}"), tmp_path / "pipe", QUIET)
    assert (tmp_path / "pipe").is_fifo()
