"""Two configs over four answers by hand, and the page of them."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.datasets.cutout_scenes import Env
from envs.example import Example, ImageRef, Prompt, Truth
from envs.geometry.contours import rings_from_mask
from envs.polygons import Answer, AnswerStatus, answer_from_rings
from policies.families.base import Response
from rl.config.rewards import reward_parts
from rl.lab.compare import ComparedRewards, compare_rewards, comparison_tables, config_names, merge_rewards, step_range
from rl.lab.pages import render_comparison, write_comparison
from rollout.archive.archive import RolloutArchive
from rollout.records import Group, Rollout

# The truth is a square of 4 px. Exact; twice as wide; exact with 20 vertices; no answer.
SQUARE = np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])
WIDE = np.array([[2.0, 2.0], [10.0, 2.0], [10.0, 6.0], [2.0, 6.0]])
DENSE = np.concatenate(
    [
        a + np.linspace(0, 1, 5, endpoint=False)[:, None] * (b - a)
        for a, b in zip(SQUARE, np.roll(SQUARE, -1, axis=0), strict=True)
    ]
)
ANSWERS = [*(answer_from_rings([ring]) for ring in (SQUARE, WIDE, DENSE)), Answer(AnswerStatus.UNPARSABLE)]
IOUS = (1.0, 0.5, 1.0, 0.0)


def by_hand() -> Example:
    mask = np.zeros((1, 8, 10), np.bool_)
    mask[0, 2:6, 2:6] = True
    ref = ImageRef("no such scene", "ab" * 32, 8, 10)
    return Example("square/0", ref, Prompt.of_text("the <b>square"), Truth(mask), "train", "by hand", "CC0-1.0")


def archived_run(
    folder: Path, num_steps: int = 2, asked: Example | None = None, answers: list[Answer] = ANSWERS
) -> Path:
    """A run of two groups a step, both of the same answers to the same example; the archived scores are nonsense."""
    response, asked = Response(np.arange(2), np.zeros(2, np.float32), "stop"), asked or by_hand()
    rollouts = tuple(
        Rollout(k, response, "", answer, 0, 0, 0.0, {"format": 1.0}, 0, k) for k, answer in enumerate(answers)
    )
    totals = (1.0,) * len(answers)
    archive = RolloutArchive(folder / "archive")
    for step in range(num_steps):
        groups = [Group("run", step, k, asked, np.arange(2), "cd" * 32, 1.0, rollouts, totals) for k in range(2)]
        archive.append(step, groups)
    (folder / "config.yaml").write_text("run: run\nsteps: 2\nenv: {name: cutout_scenes}\nrewards: {format: {}}\n")
    return folder


def short_reward(folder: Path) -> Path:
    """A price on vertices with hardly any IoU in it; the totals of ANSWERS are 1, 0.95, 0.1, 0."""
    path = folder / "short.yaml"
    path.write_text(
        "rewards:\n  mask_iou: {weight: 0.1}\n  length_penalty: {weight: 0.9, free_vertices: 6, max_vertices: 16}\n"
    )
    return path


@pytest.fixture
def found(tmp_path: Path) -> ComparedRewards:
    run = archived_run(tmp_path / "run")
    return compare_rewards(run, [Path("rewards/iou"), short_reward(tmp_path)], range(10), Console(quiet=True))


def test_totals_spread_and_agreement_are_those_of_the_four_answers(found: ComparedRewards) -> None:
    iou, short = found.configs
    assert (found.num_answers, found.num_groups, found.steps) == (16, 4, [0, 1])
    assert iou.totals.mean == pytest.approx(0.625) and short.totals.mean == pytest.approx(2.05 / 4)
    assert iou.spread.mean == pytest.approx(np.std(IOUS))
    assert iou.agreement["iou"].mean == pytest.approx(1)
    # Of six pairs iou ties one, and orders one (wide, dense) the other way: (4 - 1) / sqrt(5 * 6).
    assert short.agreement["iou"].mean == pytest.approx(3 / np.sqrt(30))


def test_advantages_are_those_of_the_algorithm_that_the_run_was_trained_by(tmp_path: Path) -> None:
    def compared(algorithm: str) -> ComparedRewards:
        run = archived_run(tmp_path / algorithm)
        with (run / "config.yaml").open("a") as file:
            file.write(f"algorithm: {algorithm}\n")
        return compare_rewards(run, [Path("rewards/iou"), short_reward(tmp_path)], range(1), Console(quiet=True))

    # Without a divisor: the answer in question has 1 of a mean of 0.625 under iou, 0.1 of 2.05 / 4 under short.
    (largest,) = compared("{name: dr_grpo}").pairs[0, 1].first_only.largest
    assert largest.index == 2 and largest.advantages == pytest.approx((0.375, 0.1 - 0.5125))
    # Totals 1, 0.5, 1, 0 have a standard deviation of 0.415, below min_std; 1, 0.95, 0.1, 0 one of 0.464.
    assert [config.silent.mean for config in compared("{min_std: 0.42}").configs] == [1.0, 0.0]


def test_each_direction_holds_the_answer_that_only_one_config_reinforces(found: ComparedRewards) -> None:
    pair = found.pairs[0, 1]
    assert [(answer.position, answer.index) for answer in pair.first_only.largest] == [(0, 2)]
    assert pair.first_only.share.mean == 0.25
    assert pair.first_only.deviations["vertices"].mean == 20 - 28 / 4
    assert pair.second_only.largest[0].index == 1
    assert pair.second_only.deviations["iou"].mean == pytest.approx(0.5 - 0.625)
    assert pair.same_best.mean == 1


def test_the_page_shows_those_answers_and_says_that_the_image_is_gone(found: ComparedRewards, tmp_path: Path) -> None:
    write_comparison(tmp_path / "new/compare.html", found)
    page = (tmp_path / "new/compare.html").read_text(encoding="utf-8")
    assert ET.fromstring(page).tag == "html" and "<script" not in page
    assert page.count("image not found") == 2 and "20 vertices" in page
    assert "the &lt;b&gt;square" in page and "the <b>square" not in page
    assert all(link.startswith("data:image/") for link in re.findall(r'(?:href|src)="([^"]*)"', page))


def test_the_page_shows_the_images_of_the_runs_env(tmp_path: Path) -> None:
    asked = Env("train")[0]
    exact = rings_from_mask(asked.truth.union)
    low, high = np.concatenate(exact).min(axis=0), np.concatenate(exact).max(axis=0)
    box = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    run = archived_run(tmp_path / "run", 1, asked, [answer_from_rings(exact), answer_from_rings([box])])
    page = render_comparison(
        compare_rewards(run, [Path("mask_iou"), short_reward(tmp_path)], None, Console(quiet=True))
    )
    assert page.count("<image ") == 2 and "image not found" not in page


def test_a_single_config_has_no_pairs(tmp_path: Path) -> None:
    found = compare_rewards(archived_run(tmp_path), [Path("mask_iou")], None, Console(quiet=True))
    assert found.names == ["mask_iou"] and len(comparison_tables(found)) == 2
    assert "punishes" not in render_comparison(found)


def test_steps_without_an_answer_are_refused(tmp_path: Path) -> None:
    run = archived_run(tmp_path)
    with pytest.raises(ValueError, match="reaches step 1"):
        compare_rewards(run, [Path("mask_iou")], range(5, 9), Console(quiet=True))


def test_some_steps_are_enough(tmp_path: Path) -> None:
    run = archived_run(tmp_path, num_steps=3)
    assert compare_rewards(run, [Path("mask_iou")], range(1, 2), Console(quiet=True)).steps == [1]


def test_rewards_that_differ_in_weight_alone_are_computed_once() -> None:
    light = reward_parts({"mask_iou": {"weight": 0.2}, "length_penalty": {}}, {})
    heavy = reward_parts({"mask_iou": {"weight": 0.9}, "length_penalty": {"max_vertices": 20}}, {})
    merged = merge_rewards([light, heavy])
    assert list(merged.recipes) == ["mask_iou", "length_penalty", "length_penalty (2)"]
    assert merged.keys[1] == {"mask_iou": "mask_iou", "length_penalty": "length_penalty (2)"}


def test_files_of_one_name_are_told_apart_by_their_paths() -> None:
    assert config_names([Path("a/x.yaml"), Path("b/x.yaml"), Path("y.yaml")]) == ["a/x.yaml", "b/x.yaml", "y"]


def test_steps_are_written_as_a_slice() -> None:
    assert [step_range(text)[0] for text in ("3:5", ":5", "7:")] == [3, 0, 7]
    assert 5 not in step_range("3:5") and 10**9 in step_range("7:")
    with pytest.raises(ValueError, match="write A:B"):
        step_range("3")


def test_rewards_of_one_name_with_a_space_are_kept_apart() -> None:
    parts = [reward_parts({"my reward": {"name": "format"}}, {}) for _ in range(1)]
    other = reward_parts({"my reward": {"module": str(Path(__file__).parents[3] / "rewards/terms/mask_iou.py")}}, {})
    merged = merge_rewards([*parts, other])
    assert [keys["my reward"] for keys in merged.keys] == ["my reward", "my reward (2)"]
    assert len(merged.recipes) == 2
