"""Windows and images attended in few calls, with the very numbers of a call each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_vision_language import write_qwen2_5_vl
from torch import Tensor

from envs.codecs.path_tokens import Codec
from policies import vision_attention
from policies.families.vision_language import Policy


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Windows of 16 px, four by four patches; its second block sees whole images."""
    folder = tmp_path_factory.mktemp("windowed")
    write_qwen2_5_vl(folder)
    return Policy(folder, Codec())


def pictures(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def passed(policy: Policy, images: list[NDArray[np.uint8]], attention: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of the tower, and the gradients of a sum of it."""
    tower = policy.vision_tower
    tower.config._attn_implementation = attention  # type: ignore[union-attr]
    try:
        patches, grid = policy.processor.patches(images)
        policy.zero_grad()
        found = tower(patches, grid_thw=grid).pooler_output
        (found * torch.arange(found.shape[1])).sum().backward()
    finally:
        tower.config._attn_implementation = vision_attention.NAME  # type: ignore[union-attr]
    return found.detach(), {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [[(96, 96)], [(56, 88)], [(32, 32), (96, 40), (32, 32)], [(8, 8)]])
def test_outputs_and_gradients_are_those_of_a_call_a_stretch(
    windowed: Policy, tiny_untrained: Path, sizes: list[tuple[int, int]]
) -> None:
    for policy in (windowed, Policy(tiny_untrained, Codec())):
        images = pictures(*sizes)
        (ours, ours_by_name), (plain, by_name) = (passed(policy, images, n) for n in (vision_attention.NAME, "sdpa"))
        assert torch.equal(ours, plain)
        for name, gradient in by_name.items():
            torch.testing.assert_close(ours_by_name[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)


def test_a_photo_takes_a_call_a_kind_of_window_and_not_one_a_window(
    windowed: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = vision_attention.scaled_dot_product_attention, []

    def counting(*inputs: Tensor, **settings: object) -> Tensor:
        calls.append(tuple(inputs[0].shape))
        return plain(*inputs, **settings)

    monkeypatch.setattr(vision_attention, "scaled_dot_product_attention", counting)
    windowed.vision_features(pictures((88, 72)))  # 22 x 18 patches: 30 windows of 16, 12, 8 and 4 patches or so
    of_windows = [shape for shape in calls if shape[2] < 22 * 18]
    assert sum(shape[0] * shape[2] for shape in of_windows) == 22 * 18
    assert len(of_windows) <= 4 and sum(shape[0] for shape in of_windows) == 30
    assert [shape for shape in calls if shape[2] == 22 * 18] == [(1, 2, 22 * 18, 8)]
