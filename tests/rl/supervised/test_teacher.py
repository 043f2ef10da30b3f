"""Outlines beside rollouts: drawn from the masks of a step's examples; what cannot be taught is refused before it."""

import json
from pathlib import Path

import pytest
from in_process import apart, run_here, settings
from ranks import free_port

from rl.config.outlines import OutlineSettings
from rl.run.folder import refuse_other_settings
from rl.run.parts import run_parts
from rl.supervised.answers import answer_text
from rl.supervised.teacher import refuse_unfit_teaching, teacher_of

WEIGHT = "learner.sft_weight=0.5"


def test_without_a_weight_nothing_is_taught(tmp_path: Path) -> None:
    config = settings(tmp_path / "run")
    assert teacher_of(config, run_parts(config)) is None


def test_each_example_is_taught_its_own_outline_and_an_absent_thing_the_empty_answer(tmp_path: Path) -> None:
    config = settings(tmp_path / "run", WEIGHT, "env.absent_share=0.3", "outlines.max_vertices=9")
    parts = run_parts(config)
    teacher, env = teacher_of(config, parts), parts.env.build(split="train")
    assert teacher is not None
    examples = [env[k] for k in range(40)]
    codec, empty = parts.codec.build(), 0
    for example, tokens in zip(examples, teacher.answers(examples), strict=True):
        text = answer_text(example, codec, config.outlines)
        answer = codec.read(text, example.image.height, example.image.width)
        assert len(tokens) == len(text.split()) + 1
        assert answer.num_vertices <= 9
        empty += not len(example.truth.masks)
        assert (answer.status == "empty") == (not len(example.truth.masks))
    assert 3 < empty < 30


def test_under_a_grammar_every_outline_is_one_that_could_be_sampled(tmp_path: Path) -> None:
    grammar = ["sampling.grammar=true", "sampling.max_tokens=48"]
    config = settings(tmp_path / "run", WEIGHT, "env.absent_share=0.2", *grammar)
    parts = run_parts(config)
    teacher, env = teacher_of(config, parts), parts.env.build(split="train")
    assert teacher is not None and len(teacher.answers([env[k] for k in range(60)])) == 60
    refuse_unfit_teaching(config, parts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["outlines.max_vertices=2"], "outlines.max_vertices is 2, but max_rings is 3"),
        (["outlines.simplify=all"], "outlines.simplify is 'all'"),
        (["learner.sft_weight=-1"], "learner.sft_weight is -1"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sampling.max_tokens=9"],
            r"answer to .* takes \d+ tokens, and sampling.max_tokens is 9; set .* or lower",
        ),
        (["sampling.max_tokens=99", "codec.max_vertices=4"], r"^learner.sft_weight is 0.5, and the answer to .* write"),
        (
            ["sampling.max_tokens=99", "sampling.grammar=true", "outlines.answers=['1 {answer}']"],
            r"would be '1 .*which the grammar does not let be sampled .*set sampling.grammar to false",
        ),
        (["env.absent_share=1"], r"of 64 training examples looked at none has a mask.*set learner.sft_weight to 0"),
    ],
)
def test_a_term_that_cannot_be_had_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    config = settings(tmp_path / "run", WEIGHT, *overrides)
    with pytest.raises(ValueError, match=message):
        refuse_unfit_teaching(config, run_parts(config))


def test_a_run_goes_on_with_the_outlines_it_began_with(tmp_path: Path) -> None:
    begun = settings(tmp_path / "run", WEIGHT)
    refuse_other_settings(settings(tmp_path / "run", WEIGHT), begun)
    with pytest.raises(ValueError, match=r"^outlines.max_vertices is 9, but .*run began with 12"):
        refuse_other_settings(settings(tmp_path / "run", WEIGHT, "outlines.max_vertices=9"), begun)
    plain = settings(tmp_path / "run")
    refuse_other_settings(settings(tmp_path / "run", "outlines.max_vertices=9"), plain)  # nothing is taught by either
    assert OutlineSettings() == plain.outlines


@pytest.mark.slow
def test_a_run_logs_the_term(tmp_path: Path) -> None:
    overrides = [WEIGHT, "steps=3", "sampling.max_tokens=48"]
    assert apart(run_here, tmp_path / "run", free_port(), overrides) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [value for line in lines if (value := json.loads(line).get("learner/sft_loss")) is not None]
    assert len(losses) == 3 and all(0 < loss < 10 for loss in losses)
