"""Windows and images attended in few calls, with the very numbers of a call each."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_vision_language import write_qwen2_5_vl
from torch import Tensor

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.sharing import varlen
from policies.sharing.varlen import Pairs
from policies.vision import attention as vision_attention


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


def test_a_pass_of_the_tower_reads_where_stretches_lie_once_for_each_kind_of_block(
    windowed: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, looked_up = vision_attention.Stretches, []

    def counting(bounds: Tensor) -> vision_attention.Stretches:
        looked_up.append(bounds.tolist())
        return plain(bounds)

    monkeypatch.setattr(vision_attention, "Stretches", counting)
    windowed.vision_features(pictures((32, 32)))  # 8 x 8 patches in four windows; the second block sees all
    assert sorted(looked_up) == [[0, 16, 32, 48, 64], [0, 64]]
    windowed.vision_features(pictures((32, 32), (32, 32)))
    assert len(looked_up) == 4


def test_bounds_are_told_apart_by_what_they_are_and_not_by_what_they_hold() -> None:
    bounds = torch.tensor([0, 2, 5])
    found = vision_attention.stretches_of(bounds)
    assert found is vision_attention.stretches_of(bounds) and found.by_length == {2: [0], 3: [2]}
    assert vision_attention.stretches_of(bounds.clone()) is not found
    assert vision_attention.stretches_of(torch.tensor([0, 0, 5])).by_length == {5: [0]}


def test_in_half_precision_on_a_gpu_one_call_takes_all_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a loop in the kernel's place, since only GPUs have it."""
    calls = []

    def looped(query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, scale: float | None) -> Tensor:
        calls.append((pairs.query_bounds.dtype, pairs.most_queries, pairs.most_keys, pairs.causal))
        found = [
            torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) * scale).softmax(-1), v)
            for q, k, v in (
                (query[first:end], key[first:end], value[first:end])
                for first, end in pairwise(pairs.query_bounds.tolist())
            )
        ]
        return torch.cat(found)

    parts = [torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(3)]
    bounds = torch.tensor([0, 4, 4, 6, 9])
    expected, _ = vision_attention.attend(None, *parts, None, bounds, scaling=0.3)
    monkeypatch.setattr(varlen, "attended", looped)
    monkeypatch.setattr(varlen, "fits", lambda *_: True)
    found, _ = vision_attention.attend(None, *parts, None, bounds, scaling=0.3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert calls == [(torch.int32, 4, 4, False)]


def test_the_kernel_is_for_gpus_half_precision_and_heads_of_its_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert varlen.fits(gpu, torch.bfloat16, 80) and varlen.fits(gpu, torch.float16, 256)
    assert not varlen.fits(cpu, torch.bfloat16, 80) and not varlen.fits(gpu, torch.float32, 80)
    assert not varlen.fits(gpu, torch.bfloat16, 36) and not varlen.fits(gpu, torch.bfloat16, 264)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not varlen.fits(gpu, torch.bfloat16, 80)
