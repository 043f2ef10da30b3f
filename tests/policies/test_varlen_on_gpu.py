"""The flash kernel for stretches on a GPU against attention in float32, forward and backward."""

from types import SimpleNamespace

import pytest
import torch
from test_shared_attention import packed_rows
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from policies.sharing import varlen
from policies.sharing.attention import Heads, attend, inputs
from policies.sharing.packing import PackedRows
from policies.vision import attention as vision_attention

pytestmark = pytest.mark.gpu
WIDTH = 64
NEAR = 2e-2
"""Of numbers near 1 in bfloat16, whose rounding is 4e-3."""


def made(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape)))


def close(found: Tensor, expected: Tensor) -> None:
    difference = (found.float() - expected).norm() / expected.norm()
    assert difference < NEAR, difference


def test_stretches_of_a_tower_are_attended_each_by_itself() -> None:
    bounds = torch.tensor([0, 64, 64, 96, 150], device="cuda")
    precise = [made(1, 4, 150, 80).requires_grad_() for _ in range(3)]
    half = [x.detach().bfloat16().requires_grad_() for x in precise]
    assert varlen.fits(half[0].device, half[0].dtype, 80)
    expected, _ = vision_attention.attend(None, *precise, None, bounds, scaling=0.1)
    found, _ = vision_attention.attend(None, *half, None, bounds, scaling=0.1)
    close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.float().square().sum(), half),
        torch.autograd.grad(expected.square().sum(), precise),
        strict=True,
    ):
        close(one, other)


def on_gpu(packed: PackedRows) -> PackedRows:
    return PackedRows(**{name: x.cuda() if isinstance(x, Tensor) else x for name, x in vars(packed).items()})


@pytest.mark.parametrize("queries_a_head", [1, 7])
def test_packed_rows_are_attended_as_by_a_mask_of_the_whole(queries_a_head: int) -> None:
    packed = on_gpu(packed_rows([70, 33], [[40, 25, 3], [17, 40, 9]]))
    b, length = packed.tokens.shape
    precise = [made(b, heads, length, WIDTH).requires_grad_() for heads in (2 * queries_a_head, 2, 2)]
    half = [x.detach().bfloat16().requires_grad_() for x in precise]
    asked = inputs(packed, Heads(queries_a_head, WIDTH, torch.bfloat16))
    found, _ = attend(SimpleNamespace(), *half, None, layout=asked["layout"], scaling=0.1)
    repeated = [x.repeat_interleave(queries_a_head, 1) for x in precise[1:]]
    expected = scaled_dot_product_attention(precise[0], *repeated, attn_mask=packed.attends, scale=0.1).transpose(1, 2)
    real = torch.cat([packed.prompt_mask, packed.real], dim=1)
    close(found[real], expected[real])
    for one, other in zip(
        torch.autograd.grad(found[real].float().square().sum(), half),
        torch.autograd.grad(expected[real].square().sum(), precise),
        strict=True,
    ):
        close(one, other)


def test_no_layer_of_a_packed_row_waits_for_the_device() -> None:
    packed = on_gpu(packed_rows([70, 33], [[40, 25, 3], [17, 40, 9]]))
    layout = inputs(packed, Heads(1, WIDTH, torch.bfloat16))["layout"]
    parts = [made(2, 2, packed.tokens.shape[1], WIDTH).bfloat16().requires_grad_() for _ in range(3)]
    attend(SimpleNamespace(), *parts, None, layout=layout, scaling=0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(SimpleNamespace(), *parts, None, layout=layout, scaling=0.1)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
