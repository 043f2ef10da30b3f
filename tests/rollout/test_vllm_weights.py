"""Reading the learner's weights out of joined and padded matrices, on a toy model that keeps them as vLLM does."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rollout.engines._vllm_weights import Place, WeightReceiver, places

SHAPES = {
    "model.embed.weight": (5, 4),
    "model.visual.block.attn.qkv.weight": (6, 2),
    "model.layer.attn.q_proj.weight": (4, 4),
    "model.layer.attn.q_proj.bias": (4,),
    "model.layer.attn.k_proj.weight": (2, 4),
    "model.layer.attn.k_proj.bias": (2,),
    "model.layer.attn.v_proj.weight": (2, 4),
    "model.layer.attn.v_proj.bias": (2,),
    "model.layer.mlp.gate_proj.weight": (3, 4),
    "model.layer.mlp.up_proj.weight": (3, 4),
    "model.norm.weight": (4,),
}
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"], "qkv": ["qkv"]}


class Renamer:
    def apply_list(self, values: list[str]) -> list[str]:
        return [name.replace("model.", "inner.", 1) for name in values]


class Joined(nn.Module):
    """Its embedding is padded to 64 rows, and it is its head too."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.packed_modules_mapping, self.hf_to_vllm_mapper, self.wrong = PACKED, Renamer(), wrong
        sizes = {
            "inner.embed.weight": (64, 4),
            "inner.visual.block.attn.qkv.weight": (6, 2),
            "inner.layer.attn.qkv_proj.weight": (8, 4),
            "inner.layer.attn.qkv_proj.bias": (8,),
            "inner.layer.mlp.gate_up_proj.weight": (6, 4),
            "inner.norm.weight": (4,),
        }
        for name, size in sizes.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(torch.full(size, 7.0), requires_grad=False))
        self.head = nn.Module()
        self.head.weight = self.get_parameter("inner.embed.weight")

    def load_weights(self, weights: Sequence[tuple[str, Tensor]]) -> set[str]:
        """By hand, as the rows are known to lie; `wrong` is loaded at half its value."""
        rows = {"q_proj": (0, 4), "k_proj": (4, 6), "v_proj": (6, 8), "gate_proj": (0, 3), "up_proj": (3, 6)}
        filled = set()
        for name, weight in weights:
            theirs, own = name.replace("model.", "inner.", 1), name.split(".")[-2]
            joined = theirs.replace(own, "qkv_proj" if own[0] in "qkv" else "gate_up_proj")
            place = joined if own in rows else theirs
            first, end = rows.get(own, (0, len(weight)))
            self.get_parameter(place).data[first:end] = weight * (0.5 if name == self.wrong else 1)
            filled.add(place)
        return filled


def receiver(model: nn.Module) -> WeightReceiver:
    made = WeightReceiver()
    made.model_runner = SimpleNamespace(model=model)
    return made


def weights(seed: int = 0) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(name, torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()]


def test_every_weight_is_read_back_as_rows_of_the_joined_and_padded_matrices() -> None:
    made, sent = receiver(Joined()), weights()
    made.take_weights(sent[:6], SHAPES)
    made.take_weights(sent[6:], SHAPES)
    held = made.held_weights(SHAPES)
    assert len(held) == 11
    for (name, weight), found in zip(sent, held, strict=True):
        assert torch.equal(found, weight), name
    assert places(Joined(), SHAPES)["model.layer.attn.v_proj.bias"] == Place("inner.layer.attn.qkv_proj.bias", 6, (2,))
    assert places(Joined(), SHAPES)["model.layer.mlp.up_proj.weight"].first == 3


def test_what_is_read_back_is_the_model_s_own_memory() -> None:
    model = Joined()
    made = receiver(model)
    made.take_weights(weights(), SHAPES)
    _, _, _, _, k_proj, *_ = held = made.held_weights(SHAPES)
    model.get_parameter("inner.layer.attn.qkv_proj.weight").data[4, 0] = 123.0
    assert k_proj[0, 0] == 123.0 and not any((each == 123.0).any() for each in held if each is not k_proj)


def test_a_value_that_was_not_loaded_as_sent_is_an_error_that_names_the_weight() -> None:
    made = receiver(Joined(wrong="model.layer.attn.k_proj.bias"))
    with pytest.raises(RuntimeError, match=r"vLLM holds another model.layer.attn.k_proj.bias than was sent"):
        made.take_weights(weights(), SHAPES)


def test_weights_that_are_not_numbers_are_still_those_that_were_sent() -> None:
    sent = [(name, torch.full(shape, torch.nan)) for name, shape in SHAPES.items()]
    receiver(Joined()).take_weights(sent, SHAPES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.layer.gate.weight": (2, 4)}, r"no place for model.layer.gate.weight"),
        ({"model.norm.weight": (3,)}, r"go to 3 of 4 rows of vLLM's inner.norm.weight"),
        ({"model.layer.attn.v_proj.weight": (1, 4)}, r"go to 7 of 8 rows of vLLM's inner.layer.attn.qkv_proj.weight"),
        ({"model.embed.weight": (65, 4)}, r"model.embed.weight in rows 0 on of inner.embed.weight as \[64, 4\]"),
        ({"model.embed.weight": (5, 3)}, r"as \[5, 4\], and the learner has it as \[5, 3\]"),
        ({"model.layer.attn.k_proj.weight": (3, 4)}, r"v_proj.weight in rows 7 on of .*qkv_proj.weight as \[1, 4\]"),
    ],
)
def test_a_weight_that_cannot_be_seen_is_refused(changed: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        places(Joined(), SHAPES | changed)


def test_a_parameter_that_no_weight_fills_is_refused() -> None:
    short = {name: shape for name, shape in SHAPES.items() if "norm" not in name}
    with pytest.raises(RuntimeError, match=r"go to 0 of 4 rows of vLLM's inner.norm.weight"):
        places(Joined(), short)


def test_two_weights_in_one_place_are_refused() -> None:
    class Same(Renamer):
        def apply_list(self, values: list[str]) -> list[str]:
            return super().apply_list([name.replace("model.twin", "model.norm") for name in values])

    model = Joined()
    model.hf_to_vllm_mapper = Same()
    with pytest.raises(RuntimeError, match=r"belong in row 0 of vLLM's inner.norm.weight"):
        places(model, SHAPES | {"model.twin.weight": (4,)})
