import math
from dataclasses import replace
from pathlib import Path

import pytest

from rl.config.load import load_settings, save_settings, settings_from
from rl.config.refiner import RefineConfig, RefinerRun, RefinerStage, RefinerTraining


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"steps": 0}, "training.steps is 0; set it to 1 or more"),
        ({"batch_size": 0}, "training.batch_size is 0; set it to 1 or more"),
        ({"save_every": 0}, "training.save_every is 0"),
        ({"lr": 0.0}, "training.lr is 0.0; set it to more than 0"),
        ({"lr": math.inf}, "training.lr is inf; set it to more than 0, and finite"),
        ({"seed": -1}, "seed is -1.* 0 or more"),
        ({"stages": []}, "stages is empty; give one or more"),
        ({"mask_loss": "hinge"}, "training.mask_loss is 'hinge'; set it to bce or focal"),
        ({"box_jitter": 0.5}, "box_jitter is 0.5"),
        ({"box_jitter": -0.1}, "box_jitter is -0.1"),
        ({"average": 1.0}, "training.average is 1.0; set it to 0..1, 1 not included"),
        ({"iou_weight": -1.0}, "training.iou_weight is -1.0; set it to 0 or more"),
        ({"others_share": 1.5}, "training.others_share is 1.5; set it to 0..1"),
        ({"focal_gamma": -1.0}, "training.focal_gamma is -1.0"),
        ({"batch_size": 9, "ranks": 2}, "batch_size is 9, which ranks 2 must divide"),
        ({"ranks": 0}, "training.ranks is 0"),
        ({"zero_stage": 4}, "training.zero_stage is 4"),
        ({"zero_stage": 3}, "training.average is 0.98 at training.zero_stage 3"),
        ({"dtype": "float16"}, "training.dtype is 'float16'"),
        ({"grad_clip": -1.0}, "training.grad_clip is -1.0; set it to 0 or more"),
        ({"threads": 0}, "training.threads is 0"),
    ],
)
def test_a_training_that_cannot_be_is_refused_with_its_value(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RefinerTraining(**setting)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"share": 0.0}, r"stages\[0\].share is 0.0; set it to more than 0"),
        ({"min_iou": 0.8, "max_iou": 0.8}, "stage 'late' has min_iou 0.8 and max_iou 0.8"),
        ({"max_iou": 1.1}, r"stages\[0\].max_iou is 1.1; set it to 0..1"),
        ({"boundary_weight": -1.0}, r"stages\[0\].boundary_weight is -1.0"),
        ({"crop_px": 0}, r"stages\[0\].crop_px is 0; .* null for the network's own"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_by_its_place_or_name(setting: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings_from(RefinerTraining, {"stages": [{"name": "late", **setting}]}, "refiner.training")
    with pytest.raises(ValueError, match=says):
        RefinerTraining(stages=[RefinerStage("late", **setting)])


def test_shares_that_leave_nothing_to_train_on_and_a_config_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"calibration_share is 0.5 and evaluation_share 0.5.*tenth or more"):
        RefinerRun(calibration_share=0.5, evaluation_share=0.5)
    for name, value in (("evaluation_share", -0.1), ("damaged_scenes", -1), ("held_out_examples", -1)):
        with pytest.raises(ValueError, match=f"^refiner.{name} is {value}"):
            settings_from(RefinerRun, {name: value}, "refiner")
    with pytest.raises(ValueError, match="runs is empty; give folders of runs"):
        RefineConfig(out="x")
    with pytest.raises(ValueError, match="out is empty; give a new folder"):
        RefineConfig(runs=["x"])


def test_stages_change_where_their_shares_of_the_steps_end() -> None:
    stages = [RefinerStage("coarse", share=1.0), RefinerStage("middle", share=2.0), RefinerStage("fine", share=1.0)]
    training = RefinerTraining(steps=10, stages=stages)
    names = [training.stage_at(step).name for step in range(12)]
    # 2.5 and 7.5 of 10 steps, rounded to even; steps beyond the last belong to the last.
    assert names == ["coarse"] * 2 + ["middle"] * 6 + ["fine"] * 4
    assert replace(training, stages=stages[:1]).stage_at(9).name == "coarse"


def test_the_rate_rises_over_a_twentieth_and_then_falls_along_a_cosine() -> None:
    training = RefinerTraining(steps=100, lr=1.0)
    assert training.lr_at(0) == pytest.approx(0.1)
    assert training.lr_at(2) == pytest.approx(0.5 * (1 + math.cos(0.02 * math.pi)) / 2)  # 0.1 + 0.02 / 0.05
    assert training.lr_at(5) == pytest.approx((1 + math.cos(0.05 * math.pi)) / 2)
    assert training.lr_at(50) == pytest.approx(0.5)
    assert training.lr_at(75) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert 0 < training.lr_at(99) < 3e-4


def test_the_engine_gets_the_decay_and_stage_of_the_training() -> None:
    training = RefinerTraining(weight_decay=0.5, grad_clip=2.0, average=0.5, zero_stage=1, threads=3)
    engine = training.engine
    found = (engine.weight_decay, engine.grad_clip, engine.average, engine.zero_stage, engine.threads)
    assert found == (0.5, 2.0, 0.5, 1, 3)


def test_the_shipped_config_is_read_and_what_is_written_of_it_gives_it_again(tmp_path: Path) -> None:
    config = load_settings(RefineConfig, Path("refiner"), ["training.stages=[{name: a, share: 2}, {name: b}]"])
    assert (config.runs, config.out, config.head["name"]) == (["runs/demo"], "runs/refiner", "pixel_head")
    assert [(stage.name, stage.share) for stage in config.training.stages] == [("a", 2.0), ("b", 1.0)]
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(RefineConfig, tmp_path / "config.yaml") == config
