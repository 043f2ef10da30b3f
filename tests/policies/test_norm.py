import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from policies.sharing.norm import RootMeanSquareNorm, _Norm, replace_norms


def both(width: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """transformers' norm with a random weight, and ours of the same."""
    torch.manual_seed(width)
    theirs = Qwen3VLTextRMSNorm(width, eps=1e-3).to(dtype)
    theirs.weight.data.normal_()
    holder = nn.Sequential(copy.deepcopy(theirs))
    replace_norms(holder)
    return theirs, holder[0]


def test_two_numbers_by_hand() -> None:
    norm = RootMeanSquareNorm(nn.Parameter(torch.tensor([2.0, 1.0])), eps=0.0)
    states = torch.tensor([[1.0, 7.0]], requires_grad=True)  # mean square 25
    found = norm(states)
    assert found.tolist() == [[pytest.approx(0.4), pytest.approx(1.4)]]
    found[0, 0].backward()  # d(2 a / r) / da = 2 (1 - a a / (2 r^2)) / r, / db = -2 a b / (2 r^3)
    assert states.grad is not None and norm.weight.grad is not None
    assert states.grad[0].tolist() == [pytest.approx(2 * (1 - 1 / 50) / 5), pytest.approx(-14 / 250)]
    assert norm.weight.grad.tolist() == [pytest.approx(0.2), 0.0]


def test_the_derivative_is_that_of_small_steps() -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(5, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda states, weight: _Norm.apply(states, weight, 1e-2), (states.requires_grad_(), weight.requires_grad_())
    )


@pytest.mark.parametrize("shape", [(2, 5, 128), (3, 7, 4, 32), (1, 16)])
def test_values_and_slopes_are_those_of_transformers_to_a_millionth(shape: tuple[int, ...]) -> None:
    theirs, ours = both(shape[-1])
    states = torch.randn(shape)
    mine, other = states.clone().requires_grad_(), states.clone().requires_grad_()
    slopes = torch.randn(shape)
    ours(mine).backward(slopes)
    theirs(other).backward(slopes)
    assert mine.grad is not None and other.grad is not None
    torch.testing.assert_close(ours(states), theirs(states), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_transformers_to_the_bit(dtype: torch.dtype) -> None:
    theirs, ours = both(64, dtype)
    states = torch.randn(9, 64).to(dtype)
    assert torch.equal(ours(states), theirs(states))


def test_slopes_that_lie_otherwise_than_the_states_give_the_same() -> None:
    _, ours = both(8)
    states = torch.randn(2, 5, 3, 8)
    slopes = torch.randn(2, 3, 5, 8)
    one, other = states.clone().requires_grad_(), states.clone().requires_grad_()
    ours(one).transpose(1, 2).backward(slopes)
    ours(other).backward(slopes.transpose(1, 2).contiguous())
    assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_one_array_of_the_states_size_is_kept_for_the_backward_pass() -> None:
    theirs, ours = both(128)
    kept = {"theirs": 0, "ours": 0}
    states = torch.randn(64, 128, requires_grad=True)
    for name, norm in (("theirs", theirs), ("ours", ours)):

        def count(tensor: torch.Tensor, name: str = name) -> torch.Tensor:
            kept[name] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            norm(states)
    assert kept["ours"] == 64 * 128 + 64 + 128
    assert kept["theirs"] > 2.9 * 64 * 128


def test_every_norm_of_a_model_is_replaced_and_keeps_its_parameter_and_its_name() -> None:
    model = nn.ModuleDict({"a": LlamaRMSNorm(4), "b": nn.Sequential(nn.Linear(4, 4), Qwen3VLTextRMSNorm(4))}).eval()
    before = dict(model.named_parameters())
    replace_norms(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
    assert [type(module) for module in (model["a"], model["b"][1])] == [RootMeanSquareNorm] * 2
    assert not model["a"].training


def test_the_embedded_model_has_no_other_norm_and_answers_as_before(tiny_untrained: Path) -> None:
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tiny_untrained, attn_implementation="sdpa").eval()
    ours = copy.deepcopy(plain)
    replace_norms(ours)
    assert not any(isinstance(module, Qwen3VLTextRMSNorm) for module in ours.modules())
    tokens = torch.from_numpy(np.random.default_rng(0).integers(20, 60, (2, 9)))
    with torch.no_grad():
        difference = (plain(input_ids=tokens).logits - ours(input_ids=tokens).logits).abs().max()
    assert float(difference) < 1e-5
