"""`polytrace sft` as a whole: its files, stopping and going on, several ranks under Ray."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import apart
from rich.console import Console

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.tiny_model import TinySizes
from rl.config.sft import SftConfig, SftLearner, SftSettings, SftStage
from rl.run.metrics import read_curves
from rl.sft import run_sft
from rl.supervised.train import read_curve

BOXES = SftStage("boxes", 2, answer="box", lr=0.02, last_lr=0.01)
OUTLINES = SftStage("outlines", 3, lr=0.003, number_spread=1.0)
SETTINGS = SftSettings([BOXES, OUTLINES], scenes_per_step=2, warmup_steps=2)
CODEC = Codec(max_rings=4, max_vertices=16)
QUIET = Console(quiet=True)


def small_run(folder: Path) -> SftConfig:
    return SftConfig(
        run=str(folder),
        max_tokens=32,
        env={"name": "cutout_scenes", "image_size": 32, "num_scenes": 4},
        codec={"name": "path_tokens", "max_rings": 4, "max_vertices": 16},
        tiny=TinySizes(32, 8, 32, 1, 2, 16, 1, 2),
        sft=replace(SETTINGS, evaluate_every=2, evaluate_scenes=3),
        learner=SftLearner(optimizer="muon", threads=1),
    )


def test_a_run_stopped_after_its_first_stage_ends_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    config = small_run(tmp_path / "whole")
    run_sft(config, QUIET)
    stopped = replace(config, run=str(tmp_path / "stopped"))
    run_sft(replace(stopped, sft=replace(config.sft, stages=[BOXES])), QUIET)
    assert len((tmp_path / "stopped" / "curve.tsv").read_text().splitlines()) == 2
    folder = run_sft(stopped, QUIET)
    assert folder == tmp_path / "stopped" / "policy"
    for name in ("curve.tsv", "policy/model.safetensors", "policy/tokenizer.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    curve = [line.split("\t")[:2] for line in (tmp_path / "whole" / "curve.tsv").read_text().splitlines()]
    assert curve == [["step", "stage"], ["2", "boxes"], ["4", "outlines"], ["5", "outlines"]]
    assert Policy(folder, CODEC).processor.tokenizer("the left").input_ids != [2, 2]  # words of phrases are known


def test_the_best_policy_is_kept_where_that_is_wanted_also_one_from_before_the_first_step(
    tmp_path: Path, tiny_untrained: Path
) -> None:
    """A rate that destroys the policy: whatever comes later, what it began with is kept."""
    config = small_run(tmp_path / "run")
    ruinous = SftStage("ruin", 4, lr=5.0)
    config = replace(
        config,
        policy={"checkpoint": "tiny"},
        env={**config.env, "image_size": 64},
        max_tokens=48,
        sft=replace(config.sft, stages=[ruinous], warmup_steps=0, keep="best"),
        learner=SftLearner(threads=1),
    )
    folder = run_sft(config, QUIET)
    curve = read_curve(tmp_path / "run")
    assert [point.step for point in curve] == [0, 2, 4]
    assert curve[0].greedy_giou > 0.3 > max(point.greedy_giou for point in curve[1:])
    begun = Policy(Path("policies/tiny"), CODEC).model.state_dict()
    kept = Policy(folder, CODEC).model.state_dict()
    assert all(bool((kept[name] == value).all()) for name, value in begun.items())


def lines_of(config: SftConfig) -> list[str]:
    """What a training prints, one line a message."""
    out = io.StringIO()
    run_sft(config, Console(file=out, width=400))
    return out.getvalue().splitlines()


@pytest.mark.slow
def test_two_ranks_under_ray_train_an_adapted_checkpoint_and_one_goes_on(tmp_path: Path, tiny_untrained: Path) -> None:
    learner = SftLearner(ranks=2, zero_stage=2, lora=LoraSettings(rank=2), threads=1, micro_scenes=1)
    one = replace(OUTLINES, number_spread=0.0, with_absent=True)
    sft = replace(SETTINGS, stages=[replace(one, steps=4)], evaluate_every=2, evaluate_scenes=3)
    policy = {"checkpoint": str(tiny_untrained)}
    config = replace(small_run(tmp_path / "run"), policy=policy, learner=learner, sft=sft)
    half = replace(config, sft=replace(sft, stages=[replace(one, steps=2)]))
    told = apart(lines_of, half)
    assert sum("on validation: loss" in line for line in told) == 1
    apart(lines_of, replace(config, learner=replace(learner, ranks=1)))
    curve = read_curve(tmp_path / "run")
    assert [point.step for point in curve] == [2, 4]
    assert curve[1].validation_loss < curve[0].validation_loss
    steps, losses = read_curves(tmp_path / "run")["sft/loss"]
    assert steps == [1, 2, 3, 4] and all(loss > 0 for loss in losses)
    trained, before = Policy(tmp_path / "run" / "policy", CODEC), Policy(tiny_untrained, CODEC)
    names = [name for name, _ in trained.model.named_parameters()]
    assert names == [name for name, _ in before.model.named_parameters()]  # adapters are merged
    moved = [not a.equal(b) for a, b in zip(trained.parameters(), before.parameters(), strict=True)]
    assert {True, False} == set(moved)


def test_a_run_of_an_older_version_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "state.pt").touch()
    with pytest.raises(ValueError, match=r"was begun by an older version of Polytrace \(state.pt\)"):
        run_sft(small_run(tmp_path), QUIET)


def test_a_run_is_not_gone_on_with_under_other_settings_or_with_other_data(tmp_path: Path) -> None:
    config = small_run(tmp_path)
    run_sft(config, QUIET)
    with pytest.raises(
        ValueError, match=r"^codec is .*'max_rings': 3.*, but .* began with .*'max_rings': 4.* run=NAME"
    ):
        run_sft(replace(config, codec={**config.codec, "max_rings": 3}), QUIET)
    told = lines_of(config)
    assert told[-2] == "nothing is left to train: 5 of 5 steps are done"
    faster = replace(config, sft=replace(config.sft, stages=[replace(BOXES, lr=0.03), OUTLINES]))
    with pytest.raises(ValueError, match=r"^sft.stages of the steps that are done is .*lr=0.03.* began with .*lr=0.02"):
        run_sft(faster, QUIET)
    turned = replace(config, sft=replace(config.sft, order="any_start"))
    with pytest.raises(ValueError, match=r"^sft.order is any_start, but .* began with clockwise"):
        run_sft(turned, QUIET)
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(
        ValueError, match=r"^run is .*rl, which holds a run of another kind; give this training a folder"
    ):
        run_sft(replace(config, run=str(tmp_path / "rl")), QUIET)
    with pytest.raises(ValueError, match=r"^learner.optimizer is adamw, but .* began with muon"):
        run_sft(replace(config, learner=SftLearner(threads=1)), QUIET)
    data = tmp_path / "data.json"
    data.write_text(data.read_text().replace('"train": "', '"train": "0'))
    with pytest.raises(ValueError, match=r"^the data of split train is not what .* began with; restore"):
        run_sft(config, QUIET)
