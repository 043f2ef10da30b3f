"""A run that samples with vLLM: what is refused before it starts, how large its units are, for what length it opens."""

from collections.abc import Callable
from pathlib import Path

import pytest
from moondream_toy import write_toy
from test_vision_language import write_internvl, write_llava

from rl.config.load import load_settings
from rl.config.plugins import engine_plugin
from rl.config.run import RunConfig
from rl.run.parts import longest_prompt, opened_for, processor_of, run_parts
from rl.run.preflight import refuse_unfit_policy
from rl.run.steps import step_units

VLLM = ("pool.engine={name: vllm}", "pool.gpus_per_worker=1")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM as far as `importlib.metadata` sees it."""
    folder = tmp_path / "site" / "vllm-0.30.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: vllm\nVersion: 0.30.0\n")
    monkeypatch.syspath_prepend(str(folder.parent))


def demo(*overrides: str) -> RunConfig:
    return load_settings(RunConfig, Path("tiny"), ["run=unused", "groups_per_unit=null", *overrides])


def asked(*overrides: str) -> list[tuple[int, int]]:
    """(position, example) of all groups of a step, in order."""
    units = step_units(demo("groups_per_step=32", *overrides), 3, 500)
    return [pair for unit in units for pair in zip(unit.positions, unit.indices, strict=True)]


def test_adapters_that_travel_alone_are_refused_with_the_config() -> None:
    alone = ("learner.average=0", "learner.lora.push=adapters")
    engine_plugin(demo(*VLLM, "learner.average=0", "learner.lora.push=merged"))
    engine_plugin(demo(*alone))
    message = r"learner\.lora\.push is adapters, and pool\.engine vllm takes whole weights only; set .* to merged"
    with pytest.raises(ValueError, match=message):
        engine_plugin(demo(*VLLM, *alone))


@pytest.mark.parametrize(("write", "title"), [(write_llava, r"LLaVA-1\.5"), (write_internvl, "InternVL")])
def test_families_that_vllm_does_not_sample_for_are_refused_before_anything_starts(
    write: Callable[[Path], None], title: str, tmp_path: Path
) -> None:
    write(tmp_path)
    config = demo(*VLLM, f"policy.checkpoint={tmp_path}")
    parts = run_parts(config)
    with pytest.raises(ValueError, match=rf"policy\.checkpoint is a {title}, .* set pool\.engine\.name to shared"):
        refuse_unfit_policy(config, parts, processor_of(parts.policy))


def test_moondream_is_refused_too_since_vllm_draws_no_coordinates(tmp_path: Path) -> None:
    write_toy(tmp_path)
    words = "codec={name: svg_path, boxes: centre, box_bins: 63, path_bins: 32, curves: false}"
    config = demo(*VLLM, words, "policy.name=moondream", f"policy.checkpoint={tmp_path}")
    parts = run_parts(config)
    with pytest.raises(ValueError, match=r"policy\.checkpoint is a Moondream 3, .* set pool\.engine\.name to shared"):
        refuse_unfit_policy(config, parts, processor_of(parts.policy))


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (("pool.workers=2",), [8, 8, 8, 8]),
        ((*VLLM, "pool.workers=2"), [16, 16]),
        ((*VLLM, "pool.workers=3"), [11, 11, 10]),
        ((*VLLM, "pool.workers=2", "groups_per_unit=12"), [12, 12, 8]),
    ],
)
def test_vllm_is_asked_for_a_workers_whole_share_and_the_same_answers_in_every_way(
    overrides: tuple[str, ...], sizes: list[int]
) -> None:
    units = step_units(demo("groups_per_step=32", *overrides), 3, 500)
    assert [len(unit.indices) for unit in units] == sizes
    assert asked(*overrides) == asked("groups_per_unit=32") and len(asked(*overrides)) == 32


def test_vllm_is_opened_for_twice_the_longest_prompt_and_an_answer() -> None:
    config = demo(*VLLM, "sampling.max_tokens=50", "env.num_scenes=40")
    parts = run_parts(config)
    env, processor = parts.env.build(split="train"), processor_of(parts.policy)
    lengths = [len(processor.prompt_tokens(env[k].question(env.image(env[k].image)))) for k in range(len(env))]
    assert longest_prompt(env, processor) == max(lengths) > min(lengths) > 64  # an image takes 64
    assert opened_for(config, parts).settings["max_model_len"] == 2 * max(lengths) + 50
    long = demo(*VLLM, "sampling.max_tokens=2000")
    assert opened_for(long, run_parts(long)).settings["max_model_len"] == 1024  # the model's own limit
    told = demo("pool.engine={name: vllm, max_model_len: 321}", "pool.gpus_per_worker=1")
    assert opened_for(told, run_parts(told)).settings["max_model_len"] == 321
    own = demo()
    assert opened_for(own, run_parts(own)) == run_parts(own).engine
