"""Kinds of answers side by side: what they share, the seconds they get, and their table by hand. Trainings are long."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from envs.polygons import AnswerStatus
from rl.bench.representations.page import render
from rl.bench.representations.report import as_json, lines, plus_minus, rows, table
from rl.bench.representations.scores import Scored, Timed, refuse_other_answers, score, time_in_turn
from rl.bench.representations.trainings import RL, SFT, Stage
from rl.bench.representations.wanted import SHIPPED, Representation, Wanted, refuse_other_questions
from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
from rl.evaluation.scores import Interval, SceneScore
from rl.run.parts import run_parts

OUTLINE, TEXT, DECODER, GROUPS = SHIPPED


def stage(of: Representation, name: str, seed: int, out: Path = Path("out")) -> Stage:
    config = Wanted(out).run_config(of, seed, Path("tiny"), f"{out}/x")
    return Stage(of, name, seed, config, seconds=100.0 + seed, steps=10)


def scored(of: Representation, name: str, seed: int, ious: list[float], oracle: float | None = None) -> Scored:
    scenes = [SceneScore(f"{k}", iou, 10, 20, iou / 2, True, AnswerStatus.OK) for k, iou in enumerate(ious)]
    return Scored(stage(of, name, seed), scores=scenes, tokens=12.0, oracle=oracle)


def test_the_four_ask_about_the_same_scenes_and_begin_alike() -> None:
    refuse_other_questions(Wanted(Path("out")))
    wanted = Wanted(Path("out"))
    starts = set()
    for of in SHIPPED:
        config = wanted.supervision(of, 2).config
        assert isinstance(config, SftConfig) and (config.seed, config.run) == (2, f"out/seed-2/{of.name}-sft")
        starts.add(config.policy.get("checkpoint") or config.tiny.begin_from)
        assert (config.env["train_scenes"], config.learner.optimizer, config.sft.keep) == (1000, "muon", "best")
    assert starts == {"runs/sft_tiny_boxes/policy"}


def test_a_training_is_stretched_with_its_rates_and_as_many_evaluations() -> None:
    wanted = Wanted(Path("out"))
    taught = wanted.supervision(OUTLINE, 0, steps=450).config
    assert isinstance(taught, SftConfig)
    assert (taught.sft.num_steps, taught.sft.evaluate_every) == (450, 45)  # 300 and 30 in the file
    assert taught.sft.stages[0].lr_at(450) == pytest.approx(1e-4)
    learned = wanted.reinforcement(OUTLINE, 1, Path("somewhere"), steps=65).config
    assert isinstance(learned, RunConfig)
    assert (learned.steps, learned.learner.decay_steps, learned.evaluation.every, learned.save_every) == (
        65,
        65,
        13,
        13,
    )
    assert (learned.policy["checkpoint"], learned.run, learned.seed) == ("somewhere", "out/seed-1/outline-rl", 1)


def test_wrong_options_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--of is 'box=a'; give NAME=SFT,RL"):
        Representation.read("box=a")
    assert Representation.read("box=a,b") == Representation("box", Path("a"), Path("b"))
    with pytest.raises(ValueError, match=r"^--of names 'outline' twice"):
        Wanted(tmp_path, (OUTLINE, OUTLINE))
    with pytest.raises(ValueError, match=r"^--refined names 'outlines'; choose of outline, outline_text"):
        Wanted(tmp_path, refined=("outlines",))
    with pytest.raises(ValueError, match=r"^--refined names mask_groups, which chooses among candidates"):
        refuse_other_questions(Wanted(tmp_path, refined=("mask_groups",)))
    with pytest.raises(ValueError, match=r"^--sft-seconds is 0; give a number above 0"):
        Wanted(tmp_path, sft_seconds=0)
    with pytest.raises(ValueError, match=r"^--seeds is 0"):
        Wanted(tmp_path, seeds=0)
    with pytest.raises(ValueError, match=r"'seed=3': the bench sets seed itself"):
        Wanted(tmp_path, overrides=("seed=3",))
    (tmp_path / "archive").mkdir()
    with pytest.raises(ValueError, match="which holds a run"):
        Wanted(tmp_path)


def other_config(folder: Path, of: Representation, changes: Mapping[str, str]) -> Representation:
    text = Path(f"configs/{of.rl}.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "other.yaml").write_text(text)
    return replace(of, rl=folder / "other.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"image_size: 64": "image_size: 96"},
            r"^image_size of env is 64 in .* and 96 in .*other.yaml; set both alike",
        ),
        ({"max_rings: 4": "max_rings: 8"}, r"^max_rings of codec is 4 in .* and 8 in"),
        ({"final_scenes: 600": "final_scenes: 300"}, r"^final_scenes of env and evaluation is 600 in .* and 300 in"),
    ],
)
def test_other_scenes_or_answers_are_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        refuse_other_questions(Wanted(tmp_path, (DECODER, other_config(tmp_path, OUTLINE, changes)), refined=()))


def test_a_row_is_the_mean_over_seeds_and_differences_are_paired_by_seed() -> None:
    found = rows(
        [
            scored(OUTLINE, SFT, 0, [0.2, 0.4]),
            scored(OUTLINE, RL, 0, [0.4, 0.5]),
            scored(GROUPS, SFT, 0, [0.6, 0.8], oracle=0.9),
            scored(OUTLINE, SFT, 1, [0.3, 0.3]),
            scored(OUTLINE, RL, 1, [0.5, 0.5]),
        ],
        [Timed(stage(OUTLINE, RL, 0), [0.001, 0.003, 0.002])],
    )
    first, learned, groups = found
    assert first.interval("giou") == Interval(pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3))
    assert (first.seconds, first.tokens, first.milliseconds, learned.milliseconds) == (100.5, 12.0, None, 2.0)
    # 0.15 and 0.20: mean 0.175, s = 0.0354, half = t(0.975, 1) s / sqrt 2 = 12.706 * 0.025
    gain = learned.less(first, "giou")
    assert gain is not None and gain.high - gain.value == pytest.approx(12.706 * 0.025, rel=1e-3)
    assert plus_minus(gain, "+.3f") == "+0.175 ± 0.318"
    assert groups.less(learned, "giou") is not None and groups.oracle == 0.9
    told = lines(found)
    assert told[0].startswith("outline: SFT, then RL less outline: SFT: giou +0.175 ± 0.318, boundary_iou +0.087")
    assert told[1] == "mask_groups: SFT less outline: SFT: giou +0.400, boundary_iou +0.200"  # one seed in common
    assert told[2] == "mask_groups chooses from candidates whose best choice has 0.900"
    assert table(found).row_count == 3
    assert as_json(found)["rows"]["outline"]["rl"]["seeds"]["giou"] == {0: 0.45, 1: 0.5}  # type: ignore[index]


def test_stages_that_were_asked_otherwise_are_refused() -> None:
    one, other = scored(OUTLINE, SFT, 0, [0.2]), scored(GROUPS, SFT, 0, [0.2])
    refuse_other_answers([one, other])
    moved = replace(other, scores=[replace(other.scores[0], example_id="another")])
    with pytest.raises(ValueError, match="outline was asked about 0 where mask_groups was asked about another"):
        refuse_other_answers([one, moved])


def test_scores_are_those_of_greedy_answers_to_the_same_questions(tiny_untrained: Path) -> None:
    drawing = load_settings(RunConfig, OUTLINE.rl, ["run=x", "policy.checkpoint=tiny", "evaluation.final_scenes=12"])
    asked = Stage(OUTLINE, RL, 0, drawing, 0.0, 0)
    found = score(asked, Console(quiet=True))
    # The embedded checkpoint draws such scenes at about 0.65; 24 words and more an outline, its end included.
    assert len(found.scores) == 12 and found.oracle is None
    assert np.mean([one.iou for one in found.scores]) > 0.45 and found.tokens > 20
    few = ["run=x", f"policy.checkpoint={tiny_untrained}", "evaluation.final_scenes=12"]
    choosing = Stage(GROUPS, RL, 0, load_settings(RunConfig, GROUPS.rl, few), 0.0, 0)
    chosen = score(choosing, Console(quiet=True))
    assert chosen.oracle == 1.0 and 4 <= chosen.tokens <= 12  # every candidate is judged
    # A new classifier takes nobody: right where nothing is.
    env = run_parts(choosing.config).env.build(split="test")
    assert [one.iou for one in chosen.scores] == [float(not env[k].truth.union.any()) for k in range(12)]
    refuse_other_answers([found, chosen])
    assert [len(one.drawn) for one in (found, chosen)] == [12, 12] and found.drawn[0]
    page = render(Wanted(Path("out"), (OUTLINE, GROUPS)), rows([found, chosen], []), [found, chosen])
    # Two kinds and the truth of each of 12 scenes, and every answer's IoU below its picture.
    assert page.count("<svg") == 36 and page.count(f"IoU {found.scores[0].iou:.2f}") >= 2
    assert "mask_groups: SFT, then RL less outline: SFT, then RL" in page
    timed = time_in_turn([asked, replace(asked, seed=1), replace(asked, stage=SFT), choosing], num=3)
    assert [one.stage for one in timed] == [asked, choosing]
    assert all(len(one.seconds) == 3 and min(one.seconds) > 0 for one in timed)
