"""Image tokens of a frozen tower, computed once for several passes, to the bit."""

from pathlib import Path

import pytest
import torch
from test_vision_language import shared_rows, write_llava, write_qwen2_5_vl

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.vision.image_memory import ImageMemory


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl", "llava"])
def folder(request: pytest.FixtureRequest, tiny_untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "qwen3_vl":
        return tiny_untrained
    folder = tmp_path_factory.mktemp(request.param)
    {"qwen2_5_vl": write_qwen2_5_vl, "llava": write_llava}[request.param](folder)
    return folder


def frozen(folder: Path) -> tuple[Policy, list[int]]:
    """A policy with a frozen tower, and how many patches it is shown at a time."""
    policy = Policy(folder, Codec(), question="find {phrase}").train()
    policy.vision_tower.requires_grad_(False)
    shown: list[int] = []
    tower = policy.model.model.vision_tower if "llava" in policy.model.config.model_type else policy.vision_tower
    tower.register_forward_pre_hook(lambda _, inputs, named: shown.append(1), with_kwargs=True)
    return policy, shown


def test_passes_of_one_key_show_images_once_and_give_the_same_numbers_and_gradients_to_the_bit(folder: Path) -> None:
    (plain, _), (policy, shown) = frozen(folder), frozen(folder)
    rows, memory = shared_rows(policy), ImageMemory()
    policy.remember_images(memory)
    expected = plain(rows)
    expected.sum().backward()
    with torch.no_grad(), memory.at("rows"):
        assert torch.equal(policy(rows), expected)
    held = memory.bytes
    with memory.at("rows"):
        found = policy(rows)
    found.sum().backward()
    assert torch.equal(found, expected) and shown == [1]
    for (name, one), other in zip(policy.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    assert 0 < held == memory.bytes
    memory.forget("rows")
    assert memory.bytes == 0
    policy(rows)
    with memory.at("rows"):
        policy(rows)
    assert shown == [1, 1, 1]


def test_what_is_above_the_limit_is_not_kept(tiny_untrained: Path) -> None:
    policy, shown = frozen(tiny_untrained)
    rows, memory = shared_rows(policy), ImageMemory(most_bytes=1)
    policy.remember_images(memory)
    with torch.no_grad(), memory.at("rows"):
        assert torch.equal(policy(rows), policy(rows))
    assert (memory.bytes, shown) == (0, [1, 1])
