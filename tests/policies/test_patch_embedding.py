import pytest
import torch
from torch import nn

from policies.vision.patch_embedding import PatchEmbedding


def conv(bias: bool) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(3, 24, kernel_size=(2, 4, 4), stride=(2, 4, 4), bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_patch_is_embedded_as_by_the_convolution(bias: bool) -> None:
    plain = conv(bias)
    ours = PatchEmbedding.in_place_of(plain)
    patches = torch.randn(5, 3, 2, 4, 4)
    expected, found = plain(patches), ours(patches)
    assert found.shape == expected.shape == (5, 24, 1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    slopes = torch.randn_like(found)
    (of_plain,) = torch.autograd.grad(expected, [plain.weight], slopes)
    (of_ours,) = torch.autograd.grad(found, [ours.weight], slopes)
    torch.testing.assert_close(of_ours, of_plain, rtol=1e-5, atol=1e-5)


def test_the_parameters_are_the_same_objects_under_the_same_names() -> None:
    plain = conv(True)
    ours = PatchEmbedding.in_place_of(plain)
    assert dict(ours.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    assert ours.weight is plain.weight and ours.bias is plain.bias


def test_a_patch_of_ones_by_hand() -> None:
    ours = PatchEmbedding.in_place_of(conv(True))
    with torch.no_grad():
        ours.weight.fill_(0.5)
        assert ours.bias is not None
        ours.bias.fill_(1.0)
    assert ours(torch.ones(1, 3, 2, 4, 4)).flatten().tolist() == [0.5 * 96 + 1] * 24
