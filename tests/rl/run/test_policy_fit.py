"""Codec, adapters and token budget that do not fit the policy are found without its weights, before anything starts."""

import shutil
from pathlib import Path

import pytest

from rl.config.load import load_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts
from rl.run.preflight import preflight


def look(*overrides: str) -> None:
    config = load_settings(RunConfig, Path("tiny"), ["learner.average=0", *overrides])
    preflight(config, run_parts(config))


def test_adapters_for_layers_that_are_there_fit_and_others_are_named() -> None:
    look("learner.lora={targets: [q_proj, v_proj]}")
    with pytest.raises(ValueError, match=r"^learner\.lora\.targets names 'q_porj', but no .* there are .*q_proj"):
        look("learner.lora={targets: [q_porj]}")


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (
            "{name: point_text}",
            r"^codec is point_text, policy\.checkpoint .*tiny: the codec writes '\[\]' .* write '\[\]'",
        ),
        (
            "{name: path_tokens, box_bins: 100}",
            r"^codec is path_tokens, .* the policy's tokenizer cannot write '65'; cho",
        ),
    ],
)
def test_a_codec_that_the_policy_cannot_write_is_refused_by_the_words(codec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        look(f"codec={codec}")


def test_credit_of_tokens_needs_a_codec_that_says_which_they_are() -> None:
    look("algorithm={name: gspo_token, vertex_credit: 0.5}")
    message = r"^algorithm\.vertex_credit is 0\.5, but the codec does not say which token .* choose codec path_tokens"
    with pytest.raises(ValueError, match=message):
        look("algorithm={name: gspo_token, vertex_credit: 0.5}", "codec={name: svg_path}")


def test_a_budget_is_measured_against_the_prompts_of_training_examples() -> None:
    # 8 answers of 48 tokens beside 64 image tokens and a phrase of 4 tokens at least.
    look("learner.token_budget=600")
    with pytest.raises(ValueError, match=r"^the prompt of .* has (6[89]|7\d) tokens .* can have 384, tog"):
        look("learner.token_budget=451")


def test_a_checkpoint_that_lacks_weights_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = Path(shutil.copytree("policies/tiny", tmp_path / "model"))
    look(f"policy.checkpoint={folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        look(f"policy.checkpoint={folder}")


def test_a_control_must_be_a_policy_of_the_runs_own_shape(tmp_path: Path, tiny_untrained: Path) -> None:
    look("evaluation.control=tiny")
    with pytest.raises(FileNotFoundError, match=r"^evaluation\.control is nowhere, but nowhere holds no config\.json"):
        look("evaluation.control=nowhere")
    with pytest.raises(
        ValueError, match=r"^evaluation\.control is .*, whose .* has the shape .* where policy\.checkpoint"
    ):
        look(f"evaluation.control={tiny_untrained}")
