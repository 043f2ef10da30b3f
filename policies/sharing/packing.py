"""One row per group: responses packed behind their prompt, each seeing the prompt and itself. Pure tensor functions.

Letters: B rows, G responses per row, T tokens per response, P prompt tokens, K packed response tokens, L = P + K, S
scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.families.base import PromptRows


@dataclass(frozen=True)
class PackedRows:
    """What a language model runs on, and where the scored tokens are in it."""

    tokens: Tensor
    """[B, L] int64: prompt (padded on the left), then all response tokens without gaps, then padding."""
    prompt_mask: Tensor
    """[B, P] bool, True on real tokens."""
    order: Tensor
    """[B, K] int64 into the flat [G * T] of each row: where each packed token stands in the rows."""
    real: Tensor
    """[B, K] bool, False on padding."""
    steps: Tensor
    """[B, K] int64: place of each packed token in its own response, from 0."""
    predictors: Tensor
    """[S] int64 into the flat [B * L]: the token whose hidden state predicts each scored token."""
    targets: Tensor
    """[S] int64: the scored tokens."""
    places: Tensor
    """[S] int64 into the flat [B * G * T]: where each scored token stands in the rows."""
    shape: tuple[int, int, int]
    """(B, G, T) of the rows."""
    bins: Tensor | None = None
    """[B, L, C] int64: what further heads chose beside `tokens`, -1 where none; None where none ever do."""
    target_bins: Tensor | None = None
    """[S, C] int64: what further heads chose beside `targets`."""
    routes: Tensor | None = None
    """[B, L, M, k] int16: the experts that each token is to go to, -1 where its router chooses; None: all choose."""
    together: Tensor | None = None
    """[B, P] bool: the tokens of each prompt that all see each other; None where each sees those before it alone."""

    @property
    def attends(self) -> Tensor:
        """[B, 1, L, L] bool: query (third axis) may see key (last axis)."""
        return _attends(self.prompt_mask, self.order // self.shape[2], self.real, self.together)


def pack_rows(rows: PromptRows) -> PackedRows:
    """Pack responses behind prompts. Each response's real tokens must come first in its T (padding on the right)."""
    p = rows.prompt_tokens.shape[1]
    t = rows.response_tokens.shape[2]
    real_flat = rows.response_mask.flatten(1)
    packed = int(real_flat.sum(1).max())
    order = (~real_flat).to(torch.uint8).argsort(dim=1, stable=True)[:, :packed]  # real tokens first, in order
    real = real_flat.gather(1, order)
    steps = order % t
    tokens = torch.cat([rows.prompt_tokens, rows.response_tokens.flatten(1).gather(1, order)], dim=1)
    row, column = (rows.scored_mask.flatten(1).gather(1, order) & real).nonzero(as_tuple=True)
    before = torch.where(steps[row, column] == 0, p - 1, p + column - 1)
    bins = _packed(rows.prompt_bins, rows.response_bins, order)
    return PackedRows(
        tokens=tokens,
        prompt_mask=rows.prompt_mask,
        order=order,
        real=real,
        steps=steps,
        predictors=row * tokens.shape[1] + before,
        targets=tokens[row, p + column],
        places=row * real_flat.shape[1] + order[row, column],
        shape=(rows.response_mask.shape[0], rows.response_mask.shape[1], t),
        bins=bins,
        target_bins=None if bins is None else bins[row, p + column],
        routes=_packed(rows.prompt_routes, rows.response_routes, order),
    )


def _packed(prompts: Tensor | None, responses: Tensor | None, order: Tensor) -> Tensor | None:
    """[B, L, ...] of prompts [B, P, ...] and of responses [B, G, T, ...] in the order [B, K] of PackedRows."""
    if prompts is None or responses is None:
        return None
    rows = torch.arange(len(order), device=order.device)[:, None]
    return torch.cat([prompts, responses.flatten(1, 2)[rows, order]], dim=1)


def _attends(prompt_mask: Tensor, response: Tensor, real: Tensor, together: Tensor | None) -> Tensor:
    """[B, 1, L, L] bool from prompt_mask [B, P], the response that each packed token belongs to [B, K], which are
    real, and which of a prompt [B, P] all see each other."""
    in_prompt = torch.full_like(prompt_mask, -1, dtype=torch.int64)
    owner = torch.cat([in_prompt, response], dim=1)
    exists = torch.cat([prompt_mask, real], dim=1)
    shared = (owner == -1)[:, None, :] | (owner[:, :, None] == owner[:, None, :])
    itself = torch.eye(owner.shape[1], dtype=torch.bool, device=owner.device)
    return (causal(exists, together) & (shared | itself))[:, None]


def causal(exists: Tensor, together: Tensor | None = None) -> Tensor:
    """[B, L, L] bool: query before key, by order, padding (where `exists` [B, L] is False) left out as a key.

    together: [B, P] bool, real tokens among the first P that see each other whatever their order. Padding attends to
    itself: a query without any key would be NaN, and NaN spreads in the backward pass.
    """
    length = exists.shape[1]
    order = torch.ones(length, length, dtype=torch.bool, device=exists.device).tril()
    diagonal = torch.eye(length, dtype=torch.bool, device=exists.device)
    seen = (order & exists[:, None, :]) | diagonal
    if together is not None:
        p = together.shape[1]
        seen[:, :p, :p] |= together[:, :, None] & together[:, None, :]
    return seen


def pad_left(sequences: Sequence[NDArray[np.int64]], fill: int) -> tuple[Tensor, Tensor]:
    """B sequences [P] or [P, C] as ([B, P] or [B, P, C] int64 padded on the left, [B, P] bool of the real ones)."""
    longest = max(map(len, sequences))
    tokens = torch.full((len(sequences), longest, *sequences[0].shape[1:]), fill, dtype=torch.int64)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for b, sequence in enumerate(sequences):
        tokens[b, longest - len(sequence) :] = torch.from_numpy(np.asarray(sequence, np.int64))
        mask[b, longest - len(sequence) :] = True
    return tokens, mask


def pad_responses(responses: Sequence[Sequence[NDArray[np.int64]]], fill: int) -> tuple[Tensor, Tensor]:
    """B x (up to G) sequences [T] or [T, C] as ([B, G, T] or [B, G, T, C] int64 padded on the right, [B, G, T] bool of
    the real ones)."""
    most = max(map(len, responses))
    longest = max(len(tokens) for row in responses for tokens in row)
    tokens = torch.full((len(responses), most, longest, *responses[0][0].shape[1:]), fill, dtype=torch.int64)
    mask = torch.zeros((len(responses), most, longest), dtype=torch.bool)
    for b, row in enumerate(responses):
        for g, sequence in enumerate(row):
            tokens[b, g, : len(sequence)] = torch.from_numpy(np.asarray(sequence, np.int64))
            mask[b, g, : len(sequence)] = True
    return tokens, mask
