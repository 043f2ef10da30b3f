"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: W x becomes W x + (alpha / rank) B A x, and only A and B
learn.

peft puts its layers in the place of the model's own, so the model keeps its class: `...q_proj.weight` is then called
`...q_proj.base_layer.weight`, beside `...q_proj.lora_A.default.weight` and `...lora_B...`. B begins at zero, so the
policy begins as what it was. What travels to the workers is either one ordinary model (`push: merged`: a worker knows
nothing of adapters) or the adapters alone (`push: adapters`: a worker builds the same ones).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from policies.settings import ALL_LINEAR, LoraSettings
from policies.sharing.token_rows import ROWS, TokenRows
from policies.weights import BUCKET_BYTES, in_buckets, is_adapter, is_low_rank, travelling

log = logging.getLogger(__name__)

_HEADS = ("lm_head", "coord_decoder", "size_decoder")
_NAME = "default"
"""What peft calls a model's only adapter."""


def add_adapters(model: nn.Module, vision_tower: nn.Module, lora: LoraSettings) -> None:
    """Put adapters into `model`, in place; afterwards they alone require a gradient.

    Says where experts get none. Raises ValueError where a target is the end of no linear layer's name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and only a run with adapters needs it

    if experts := _experts(model, vision_tower):
        log.warning(
            "experts get no adapters: %d tensors such as %s stay as they are, and the layers around them learn",
            len(experts),
            experts[0],
        )
    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as int, and only ever divided
            lora_dropout=lora.dropout,
            target_modules=_target_names(model, vision_tower, lora.targets),
            bias="none",
        ),
        model,
        adapter_name=_NAME,
    )


def _experts(model: nn.Module, vision_tower: nn.Module) -> list[str]:
    """Names of the maps of all experts of a layer, which have an axis more than those of a linear layer."""
    of_tower = {id(parameter) for parameter in vision_tower.parameters()}
    # A convolution's weight has as many axes.
    others = of_tower | {id(each.weight) for each in model.modules() if isinstance(each, nn.Conv1d)}
    return [name for name, each in model.named_parameters() if each.ndim == 3 and id(each) not in others]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what it did before adapters were put in. Not for passes that are learned from."""
    layers = [layer for _, layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _target_names(model: nn.Module, vision_tower: nn.Module, targets: Any) -> list[str]:
    """Full names of the linear layers that get an adapter."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if targets == ALL_LINEAR:
        left_out = {id(module) for module in vision_tower.modules()}
        # A head shares its weights with the embedding in small models, and an adapter on one would part them.
        left_out |= {id(module) for name, module in linear.items() if name.split(".")[-1] in _HEADS}
        return [name for name, module in linear.items() if id(module) not in left_out]
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            ends = sorted({name.split(".")[-1] for name in linear})
            raise ValueError(
                f"learner.lora.targets names {target!r}, but no linear layer's name ends so; there are "
                f"{', '.join(ends)}."
            )
    return [name for name in linear if any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


@dataclass(frozen=True)
class Pushed:
    """One weight as it travels."""

    name: str
    """Name that the receiver calls the weight by."""
    parameter: nn.Parameter
    down: nn.Parameter | None = None
    """A [rank, in] of the adapter to merge; None where there is none."""
    up: nn.Parameter | None = None
    """B [out, rank]."""
    scale: float = 0.0
    rows: nn.Parameter | None = None
    """[K, width] what is added to the rows of some tokens; None where there is none."""
    tokens: Tensor | None = None
    """[K] int64: these tokens."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What must be whole for `value`."""
        return [part for part in (self.parameter, self.down, self.up, self.rows) if part is not None]

    @torch.no_grad()
    def value(self) -> Tensor:
        """The parameter itself, or a new tensor of it and its adapter, or of it and its rows: summed in float32,
        rounded once."""
        if self.rows is not None and self.tokens is not None:
            made = self.parameter.clone()
            made[self.tokens] = (made[self.tokens].float() + self.rows.float()).to(made.dtype)
            return made
        if self.down is None or self.up is None:
            return self.parameter
        delta = self.up.float() @ self.down.float()
        return torch.add(self.parameter.float(), delta, alpha=self.scale).to(self.parameter.dtype)


def pushed(model: nn.Module, merged: bool, bucket_bytes: int = BUCKET_BYTES) -> Iterator[list[Pushed]]:
    """What a learner's `model` sends, cut into buckets as the receiver will count them.

    merged: whether adapters go into the weights they belong to, so that names, order and sizes are the plain model's;
    else they alone are sent where there are any, and everything where there are none.
    """
    if not merged:
        yield from ([Pushed(*named) for named in part] for part in in_buckets(travelling(model), bucket_bytes))
        return
    adapters = {
        f"{name}.base_layer.weight": (module.lora_A[_NAME].weight, module.lora_B[_NAME].weight, module.scaling[_NAME])
        for name, module in _adapted(model)
    }
    base = [(name, parameter) for name, parameter in model.named_parameters() if not is_adapter(name)]
    rows = _rows(model)
    for part in in_buckets(base, bucket_bytes):
        yield [
            replace(Pushed(plain_name(name), parameter, *adapters.get(name, ())), **rows.get(id(parameter), {}))
            for name, parameter in part
        ]


def _rows(model: Any) -> dict[int, dict[str, Any]]:
    """What is added to rows of embedding and head, by the `id` of these; {} for a model without."""
    rows = dict(model.named_children()).get(ROWS)
    if not isinstance(rows, TokenRows):
        return {}
    held = ((model.get_input_embeddings(), rows.embedding), (model.lm_head, rows.head))
    return {id(own.weight): {"rows": added.weight, "tokens": rows.tokens} for own, added in held}


def learns_beside(model: nn.Module) -> bool:
    """Whether something of a model learns that is no low-rank adapter, so that without these it is not what it was."""
    return any(each.requires_grad and not is_low_rank(name) for name, each in model.named_parameters())


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that peft has put in, by name."""
    for name, module in model.named_modules():
        if "lora_A" in dict(module.named_children()):
            yield name, module


def plain_name(name: str) -> str:
    """The name of a parameter before adapters were put in."""
    return name.replace(".base_layer.", ".")
