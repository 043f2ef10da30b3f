"""One token through the layers in few calls: where the weights lie, how it rounds, how many calls it makes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask_all
from test_vision_language import PHRASES, write_internvl, write_llava, write_qwen2_5_vl
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from envs.codecs.path_tokens import Codec
from policies.families.vision_language import Policy
from policies.settings import LoraSettings
from policies.sharing.decoder import normed
from policies.sharing.joined import JoinedMaps, join
from policies.sharing.prompt_cache import PromptCache
from policies.weights import bucket_names, held_checksum, load_bucket, make_bucket

VIEWS = {
    *("view", "transpose", "unsqueeze", "squeeze", "slice", "select", "expand", "as_strided", "split"),
    *("split_with_sizes", "t", "_unsafe_view", "detach", "alias", "permute", "chunk", "reshape"),
}


class Calls(TorchDispatchMode):
    """Counts operations that compute or copy; views cost no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def decoded(policy: Policy, tokens: int, calls: Calls | None = None) -> torch.Tensor:
    """Log-probabilities behind the last of a few tokens of 2 x 3 answers."""
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    rows = policy.rows(ask_all(images, PHRASES), [[np.array([policy.processor.end_token])]] * 2)
    with torch.no_grad():
        prompts = policy.encode(rows)
        cache = PromptCache(prompts, 3, 8)
        last = prompts.last_tokens[:, None].expand(2, 3).contiguous()
        for k in range(tokens):
            if calls is not None and k == tokens - 1:
                with calls:
                    return policy.decode(cache, last, 1.0)
            found = policy.decode(cache, last, 1.0)
            last = found.argmax(-1).view(2, 3)
    return found.clamp(min=-100.0)  # some cannot be sampled


def layer_calls(policy: Policy) -> tuple[int, int]:
    """Operations of one token in one layer, and of one token outside the layers; of models of two equal layers."""
    text = policy.model.model.language_model
    counts = []
    for num in (2, 1):
        text.layers = text.layers[:num]
        text.config.num_hidden_layers = num
        calls = Calls()
        decoded(policy, 2, calls)
        counts.append(sum(calls.counts.values()))
    return counts[0] - counts[1], 2 * counts[1] - counts[0]


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    write_qwen2_5_vl(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("dtype", "most"), [("float32", 35), ("bfloat16", 40)])
def test_a_token_of_qwen2_5_takes_at_most_35_operations_a_layer_and_15_beside_them(
    grouped: Path, dtype: str, most: int
) -> None:
    policy = Policy(grouped, Codec(), dtype=dtype).eval()
    policy.prepare_sampling()
    layer, beside = layer_calls(policy)  # norms are 6 on a CPU, 8 in bfloat16, and 1 or 2 on a GPU
    assert layer <= most
    assert beside <= 20


@pytest.mark.parametrize(("dtype", "most"), [("float32", 43), ("bfloat16", 50)])
def test_a_token_of_qwen3_takes_at_most_43_operations_a_layer(tiny_untrained: Path, dtype: str, most: int) -> None:
    policy = Policy(tiny_untrained, Codec(), dtype=dtype).eval()
    policy.prepare_sampling()
    assert layer_calls(policy)[0] <= most


@pytest.mark.parametrize("family", [LlamaRMSNorm, Qwen2_5_VLRMSNorm, Qwen3VLTextRMSNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_low_precision_are_the_familys_own_to_the_last_bit(family: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, hidden = family(64).to(dtype), (3 * torch.randn(1000, 64)).to(dtype)
    norm.weight.data.normal_()
    with torch.no_grad():
        assert (normed(norm, hidden) != norm(hidden)).sum() == 0


@pytest.mark.parametrize("family", [LlamaRMSNorm, Qwen2_5_VLRMSNorm, Qwen3VLTextRMSNorm])
def test_norms_in_float32_differ_from_the_familys_own_by_a_last_bit_at_most(family: Any) -> None:
    torch.manual_seed(0)
    norm, hidden = family(64), 3 * torch.randn(1000, 64)
    norm.weight.data.normal_()
    with torch.no_grad():
        expected = norm(hidden)
        assert ((normed(norm, hidden) - expected).abs() / expected.abs()).max() <= 2.0**-22


def maps(*sizes: int, bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(16, size, bias=bias) for size in sizes]


@pytest.mark.parametrize("bias", [False, True])
def test_joined_maps_are_one_product_of_the_same_values_and_hold_nothing_twice(bias: bool) -> None:
    made, inputs = maps(8, 4, 4, bias=bias), torch.randn(5, 16)
    before = [parameter.detach().clone() for each in made for parameter in each.parameters()]
    apart = JoinedMaps(made)
    expected = apart(inputs)
    join(made)
    together = JoinedMaps(made)
    assert (apart.is_joined, together.is_joined) == (False, True)
    after = [parameter for each in made for parameter in each.parameters()]
    assert all(torch.equal(old, new) and new.is_contiguous() for old, new in zip(before, after, strict=True))
    assert len({each.weight.untyped_storage().data_ptr() for each in made}) == 1
    torch.testing.assert_close(together(inputs), expected, atol=1e-6, rtol=1e-6)


def test_a_weight_that_is_written_later_is_in_the_product_at_once_and_one_that_moves_parts_them() -> None:
    made, inputs = maps(8, 4), torch.randn(5, 16)
    join(made)
    together = JoinedMaps(made)
    with torch.no_grad():
        made[1].weight.fill_(1.0)
    torch.testing.assert_close(together(inputs)[:, 8:], inputs.sum(1, keepdim=True).expand(-1, 4))
    made[0].weight.data = made[0].weight.data.clone()
    assert not JoinedMaps(made).is_joined


@pytest.mark.parametrize("write", [write_qwen2_5_vl, write_llava, write_internvl])
def test_weights_laid_out_for_sampling_prove_as_before_and_new_ones_are_sampled_by(tmp_path: Path, write: Any) -> None:
    write(tmp_path)
    policy, other = Policy(tmp_path, Codec()).eval(), Policy(tmp_path, Codec()).eval()
    checksum, apart = held_checksum(policy.model), decoded(policy, 4)
    policy.prepare_sampling()
    assert held_checksum(policy.model) == checksum
    torch.testing.assert_close(decoded(policy, 4), apart, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    expected = decoded(other, 4)
    assert (expected - apart).abs().max() > 0.1
    for part in bucket_names(other.model):
        load_bucket(policy.model, make_bucket(part))
    torch.testing.assert_close(decoded(policy, 4), expected, atol=1e-5, rtol=1e-5)
    assert held_checksum(policy.model) == held_checksum(other.model)


def test_layers_with_adapters_are_called_as_they_are(tiny_untrained: Path) -> None:
    policy = Policy(tiny_untrained, Codec(), lora=LoraSettings(rank=2)).eval()
    plain = decoded(policy, 3)
    policy.prepare_sampling()
    assert torch.equal(decoded(policy, 3), plain)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    assert (decoded(policy, 3) - plain).abs().max() > 0.1
