"""Where vLLM keeps each weight that a learner sends, and the worker's part in taking weights and showing them again.

vLLM joins matrices that read the same input (q, k and v; gate and up), one behind the other by rows, and pads
vocabularies with rows. So every weight of the learner is a run of rows of one of vLLM's parameters, and can be seen
there at any time: nothing has to be believed of a loader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each weight of the learner, by the learner's name and in its order."""

_PADDED_TO = 64
"""vLLM pads a vocabulary to a multiple of this many rows."""


class Renamer(Protocol):
    """vLLM's table of names, from a checkpoint's to its own (`hf_to_vllm_mapper` of its models)."""

    def apply_list(self, values: list[str]) -> list[str]:
        """The names as vLLM has them, less those that it leaves out."""
        ...


class VllmModel(Protocol):
    """What is asked of a model of vLLM's; its vision-language models have all of it."""

    packed_modules_mapping: Mapping[str, Sequence[str]]
    """Names of the modules that are joined, in order of rows, by the name of the joined one."""
    hf_to_vllm_mapper: Renamer

    def named_parameters(self) -> Any:
        """(name, parameter) of all parameters, shared ones once."""
        ...

    def load_weights(self, weights: Sequence[tuple[str, Tensor]]) -> set[str]:
        """Copy weights by the checkpoint's names; returns the names of the parameters that they went to."""
        ...


@dataclass(frozen=True)
class Place:
    """The rows of one of vLLM's parameters that are one weight of the learner."""

    parameter: str
    first: int
    """Number of the first row."""
    shape: tuple[int, ...]
    """Shape of the weight; its rows lie together."""

    def view(self, parameter: Tensor) -> Tensor:
        """The weight, in vLLM's own memory."""
        return parameter.detach()[self.first : self.first + self.shape[0]]


def places(model: VllmModel, shapes: Shapes) -> dict[str, Place]:
    """Where `model` keeps each weight, by the learner's name and in its order.

    Raises RuntimeError for a weight that has no place there, a place of another shape, two weights in one place, and
    rows of vLLM's that no weight fills: each would be a part of the policy that nothing vouches for.
    """
    held = dict(model.named_parameters())
    found = {name: _place(model, held, name, shapes) for name in shapes}
    for name, place in found.items():
        own = tuple(place.view(held[place.parameter]).shape)
        if own != place.shape:
            raise RuntimeError(
                f"vLLM keeps {name} in rows {place.first} on of {place.parameter} as {list(own)}, and the learner has "
                f"it as {list(place.shape)}; the two read different checkpoints, or this release keeps weights in "
                "another form than the tested ones."
            )
    _refuse_gaps(held, list(found.values()))
    return found


def _place(model: VllmModel, held: Mapping[str, Tensor], name: str, shapes: Shapes) -> Place:
    """Where one weight should be, by vLLM's own tables of names; whether it is so is for others to see."""
    module, _, kind = name.rpartition(".")
    parent, _, own = module.rpartition(".")
    (theirs,) = model.hf_to_vllm_mapper.apply_list([name]) or [name]
    if theirs in held:
        return Place(theirs, 0, shapes[name])
    for joined, members in model.packed_modules_mapping.items():
        whole = f"{theirs.removesuffix(f'{own}.{kind}')}{joined}.{kind}"
        if own in members and whole in held:
            before = [f"{parent}.{member}.{kind}" for member in members[: list(members).index(own)]]
            return Place(whole, sum(shapes[other][0] for other in before), shapes[name])
    raise RuntimeError(
        f"vLLM's model has no place for {name}, so that nothing could prove it; its family, or this checkpoint's form "
        "of it, cannot be sampled by vLLM: set pool.engine.name to shared."
    )


def _refuse_gaps(held: Mapping[str, Tensor], found: Sequence[Place]) -> None:
    """Raise RuntimeError where weights overlap in a parameter, or leave rows of it to none, but for padding."""
    ends = dict.fromkeys(held, 0)
    for place in sorted(found, key=lambda place: (place.parameter, place.first)):
        if place.first != ends[place.parameter]:
            raise RuntimeError(
                f"two weights of the learner, or none, belong in row {min(place.first, ends[place.parameter])} of "
                f"vLLM's {place.parameter}; this release joins weights in another way than the tested ones."
            )
        ends[place.parameter] += place.shape[0]
    for name, end in ends.items():
        rows = len(held[name])
        if rows not in (end, -(-end // _PADDED_TO) * _PADDED_TO):
            raise RuntimeError(
                f"weights of the learner go to {end} of {rows} rows of vLLM's {name}; the two read different "
                "checkpoints."
            )


class WeightReceiver:
    """What vLLM's worker is given besides its own methods (`worker_extension_cls`)."""

    model_runner: Any
    """Model runner of vLLM's worker."""
    _places: tuple[Shapes, dict[str, Place]] | None = None

    def take_weights(self, weights: Sequence[tuple[str, Tensor]], shapes: Shapes) -> None:
        """Load weights by the learner's names, and see that they are there.

        shapes: of all weights of the learner. Raises RuntimeError where a weight has no place, or another value is
        found there than was loaded.
        """
        model: VllmModel = self.model_runner.model
        held, where = dict(model.named_parameters()), self._places_of(shapes)
        here = [(name, weight.to(held[where[name].parameter].device)) for name, weight in weights]
        filled = model.load_weights(here)
        for name, weight in here:
            place = where[name]
            if place.parameter not in filled or not _same(place.view(held[place.parameter]), weight):
                raise RuntimeError(f"vLLM holds another {name} than was sent; its answers would be another policy's.")

    def held_weights(self, shapes: Shapes) -> list[nn.Parameter]:
        """The learner's weights in order, as they are in vLLM's own memory now; raises RuntimeError as `places`."""
        held = dict(self.model_runner.model.named_parameters())
        found = self._places_of(shapes).values()
        return [nn.Parameter(place.view(held[place.parameter]), requires_grad=False) for place in found]

    def _places_of(self, shapes: Shapes) -> dict[str, Place]:
        """`places`, looked for once: a model of 7B has some 700 weights, and a delivery 500 buckets."""
        if self._places is None or self._places[0] != shapes:
            self._places = dict(shapes), places(self.model_runner.model, shapes)
        return self._places[1]


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same(held: Tensor, sent: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits (NaN is then equal to itself)."""
    if held.dtype != sent.dtype or held.shape != sent.shape:
        return False
    word = _WORDS[held.element_size()]
    return torch.equal(held.contiguous().view(word), sent.contiguous().view(word))
