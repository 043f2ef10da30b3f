"""The bench of ways to learn: their settings, the seconds they get, and differences by hand. Trainings are long."""

import json
from pathlib import Path
from typing import Any

import pytest

from envs.polygons import AnswerStatus
from rl.bench.learning.arms import BEST_OF, PILOT_STEPS, RL, SFT, Spent, Wanted, planned, rl_sft, supervised
from rl.bench.learning.page import curve_of, write
from rl.bench.learning.scores import NOTHING, Contender, Scored, as_json, difference, lines
from rl.bench.learning.trainings import Trained, left_out
from rl.config.load import load_settings
from rl.config.outlines import Annotator
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
from rl.evaluation.scores import SceneScore

DEMO = Path("tiny")


def wanted(out: Path, *overrides: str, **settings: Any) -> Wanted:
    return Wanted(DEMO, out, overrides, **settings)


def scored(arm: Any, seed: int, ious: list[float]) -> Scored:
    scenes = [SceneScore(f"{k}", iou, 10, 20, iou / 2, True, AnswerStatus.OK) for k, iou in enumerate(ious)]
    return Scored(Contender(arm, seed, Spent(10, 5.0, 320), Path()), scenes, ious, 12.0)


def trained(out: Path, arm: Any, rows: list[dict[str, float]]) -> Trained:
    """A training of 4 steps of 2 s each, whose metrics are `rows`."""
    training = planned(wanted(out, "steps=4"), arm, 0, steps=4)
    training.begin()
    lines = [json.dumps({"step": step, "seconds/step": 2.0}) + "\n" for step in range(4)]
    (training.folder / "timings.jsonl").write_text("".join(lines))
    (training.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Trained(training, training.finish())


def test_arms_differ_from_the_run_in_what_their_name_says_alone(tmp_path: Path) -> None:
    asked = wanted(tmp_path, "group_size=4")
    rl, best, beside = (planned(asked, arm, 1).config for arm in (RL, BEST_OF, rl_sft(0.1)))
    assert isinstance(rl, RunConfig) and isinstance(best, RunConfig) and isinstance(beside, RunConfig)
    assert (rl.seed, rl.group_size, rl.run) == (1, 4, f"{tmp_path}/seed-1/rl")
    assert best.algorithm == rl.algorithm | {"name": "best_of"} and best.learner == rl.learner
    assert beside.learner.sft_weight == 0.1 and beside.algorithm == rl.algorithm
    assert vars(beside.learner) == vars(rl.learner) | {"sft_weight": 0.1}


def test_outlines_are_learned_from_the_same_checkpoint_and_data_at_eight_times_the_rate(tmp_path: Path) -> None:
    asked = wanted(tmp_path, "outlines.max_vertices=9")
    base, sft = asked.base(2), planned(asked, SFT, 2, steps=500).config
    assert isinstance(sft, SftConfig)
    assert (sft.env, sft.codec, sft.policy, sft.seed) == (base.env, base.codec, base.policy, 2)
    assert (sft.sft.num_steps, sft.sft.scenes_per_step, sft.sft.max_vertices) == (500, 32, 9)
    assert sft.sft.stages[0].lr == pytest.approx(8 * base.learner.lr)
    assert (sft.sft.scenes, sft.sft.keep) == (None, "best")
    few = planned(wanted(tmp_path, "outlines.scenes=64"), SFT, 0).config
    assert isinstance(few, SftConfig) and few.sft.scenes == 64
    assert (sft.learner.average, sft.learner.threads) == (base.learner.average, base.learner.threads)
    other = planned(wanted(tmp_path, sft_lr=1e-3), SFT, 0).config
    assert isinstance(other, SftConfig) and other.sft.stages[0].lr == 1e-3


def test_masks_teach_the_decoder_of_the_control_though_rl_leaves_it_as_it_is(tmp_path: Path) -> None:
    config = planned(Wanted(Path("gspo_box_decoder"), tmp_path), SFT, 0).config
    assert isinstance(config, SftConfig)
    run = Wanted(Path("gspo_box_decoder"), tmp_path).base(0)
    assert run.policy == config.policy | {"freeze_decoder": True}


def test_the_rate_falls_over_the_steps_that_an_arm_gets(tmp_path: Path) -> None:
    config = planned(wanted(tmp_path), BEST_OF, 0, steps=130).config
    assert isinstance(config, RunConfig)
    assert (config.steps, config.learner.decay_steps) == (130, 130)  # the demo falls over all of its 260


def test_a_pilot_is_a_few_steps_in_a_folder_of_its_own(tmp_path: Path) -> None:
    for arm in (SFT, BEST_OF):
        training = planned(wanted(tmp_path), arm, 0)
        pilot = training.pilot()
        assert (pilot.steps, pilot.folder) == (PILOT_STEPS, tmp_path / "seed-0" / f"{arm.name}-pilot")


def test_seconds_are_those_of_steps_and_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    training = planned(wanted(tmp_path, "steps=4"), RL, 0)
    training.begin()
    rows = [(0, 8.0), (1, 2.0), (2, 9.0), (2, 3.0), (3, 4.0)]
    text = "".join(json.dumps({"step": step, "seconds/step": seconds}) + "\n" for step, seconds in rows)
    (training.folder / "timings.jsonl").write_text(text)
    assert training.step_seconds == 2.5  # the lower quartile of 2, 3 and 4: the first quarter warms up
    assert training.spent is None
    assert training.finish() == Spent(4, 17.0, 128) == training.spent


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    planned(wanted(tmp_path), RL, 0).begin()
    with pytest.raises(ValueError, match=r"^group_size is 4, but .*seed-0/rl began with 8; give .* another --out"):
        planned(wanted(tmp_path, "group_size=4"), RL, 0).begin()


def test_differences_are_paired_by_scene_and_seed() -> None:
    found = [
        scored(NOTHING, 0, [0.1, 0.2]),
        scored(RL, 0, [0.5, 0.7]),
        scored(SFT, 0, [0.4, 0.5]),
        scored(RL, 1, [0.6, 0.6]),
        scored(SFT, 1, [0.6, 0.7]),
    ]
    interval, seeds = difference(found, "rl", "sft")
    assert interval.value == pytest.approx((0.1 + 0.2 + 0.0 - 0.1) / 4)
    assert seeds == pytest.approx([0.15, -0.05])
    assert (interval.low, interval.high) == pytest.approx((0.05, 0.05))  # both scenes: 0.05 as the mean of both seeds
    from_nothing, _ = difference(found, "rl", "nothing")
    assert from_nothing.value == pytest.approx((0.4 + 0.5 + 0.5 + 0.4) / 4)
    assert lines(found)[0].startswith("RL less the checkpoint as it is: gIoU +0.450 [")


def told(asked: Wanted) -> list[str]:
    return [*map(str, left_out(asked))]


def test_wrong_options_and_data_without_masks_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--seeds is 0; give 1 or more"):
        wanted(tmp_path, seeds=0)
    with pytest.raises(ValueError, match=r"^--controls names 'stf'; choose of sft, best_of, rl_sft"):
        wanted(tmp_path, controls=("stf",))
    assert [arm.name for arm in wanted(tmp_path, controls=("rl_sft", "sft")).arms] == ["rl", "sft", "rl_sft"]
    with pytest.raises(ValueError, match=r"^--sft-lr is -1; give a number above 0"):
        wanted(tmp_path, sft_lr=-1.0)
    (tmp_path / "run" / "archive").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^--out is .*/run, which holds a run"):
        wanted(tmp_path / "run")
    with pytest.raises(ValueError, match=r"'seed=3': the bench sets seed itself"):
        wanted(tmp_path, "seed=3")
    assert left_out(wanted(tmp_path)) == []
    said = told(wanted(tmp_path, "env.absent_share=1"))
    assert len(said) == 2 and all("is left out" in line and "none has a mask" in line for line in said)
    assert len(told(wanted(tmp_path, "env.absent_share=1", "outlines.scenes=64"))) == 2
    said = told(wanted(tmp_path, "outlines.scenes=64"))
    assert len(said) == 1 and "outlines.scenes is 64" in said[0] and said[0].startswith("RL, and outlines at")
    with pytest.raises(ValueError, match="lr"):
        left_out(wanted(tmp_path, "learner.lr=0"))


def test_the_json_holds_every_pair() -> None:
    found: Any = as_json([scored(RL, 0, [0.5, 0.7]), scored(SFT, 0, [0.4, 0.5])], ["why"])
    assert found["paired"]["rl_minus_sft"]["giou"] == pytest.approx(0.15)
    assert found["paired"]["rl_minus_sft"]["seeds"] == pytest.approx([0.15])
    assert found["arms"]["sft"] == pytest.approx(
        {
            "giou": 0.45,
            "sampled_giou": 0.45,
            "boundary_iou": 0.225,
            "valid": 1.0,
            "vertices": 12.0,
            "seconds": 5.0,
            "steps": 10.0,
            "scenes": 320.0,
        }
    )
    assert found["left_out"] == ["why"]


def test_the_page_has_every_way_with_its_curve_over_seconds(tmp_path: Path) -> None:
    rl = trained(tmp_path, RL, [{"step": 0, "greedy/giou": 0.6}, {"step": 4, "greedy/giou": 0.7}])
    sft = trained(tmp_path, SFT, [{"step": 2, "sft/validation_greedy_giou": 0.65}])
    assert curve_of(rl.training) == ([0, 8], [0.6, 0.7])
    assert curve_of(sft.training) == ([4], [0.65])
    found = [scored(NOTHING, 0, [0.1, 0.2]), scored(RL, 0, [0.5, 0.7]), scored(SFT, 0, [0.4, 0.5])]
    paths = write(wanted(tmp_path, "steps=4"), [rl, sft], found, ["something is left out"])
    assert [path.name for path in paths] == ["learning.json", "learning.html"]
    page = paths[1].read_text()
    for said in ("RL as configured", "SFT on outlines of the masks", "+0.150", "by seconds", "seconds 8: 0.7"):
        assert said in page, said
    assert "<b>Not done:</b> something is left out" in page


def test_the_supervised_control_draws_as_outlines_say() -> None:
    overrides = ["outlines.annotators=[{max_vertices: 12}]", "outlines.order=any_start"]
    made = supervised(load_settings(RunConfig, Path("demo"), overrides), "runs/x", 4, 1e-3)
    assert (made.sft.annotators, made.sft.order) == ([Annotator(max_vertices=12)], "any_start")
