"""Linear maps of one input as one product: their weights are made rows of one matrix, in place.

A token of few answers has little to compute, and each product costs a call. Nothing is derived: the parameters stay
what they are, under their names, and only lie side by side. So weights that arrive later are in the matrix at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def join(maps: Sequence[nn.Module]) -> None:
    """Let weights [out, in] and biases [out] of linear layers lie in a row in memory; values stay to the bit.

    Nothing is done where they do already, or where one is no plain linear layer, such as one with an adapter. Another
    tensor of a parameter (`to`, `data`) parts it from the others again, and `JoinedMaps` then calls each by itself.
    """
    if not all(is_plain(each) for each in maps):
        return
    for parameters in _parameters(maps):
        if _in_a_row(parameters) is None:
            whole = torch.cat([each.data for each in parameters])
            for parameter, part in zip(parameters, whole.split([len(each) for each in parameters]), strict=True):
                parameter.data = part


def is_plain(module: nn.Module) -> bool:
    """Whether it is torch's own linear layer with its weight here, not one that is wrapped or shared out."""
    return type(module) is nn.Linear and module.weight.numel() > 0


class JoinedMaps:
    """Linear layers of one input: one product where `join` has been at work, else a call of each."""

    def __init__(self, maps: Sequence[Any]) -> None:
        self._maps = maps
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        if all(is_plain(each) for each in maps):
            weight, *bias = [_in_a_row(parameters) for parameters in _parameters(maps)]
            if weight is not None and all(part is not None for part in bias):
                self._weight, self._bias = weight, bias[0] if bias else None

    @property
    def is_joined(self) -> bool:
        """Whether it is one product."""
        return self._weight is not None

    def __call__(self, inputs: Tensor) -> Tensor:
        """[N, sum of out] of [N, in], in the order of the layers."""
        if self._weight is not None:
            return functional.linear(inputs, self._weight, self._bias)
        found = [each(inputs) for each in self._maps]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _parameters(maps: Sequence[Any]) -> list[list[nn.Parameter]]:
    """Their weights, and their biases if they have any; layers of which only some have a bias are no case of any."""
    kinds = [[each.weight for each in maps], [each.bias for each in maps if each.bias is not None]]
    return [kind for kind in kinds if kind]


def _in_a_row(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """All of them as one tensor, [sum of rows, ...], without a copy; None where they lie otherwise."""
    first = parameters[0].detach()
    address, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for each in parameters:
        if each.data_ptr() != address or each.untyped_storage().data_ptr() != storage or not each.is_contiguous():
            return None
        address += each.nbytes
    return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
