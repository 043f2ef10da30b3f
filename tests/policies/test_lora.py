"""Adapters as learner and workers hold them; peft's own merge and plain forward passes are the oracles."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask_all
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from envs.codecs.path_tokens import Codec
from policies.families.base import PromptRows
from policies.families.vision_language import Policy
from policies.lora import plain_name, pushed
from policies.settings import LoraSettings
from policies.weights import (
    Bucket,
    bucket_checksum,
    bucket_names,
    held_checksum,
    is_adapter,
    load_bucket,
    make_bucket,
    shape_of,
)
from rl.config.load import load_settings, save_settings
from rl.config.run import RunConfig
from rl.run.parts import run_parts, worker_settings

LORA = LoraSettings(rank=3, alpha=8.0)
BUCKET_BYTES = 20_000
"""A few layers of the tiny model."""


def learned(checkpoint: Path, lora: LoraSettings = LORA, dtype: str = "float32") -> Policy:
    """A policy whose adapters have moved."""
    policy = Policy(checkpoint, Codec(), dtype=dtype, lora=lora)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)
    return policy


def sent(policy: Policy, merged: bool) -> list[Bucket]:
    return [make_bucket([(w.name, w.value()) for w in part]) for part in pushed(policy.model, merged, BUCKET_BYTES)]


def rows_for(policy: Policy) -> PromptRows:
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    texts = [["1 2 30 40 0 0 5 5 0 5", "none"], ["7 8 9", "64 0"]]
    return policy.rows(
        ask_all(images, ["dog", "cat"]), [[policy.processor.answer_tokens(text) for text in row] for row in texts]
    )


def test_merged_weights_are_those_of_pefts_own_merge_and_leave_the_base_untouched_to_the_bit(
    tiny_untrained: Path,
) -> None:
    policy = learned(tiny_untrained)
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}
    targets = [name for name, _ in policy.model.named_modules() if f"{name}.base_layer.weight" in before]
    config = LoraConfig(r=LORA.rank, lora_alpha=8, target_modules=targets, bias="none")
    theirs = get_peft_model(Policy(tiny_untrained, Codec()).model, config)
    theirs.load_state_dict({f"base_model.model.{name}": value for name, value in before.items()}, strict=False)
    expected = dict(theirs.merge_and_unload().named_parameters())
    merged = {each.name: each.value() for part in pushed(policy.model, merged=True) for each in part}
    assert list(merged) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=1e-6)
    assert sum(
        not torch.equal(merged[plain_name(name)], before[name]) for name in before if not is_adapter(name)
    ) == len(targets)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.model.named_parameters())


def test_a_worker_without_adapters_takes_merged_weights_and_speaks_as_the_learner(tiny_untrained: Path) -> None:
    policy, worker = learned(tiny_untrained), Policy(tiny_untrained, Codec())
    buckets = sent(policy, merged=True)
    parts = list(bucket_names(worker.model, BUCKET_BYTES))
    assert [bucket.shape.names for bucket in buckets] == [tuple(name for name, _ in part) for part in parts]
    assert len(buckets) > 3
    rows = rows_for(policy)
    before = worker(rows)
    for bucket in buckets:
        load_bucket(worker.model, bucket)
    torch.testing.assert_close(worker(rows), policy(rows), rtol=0, atol=1e-5)
    assert (worker(rows) - before).abs().max() > 0.1
    assert [shape_of(part) for part in parts] == [bucket.shape for bucket in buckets]
    assert held_checksum(worker.model) == bucket_checksum(buckets)


def test_a_worker_with_adapters_takes_these_alone_proves_them_and_speaks_as_the_learner(tiny_untrained: Path) -> None:
    policy, worker = learned(tiny_untrained), Policy(tiny_untrained, Codec(), lora=LORA)
    buckets = sent(policy, merged=False)
    names = [name for bucket in buckets for name in bucket.shape.names]
    assert names and all(is_adapter(name) for name in names)
    whole = sum(len(bucket.data) for bucket in sent(policy, merged=True))
    assert sum(len(bucket.data) for bucket in buckets) < whole / 2
    assert held_checksum(worker.model) != held_checksum(policy.model)
    for bucket in buckets:
        load_bucket(worker.model, bucket)
    assert held_checksum(worker.model) == bucket_checksum(buckets)
    rows = rows_for(policy)
    torch.testing.assert_close(worker(rows), policy(rows), rtol=0, atol=1e-5)


def test_a_policy_begins_as_what_it_was_and_only_its_adapters_learn(tiny_untrained: Path) -> None:
    adapted, plain = Policy(tiny_untrained, Codec(), lora=LORA), Policy(tiny_untrained, Codec())
    rows = rows_for(plain)
    assert torch.equal(adapted(rows), plain(rows))
    named = dict(adapted.model.named_parameters())
    assert {name for name, parameter in named.items() if parameter.requires_grad} == {n for n in named if is_adapter(n)}
    tower = [name for name, _ in adapted.vision_tower.named_parameters() if is_adapter(name)]
    assert not tower and not any("lm_head.lora" in name for name in named)
    # Seven linear layers of each of two text layers, A and B of each.
    assert sum(is_adapter(name) for name in named) == 28


def test_targets_are_the_ends_of_names_also_in_the_vision_tower(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec(), lora=LoraSettings(rank=2, targets=["q_proj", "visual.merger.linear_fc1"]))
    layers = {re.sub(r"\.lora_.*", "", name) for name, _ in policy.model.named_parameters() if is_adapter(name)}
    assert layers == {
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.1.self_attn.q_proj",
        "model.visual.merger.linear_fc1",
    }
    with pytest.raises(ValueError, match=r"names 'proj_q', but no linear layer's name ends so; there are .*q_proj"):
        Policy(tiny_untrained, Codec(), lora=LoraSettings(targets=["proj_q"]))


def test_in_bfloat16_a_merge_is_rounded_once(tiny_untrained: Path) -> None:
    policy = learned(tiny_untrained, dtype="bfloat16")
    weights = [each for part in pushed(policy.model, merged=True) for each in part if each.up is not None]
    assert weights
    for each in weights:
        assert each.up is not None and each.down is not None
        exact = each.parameter.double() + each.scale * (each.up.double() @ each.down.double())
        assert each.value().dtype == torch.bfloat16
        # Half a step of bfloat16, whose significand has 8 bits, and what float32 adds to it.
        assert ((each.value().double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-6).all()


def test_what_is_saved_by_merged_weights_is_an_ordinary_folder(tiny_untrained: Path, tmp_path: Path) -> None:
    policy = learned(tiny_untrained)
    policy.save(tmp_path, {each.name: each.value() for part in pushed(policy.model, merged=True) for each in part})
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tiny_untrained / "model.safetensors").keys()
    rows = rows_for(policy)
    torch.testing.assert_close(Policy(tmp_path, Codec())(rows), policy(rows), rtol=0, atol=1e-5)


def test_a_run_reads_its_adapters_from_yaml_and_workers_build_them_where_they_travel_alone(tmp_path: Path) -> None:
    lora = "learner.lora={rank: 4, targets: [q_proj, v_proj], push: adapters}"
    config = load_settings(RunConfig, Path("tiny"), [f"run={tmp_path}", "learner.average=0", lora])
    assert config.learner.lora == LoraSettings(rank=4, targets=["q_proj", "v_proj"], push="adapters")
    save_settings(config, tmp_path / "config.yaml")
    assert load_settings(RunConfig, tmp_path / "config.yaml") == config
    parts = run_parts(config)
    assert worker_settings(config, parts).policy.settings["lora"] == config.learner.lora
    config.learner.lora.push = "merged"
    assert "lora" not in worker_settings(config, parts).policy.settings
    with pytest.raises(ValueError, match=r"^learner\.lora\.rnk is not a setting"):
        load_settings(RunConfig, Path("tiny"), ["learner.lora={rnk: 4}"])
    with pytest.raises(ValueError, match=r"learner\.average is 0\.9 with learner\.lora"):
        load_settings(RunConfig, Path("tiny"), ["learner.average=0.9", "learner.lora={}"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; set it to more than 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"push": "both"}, "push is 'both'"),
        ({"targets": "q_proj"}, r"targets is 'q_proj'; give all-linear or a list"),
        ({"targets": []}, r"targets is \[\]"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraSettings(**wrong)
