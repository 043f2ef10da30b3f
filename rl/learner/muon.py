"""Muon on hidden matrices and AdamW on all else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; here torch's own, with updates as large as
AdamW's, arXiv 2502.16982) is for matrices between hidden layers; embeddings, heads, norms and biases go to AdamW.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LR_SHARE = "lr_share"
"""Key of a parameter group: its rate as a share of the optimizer's own."""
_ADAMW_SHARE = 1 / 3
_OUTER = ("embed", "lm_head", ".wte", "coord_decoder", "size_decoder")
"""In names of embeddings and heads."""


@dataclass(frozen=True)
class SlowPart:
    """Parameters that learn at a rate of their own."""

    parameters: Sequence[nn.Parameter]
    """Them; some may be frozen."""
    share: float
    """Their rate as a share of the others'."""


def rate_groups(trained: Sequence[nn.Parameter], slower: SlowPart | None) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, each with its LR_SHARE; none is empty unless all are."""
    slow = set() if slower is None or slower.share == 1.0 else {id(each) for each in slower.parameters}
    usual = [each for each in trained if id(each) not in slow]
    held = [each for each in trained if id(each) in slow]
    groups = [{"params": usual, LR_SHARE: 1.0}] if usual or not held else []
    if slower is not None and held:
        groups.append({"params": held, LR_SHARE: slower.share})
    return groups


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers of torch behind one `step`, with the groups of both."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, slower: SlowPart | None = None
    ) -> None:
        """named: parameters by name, of which those that require a gradient are trained; weight_decay: Muon's; slower:
        those of them that have another rate."""
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        matrices = [parameter for name, parameter in trained if is_hidden_matrix(name, parameter)]
        others = [parameter for name, parameter in trained if not is_hidden_matrix(name, parameter)]
        super().__init__([{"params": matrices}, {"params": others}], {})
        self._muon = torch.optim.Muon(
            rate_groups(matrices, slower), adjust_lr_fn="match_rms_adamw", weight_decay=weight_decay
        )
        self._adamw = torch.optim.AdamW(rate_groups(others, slower), betas=(0.9, 0.98), weight_decay=0.0)
        for group in self._adamw.param_groups:
            group[LR_SHARE] *= _ADAMW_SHARE
        self._join_groups()

    def _join_groups(self) -> None:
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self, closure: Any = None) -> Any:
        """One update of all parameters; closure: not used."""
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """States of both, for `load_state_dict`."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self._join_groups()


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix between hidden layers: neither an embedding nor a head."""
    return parameter.ndim == 2 and not any(outer in name for outer in _OUTER)
