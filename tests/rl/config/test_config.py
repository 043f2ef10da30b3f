"""Mistakes in a run's settings are refused before anything starts, with the setting, the value and what to do."""

from importlib.resources import files
from pathlib import Path

import pytest

from rewards.settings import TermShaping
from rl.config.learner import LearnerSettings
from rl.config.load import load_settings, save_settings, shipped_configs
from rl.config.pairs import PairExport
from rl.config.refiner import RefineConfig
from rl.config.run import RunConfig
from rl.config.sft import SftConfig
from rl.evaluation.answers import greedy_units
from rl.run.parts import rank_settings, run_parts, worker_settings
from rl.run.steps import step_units


def demo(*overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("group_size=1", "group_size is 1; set it to 2 or more, since every algorithm compares"),
        ("learner.micro_groups=64", r"groups_per_step is 32, but .* = 128 must divide it.*a divisor of 16"),
        ("learner.minibatches=5", "groups_per_step is 32, but learner.minibatches 5 x learner.micro_groups 16"),
        ("learner.ranks=3", r"learner.ranks 3 = 96 must divide it"),
        ("learner.token_budget=384", r"group_size 8 x sampling.max_tokens 48 = 384 answer tokens and its prompt"),
        ("learner.token_budget=0", "learner.token_budget is 0; set it to 1 or more, what one pass may hold"),
        ("learner={token_budget: 500, minibatches: 33}", "groups_per_step is 32 and learner.minibatches 33, which"),
        ("steps=0", "steps is 0; set it to 1 or more"),
        ("refills=-1", "refills is -1; set it to 0 or more"),
        ("ray.placement=near", "ray.placement is 'near'; set it to shared or apart"),
        ("ray_address=auto", "ray_address is not a setting"),
        ("groups_per_unit=0", "groups_per_unit is 0; set it to 1 or more"),
        ("evaluation.every=0", "evaluation.every is 0; set it to 1 or more"),
        ("learner.zero_stage=4", "learner.zero_stage is 4"),
        ("learner.dtype=float16", "learner.dtype is 'float16'; did you mean 'bfloat16'"),
        ("learner.lr=0", "learner.lr is 0; set it to more than 0"),
        ("pool.workers=0", "pool.workers is 0; set it to 1 or more"),
        ("pool.staleness=-1", "pool.staleness is -1; set it to 0 or more"),
        (
            "pool.staleness=52",
            r"save_every 52; .* older than 52 - 1 = 51 steps. Set pool.staleness to 51, or save_every",
        ),
        ("pool.verify_every=-1", "pool.verify_every is -1; set it to 0 or more"),
        ("pool.unit_seconds=0", r"pool.unit_seconds is 0; set it to more than 0"),
        ("sampling.temperature=-1", "sampling.temperature is -1; set it to 0 or more"),
        ("group_sise=4", "group_sise is not a setting; did you mean group_size"),
        ("learner.micro_group=4", "did you mean learner.micro_groups"),
        ("steps=many", "steps is 'many', expected int"),
        ("shaping.total.knid=rank", r"shaping.total.knid is not a setting; did you mean shaping.total.kind\?"),
        ("shaping.total.history=long", "shaping.total.history is 'long', expected int"),
        ("shaping.total=rank", "shaping.total is 'rank', expected a mapping"),
        ("shaping.total.threshold_schedule=[0, 1]", r"shaping.total.threshold_schedule\[0\] is 0, expected list"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_config_is_read(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo(override)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (
            "policy.checkpoint=no/such/model",
            FileNotFoundError,
            r"policy.checkpoint is no/such/model, but .*config\.json",
        ),
        ("policy={name: vision_language}", ValueError, "policy.checkpoint is not set"),
        ("policy.name=visionlanguage", ValueError, "did you mean 'vision_language'"),
        ("policy.question=7", ValueError, "policy.question is 7, expected str"),
        (
            "policy.question=Outline it.",
            ValueError,
            r"^policy\.question is 'Outline it\.', which never asks .*{phrase}",
        ),
        ("policy.question='{p} {Phrase}'", ValueError, r"^policy\.question is .*, which never asks the phrase; write"),
        ('policy.question="\\ud83d {phrase}"', ValueError, r"^policy\.question is .* no text in UTF-8: character 1 is"),
        ("env.folder=no/such/folder", FileNotFoundError, "env.folder is no/such/folder, which is not a folder"),
        ("env.image_size=16", ValueError, "env.image_size is 16"),
        ("env.split=test", ValueError, "env.split is 'test', but the run itself gives split"),
        ("env.name=cutout_scene", ValueError, "did you mean 'cutout_scenes'"),
        ("rewards={}", ValueError, "give at least one reward"),
        (
            "rewards.mask_iou.weight=-1",
            ValueError,
            "rewards.mask_iou.weight is -1; set it to 0 or more",
        ),
        ("shaping.mask_iuo={}", ValueError, r"shaping.mask_iuo names no reward; did you mean 'mask_iou'\?"),
        ("shaping.total.kind=quantil", ValueError, r"shaping.total.kind is 'quantil'; did you mean 'quantile'\?"),
        ("shaping.total={kind: rank, power: 3}", ValueError, "shaping.total.power is 3.0, of no use to kind rank"),
        ("rewards.mask_iuo={}", ValueError, "did you mean 'mask_iou'"),
        ("algorithm.clip_low=2", ValueError, "algorithm.clip_low is 2"),
        ("algorithm.clip_low=0.005", ValueError, "algorithm.clip_low is 0.005, above clip_high 0.004"),
        ("evaluation.final_split=tets", ValueError, "split is 'tets'"),
        (
            "pool.engine={name: vlm}",
            ValueError,
            r"pool.engine: .* did you mean 'vllm'\? There are: direct, shared, vllm",
        ),
        ("pool.engine={max_answer: 8}", ValueError, "pool.engine.max_answer is not .* did you mean pool.engine.max_an"),
        ("pool.engine={max_answers: 0}", ValueError, "pool.engine.max_answers is 0; set it to 1 or more, or to null"),
        ("pool.engine={name: vllm}", ValueError, r"vllm is not installed here; install it by .* 'polytrace\[vllm\]'"),
    ],
)
def test_a_wrong_part_is_refused_when_the_parts_are_built(override: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_parts(demo(override))


def test_braces_other_than_the_phrase_are_text_of_a_question() -> None:
    question = 'Find {phrase}. Answer as {"polygon": [[x, y]]}, {} or {0}.'
    assert run_parts(demo(f"policy.question='{question}'")).policy.settings["question"] == question


def test_the_engine_of_the_config_reaches_the_workers_and_is_our_own_unless_named() -> None:
    plain, bounded = demo(), demo("pool.engine={name: shared, max_answers: 64}")
    assert worker_settings(plain, run_parts(plain)).engine.build().max_answers is None
    assert worker_settings(bounded, run_parts(bounded)).engine.build().max_answers == 64


def test_shaping_is_read_saved_and_read_back_equal(tmp_path: Path) -> None:
    config = demo("shaping.mask_iou={kind: threshold, threshold_schedule: [[0, 0.3], [200, 0.8]]}")
    shaping = TermShaping("threshold", threshold_schedule=[[0.0, 0.3], [200.0, 0.8]])
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(RunConfig, tmp_path / "config.yaml").shaping == config.shaping == {"mask_iou": shaping}
    assert run_parts(config).rewards.shaping == {"mask_iou": shaping}


@pytest.mark.parametrize(("override", "tokens"), [("sampling.grammar=false", None), ("sampling.grammar=true", 48)])
def test_one_setting_puts_sampler_evaluation_and_learner_under_the_grammar(override: str, tokens: int | None) -> None:
    config = demo(override)
    assert rank_settings(config, run_parts(config)).grammar_tokens == tokens
    assert {unit.sampling.grammar_tokens for unit in step_units(config, 0, 100)} == {tokens}
    assert {unit.sampling.grammar_tokens for unit in greedy_units(config, "test", 9)} == {tokens}
    assert demo().sampling.grammar is False


def test_a_token_budget_frees_the_number_of_groups_from_that_of_passes() -> None:
    config = demo("groups_per_step=7", "learner.token_budget=500", "learner.ranks=2")
    settings = rank_settings(config, run_parts(config))
    assert (settings.learner.token_budget, settings.most_answer_tokens) == (500, 384)


@pytest.mark.parametrize("name", [*shipped_configs(), *(f"presets/{name}" for name in shipped_configs("presets"))])
def test_every_shipped_config_reads(name: str) -> None:
    schema = SftConfig if "sft_" in name else {"pairs": PairExport}.get(name, RunConfig)
    schema = RefineConfig if name.startswith("refiner") else schema
    load_settings(schema, Path(name))


def test_the_embedded_checkpoint_is_small_and_was_trained_as_the_demo_reads_it() -> None:
    folder = Path(str(files("policies") / "tiny"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * 2**20
    sft, run = load_settings(SftConfig, Path("sft_tiny")), demo()
    assert sft.codec == run.codec
    assert run_parts(run).policy.settings["checkpoint"] == folder


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    learner = LearnerSettings(lr=1.0, warmup_steps=4, decay_steps=100)
    assert learner.lr_at(0) == pytest.approx(0.25)
    assert learner.lr_at(3) == pytest.approx(0.998, abs=2e-3)
    assert learner.lr_at(50) == pytest.approx(0.55)
    assert learner.lr_at(100) == learner.lr_at(1000) == pytest.approx(0.1)
    assert LearnerSettings(lr=1.0, warmup_steps=4).lr_at(1000) == 1.0
