from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from policies.settings import LoraSettings
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.sft import run_sft

BOXES = SftStage("boxes", 2, answer="box", lr=0.02, last_lr=0.01)
OUTLINES = SftStage("outlines", 3, lr=0.003)
SETTINGS = SftSettings([BOXES, OUTLINES], scenes_per_step=2, warmup_steps=2)


def test_stages_follow_each_other_and_the_last_one_goes_on() -> None:
    names = [SETTINGS.stage_at(step)[0].name for step in (0, 1, 2, 4, 5, 9)]
    assert names == ["boxes"] * 2 + ["outlines"] * 4
    assert SETTINGS.num_steps == 5


def test_rates_warm_up_and_fall_along_a_cosine_to_a_tenth_unless_said_otherwise() -> None:
    rates = [SETTINGS.stage_at(step)[1] for step in range(7)]
    # Half warm; half way between 0.02 and 0.01; then 0.003 to 0.0003 with cosines of 0, 60, 120 and 180 degrees.
    assert rates == pytest.approx([0.01, 0.015, 0.003, 0.002325, 0.000975, 0.0003, 0.0003])


def test_scenes_are_taken_in_turn_and_begin_again() -> None:
    in_order = replace(SETTINGS, shuffle=False)
    assert [in_order.scenes_at(step, num=5, seed=0) for step in range(3)] == [[0, 1], [2, 3], [4, 0]]


def test_of_few_outlines_boxes_are_still_taught_of_every_scene() -> None:
    few = replace(SETTINGS, shuffle=False, scenes=3)  # BOXES takes two steps
    assert [few.scenes_at(step, num=5, seed=0) for step in range(4)] == [[0, 1], [2, 3], [1, 2], [0, 1]]
    assert few.scenes_at(2, num=2, seed=0) == [0, 1]


def test_of_the_steps_that_are_done_the_stages_are_told_and_the_length_of_the_last_is_open() -> None:
    assert SETTINGS.done_by(0) == []
    assert SETTINGS.done_by(1) == [replace(BOXES, steps=0)]
    assert SETTINGS.done_by(2) == [replace(BOXES, steps=0)]
    assert SETTINGS.done_by(4) == SETTINGS.done_by(9) == [BOXES, replace(OUTLINES, steps=0)]


def test_shuffled_scenes_come_once_a_pass_in_orders_that_follow_from_seed_and_pass() -> None:
    taken = [scene for step in range(10) for scene in SETTINGS.scenes_at(step, num=5, seed=3)]
    passes = [taken[first : first + 5] for first in range(0, 20, 5)]
    assert all(sorted(each) == list(range(5)) for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    assert SETTINGS.scenes_at(7, num=5, seed=3) == taken[14:16]
    assert [SETTINGS.scenes_at(k, num=500, seed=3) for k in range(3)] != [
        SETTINGS.scenes_at(k, num=500, seed=4) for k in range(3)
    ]


def test_mistakes_in_the_settings_are_refused_with_their_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sft\.stages has no step"):
        run_sft(SftConfig(run=str(tmp_path)), Console(quiet=True))
    with pytest.raises(ValueError, match=r"sft.stages\[0\].answer is 'boxes'; did you mean 'box'"):
        SftSettings([SftStage("x", 1, lr=1.0, answer="boxes")])
    with pytest.raises(ValueError, match=r"sft.stages\[0\].lr is 0; set it to more than 0"):
        SftSettings([SftStage("x", 1, lr=0)])
    with pytest.raises(ValueError, match=r"sft\.evaluate_every is 0"):
        SftSettings(evaluate_every=0)
    with pytest.raises(ValueError, match=r"max_vertices is 12, but max_rings is 5.*15 or more"):
        SftSettings(max_vertices=12, max_rings=5)
    for wrong in ({"zero_stage": 1}, {"lora": LoraSettings()}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"^learner.optimizer is muon with .* set learner.optimizer to adamw"):
            SftLearner(optimizer="muon", **wrong)
    with pytest.raises(ValueError, match=r"^sft.scenes_per_step is 1 for learner.ranks 2, which leaves ranks without"):
        SftConfig(run="x", sft=SftSettings([BOXES], scenes_per_step=1), learner=SftLearner(ranks=2))
    with pytest.raises(ValueError, match=r"^sft.outline_margin is -5; set it to 0 or more"):
        SftSettings(outline_margin=-5)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^run is '.*file/run', which cannot be a folder; give the folder of a run"):
        SftConfig(run=str(tmp_path / "file" / "run"), sft=SETTINGS)
    (tmp_path / "file").unlink()
    with pytest.raises(ValueError, match=r"^policy.dtype is bfloat16 and learner.dtype float32; set both"):
        policy = {"checkpoint": "tiny", "dtype": "bfloat16"}
        env, codec = {"name": "cutout_scenes", "num_scenes": 4}, {"name": "path_tokens"}
        run_sft(SftConfig(str(tmp_path), env=env, codec=codec, policy=policy, sft=SETTINGS), Console(quiet=True))
    assert not list(tmp_path.iterdir())
