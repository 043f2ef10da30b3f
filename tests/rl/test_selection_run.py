"""Choices among candidate masks through supervised training, RL, stop and resume, and the archive."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from in_process import LocalPool, apart, run_here, settings
from mask_policies import CHOOSING, POOLS
from ranks import free_port
from rich.console import Console

from envs.codecs.mask_group import Codec, choice_of
from envs.codecs.mask_numbers import numbers_of
from policies.families import mask_numbers
from policies.families.mask_selection import Policy
from policies.families.vision_language import Policy as PlainPolicy
from rl import evaluate
from rl.config.load import load_settings
from rl.config.sft import SftConfig
from rl.run.metrics import JobUsage
from rl.run.parts import run_parts
from rl.run.pools import refuse_unfit_pools
from rl.sft import run_sft
from rollout.archive.archive import RolloutArchive
from rollout.archive.schema import answer_from_row


def overrides(folder: Path, *more: str) -> list[str]:
    return [*CHOOSING, f"policy.checkpoint={folder}", *more]


def numbers_of_steps(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [numbers for numbers in found if "learner/ratio_max" in numbers]


def test_a_run_chooses_scores_learns_and_goes_on_where_it_stopped(tiny_untrained: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert apart(run_here, whole, free_port(), overrides(tiny_untrained, "steps=4")) == 0
    assert apart(run_here, stopped, free_port(), overrides(tiny_untrained, "steps=2")) == 0
    rows = [row for batch in RolloutArchive(whole / "archive").rollouts() for row in batch.to_pylist()]
    assert len(rows) == 4 * 2 * 3
    for row in rows:
        chosen = choice_of(row["text"])
        assert chosen.astype(int).tolist() == row["tokens"] and row["status"] == ("ok" if chosen.any() else "empty")
        assert answer_from_row(row).status.value == row["status"] and row["finish"] == "stop"
        assert len(answer_from_row(row).instances) == chosen.sum()
    steps = numbers_of_steps(whole)
    assert len(steps) == 4 and steps[0]["learner/ratio_max"] == pytest.approx(1.0, abs=0.05)
    assert all(numbers["learner/sampler_logprob_difference_max"] < 1e-4 for numbers in steps)
    # The same first steps whatever is still to come.
    for one, other in zip(steps, numbers_of_steps(stopped), strict=False):
        assert one["learner/grad_norm"] == other["learner/grad_norm"] > 0


def teach(config: SftConfig) -> int:
    run_sft(config, Console(quiet=True))
    return 0


def test_choices_are_taught_to_a_new_model_of_all_words_and_the_new_part_is_in_the_folder(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    stage = "sft.stages=[{name: choices, steps: 12, lr: 3.0e-3, with_absent: true}]"
    small = ["sft.scenes_per_step=4", "sft.evaluate_every=6", "sft.evaluate_scenes=8", *POOLS]
    sizes = "image_size: 32, text_width: 32, text_layers: 2, text_heads: 2, vision_width: 16, vision_layers: 2"
    named = [f"run={tmp_path / 'run'}", f"tiny={{{sizes}, vision_heads: 2, begin_from: {tiny_untrained}}}", stage]
    assert apart(teach, load_settings(SftConfig, Path("sft_groups"), [*named, *small])) == 0
    curve = [line.split("\t") for line in (tmp_path / "run/curve.tsv").read_text().splitlines()]
    losses = [float(dict(zip(curve[0], line, strict=True))["loss"]) for line in curve[1:]]
    assert len(losses) == 2 and losses[-1] < np.log(2)  # less than choosing by a coin
    taught = Policy(tmp_path / "run/policy", Codec())
    assert taught.model.selection.classifier.weight.abs().max() > 0
    # It has the words of every question, and those of outlines are gone.
    words = taught.processor.tokenizer.get_vocab()
    assert {"everything", "largest", "fruit", "same", "but", "left", "pear"} <= words.keys() and "37" not in words
    untaught = Policy(tiny_untrained, Codec()).model.selection.reference_prefix.weight
    assert not torch.equal(taught.model.selection.reference_prefix.weight, untaught)  # some questions show a mask


def train_and_evaluate(folder: Path, port: int, overrides: list[str]) -> None:
    run_here(folder, port, overrides)
    config = settings(folder, *overrides)
    assert not evaluate.lacks_refiner(config)
    evaluate.WorkerPool = lambda *_: LocalPool(config, run_parts(config))
    evaluate.cluster = SimpleNamespace(start=lambda *_: None, stop=lambda: None)
    with JobUsage() as usage:
        evaluate.evaluate(config, Console(quiet=True), usage)


def test_a_run_that_chooses_is_evaluated_without_a_refiner(tiny_untrained: Path, tmp_path: Path) -> None:
    small = overrides(tiny_untrained, "steps=2", "evaluation.final_scenes=6", "evaluation.control=null")
    assert apart(train_and_evaluate, tmp_path / "run", free_port(), small) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert {"sft", "rl"} <= summary["stages"].keys() and "refined" not in summary["stages"] and "refiner" not in summary
    assert not (tmp_path / "run/refiner").exists() and not (tmp_path / "run/refiner.html").exists()
    assert "after RL" in (tmp_path / "run/report.html").read_text()
    # Outlines are still refined.
    assert evaluate.lacks_refiner(settings(tmp_path / "other", f"policy.checkpoint={tiny_untrained}"))


def test_written_numbers_are_taught_and_go_through_the_same_loop(tiny_untrained: Path, tmp_path: Path) -> None:
    stage = "sft.stages=[{name: numbers, steps: 60, lr: 1.0e-2, with_absent: true}]"
    small = ["sft.scenes_per_step=4", "sft.evaluate_every=30", "sft.evaluate_scenes=8", *POOLS]
    named = [f"run={tmp_path / 'taught'}", f"policy.checkpoint={tiny_untrained}", stage, "learner.threads=1"]
    assert apart(teach, load_settings(SftConfig, Path("sft_groups_written"), [*named, *small])) == 0
    curve = [line.split("\t") for line in (tmp_path / "taught/curve.tsv").read_text().splitlines()]
    last = dict(zip(curve[0], curve[-1], strict=True))
    assert float(last["loss"]) < 2.6  # a token of the whole vocabulary has 5
    written = ["codec={name: mask_numbers}", "policy.name=mask_numbers", "pool.engine={name: shared}"]
    more = [*POOLS, *written, f"policy.checkpoint={tmp_path / 'taught/policy'}", "steps=2", "sampling.max_tokens=9"]
    assert apart(run_here, tmp_path / "run", free_port(), more) == 0
    rows = [row for batch in RolloutArchive(tmp_path / "run/archive").rollouts() for row in batch.to_pylist()]
    assert len(rows) == 2 * 2 * 3 and {"ok"} <= {row["status"] for row in rows}
    for row in rows:
        numbers = numbers_of(row["text"])
        if row["status"] in ("ok", "empty"):
            assert len(answer_from_row(row).instances) == len(numbers) and row["finish"] == "stop"
        else:
            assert not len(answer_from_row(row).instances)
    for numbers in numbers_of_steps(tmp_path / "run"):
        assert numbers["learner/sampler_logprob_difference_max"] < 1e-4 and numbers["learner/grad_norm"] > 0


def test_engine_policy_and_data_that_do_not_fit_are_refused_before_the_start(
    tiny_untrained: Path, tmp_path: Path
) -> None:
    def look(*more: str) -> None:
        config = settings(tmp_path / "run", *overrides(tiny_untrained, *more))
        names = {"policy.name=vision_language": PlainPolicy, "policy.name=mask_numbers": mask_numbers.Policy}
        family = next((names[each] for each in more if each in names), Policy)
        parts = run_parts(config)
        refuse_unfit_pools(config, parts, family.make_processor(tiny_untrained, parts.codec.build()))

    look()
    with pytest.raises(ValueError, match=r"^policy\.name is mask_selection, which chooses .* pool\.engine shared"):
        look("pool.engine={name: shared}")
    with pytest.raises(ValueError, match=r"^pool\.engine is direct, and policy\.name vision_language writes a token"):
        look("policy.name=vision_language", "codec={name: path_tokens}")
    with pytest.raises(ValueError, match=r"has no candidates to choose from; set env\.candidates"):
        look("env.candidates=null")
    with pytest.raises(
        ValueError, match=r"has \d candidates, .* sampling\.max_tokens allows 4; set that to \d or more"
    ):
        look("sampling.max_tokens=4")
    with pytest.raises(ValueError, match=r"^sampling\.grammar is true, and pool\.engine direct writes nothing"):
        look("sampling.grammar=true")
    written = ["policy.name=mask_numbers", "codec={name: mask_numbers}"]
    look(*written, "pool.engine={name: shared}", "sampling.max_tokens=9")
    with pytest.raises(ValueError, match=r"has 8 candidates, and an answer about them 9 places, .* allows 8; set that"):
        look(*written, "pool.engine={name: shared}", "sampling.max_tokens=8")
    with pytest.raises(
        ValueError, match=r"^pool\.engine is direct, and policy\.name mask_numbers writes a token after"
    ):
        look(*written)
