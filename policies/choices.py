"""What a policy chooses at the places of an answer: a token each, and where the token says so, bins of further heads.

A model that says a coordinate or a size by a head of its own writes a token that stands for it, and the head then
chooses one of its bins: two choices or more at one place, whose log-probabilities add up. The choices of an answer are
an array [T] of tokens, or [T, 1 + H] with a column for each of a policy's H further heads.

Letters: T places, H further heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_BIN = -1
"""Stands where a head chooses nothing."""


@dataclass(frozen=True)
class Head:
    """A head that chooses beside the vocabulary."""

    name: str
    """Name for people, such as `coordinate`."""
    token: int
    """The token at whose places it chooses."""
    bins: int
    """How many bins it has."""


def joined(tokens: NDArray[np.int64], bins: NDArray[np.integer[Any]] | None) -> NDArray[np.int64]:
    """The choices of tokens [T] and of bins [T, H], or of tokens alone."""
    return tokens if bins is None else np.concatenate([tokens[:, None], bins.astype(np.int64)], axis=1)


def apart(choices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Tokens [T] and bins [T, H], None where tokens are all that is chosen."""
    return (choices, None) if choices.ndim == 1 else (choices[:, 0], choices[:, 1:])


def chosen_logprobs(logits: Tensor, bins: Tensor, temperature: float = 1.0, spread: float = 0.0) -> Tensor:
    """[N] log-probabilities of bins [N] by logits [N, K] of a head, float32 at least.

    spread: where above 0, the mean over neighbouring bins, weighed by a Gaussian of that many bins' width.
    """
    found = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    if spread <= 0:
        return found.gather(1, bins[:, None])[:, 0]
    steps = torch.arange(logits.shape[1], device=bins.device) - bins[:, None]
    return (torch.softmax(-0.5 * (steps / spread) ** 2, dim=1) * found).sum(1)


def added(logprobs: Tensor, bins: Tensor, logits: Sequence[Tensor], temperature: float, spread: float = 0.0) -> Tensor:
    """[S] log-probabilities of S places: those of their tokens, and of what their heads chose, added up.

    logprobs: [S] of the tokens; bins: [S, H]; logits: of each head [n, K], of the n places where it chose alone.
    """
    for head, of_head in enumerate(logits):
        (places,) = (bins[:, head] != NO_BIN).nonzero(as_tuple=True)
        found = chosen_logprobs(of_head, bins[places, head], temperature, spread)
        logprobs = logprobs.index_add(0, places, found.to(logprobs.dtype))
    return logprobs
