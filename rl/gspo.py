"""Group sequence policy optimisation (arXiv 2507.18071), as pure functions on tensors.

    s_i  = exp( (1 / |y_i|) * sum_t [log p_new(y_it) - log p_old(y_it)] )
    A_i  = (r_i - mean(r)) / (std(r) + floor)                      within the group
    loss = -mean_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

Departures from the paper: the floor under the standard deviation (rewards of polygons are continuous: in a group of
near-equal
answers, dividing by the bare std would make noise as loud as signal), and groups whose rewards do not differ are
left out of
the mean. No KL term. Letters: B groups, G answers a group, T tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_LOG_RATIO = 10.0
"""Log ratios are clamped to this before exp: exp can overflow, and 0 * inf is NaN in the backward pass."""


@dataclass(frozen=True)
class SequenceTerms:
    """What the loss is made of, one value a sequence [B, G]."""

    ratio: Tensor
    """s_i; carries the gradient."""
    objective: Tensor
    """min(s_i A_i, clip(s_i) A_i)."""
    clipped: Tensor
    """bool, True where the clipped branch was the smaller one: no gradient."""


def group_advantages(totals: NDArray[np.float64], std_floor: float) -> NDArray[np.float64]:
    """Advantages [B, G] of rewards [B, G]: deviation from the group's mean over its standard deviation plus a floor.

    0 where both of them are 0.
    """
    deviation = totals - totals.mean(axis=1, keepdims=True)
    spread = totals.std(axis=1, keepdims=True) + std_floor
    return np.divide(deviation, spread, out=np.zeros_like(deviation), where=spread > 0)


def groups_with_signal(totals: NDArray[np.float64], min_std: float) -> NDArray[np.bool_]:
    """[B] True where the rewards [B, G] of a group differ: their standard deviation is above min_std."""
    return totals.std(axis=1) > min_std


def sequence_log_ratio(new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability ratio over the tokens of each response.

    new_logprobs, old_logprobs, mask (bool, True on response tokens): [B, G, T]. Returns [B, G], clamped to
    MAX_LOG_RATIO either way;
    exactly 0 where the policy has not moved, and for a response without tokens.
    """
    difference = torch.where(mask, new_logprobs - old_logprobs, 0.0)
    return (difference.sum(-1) / mask.sum(-1).clamp(min=1)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_terms(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> SequenceTerms:
    """Clipped objective of each sequence from log ratios and advantages, both [B, G]."""
    ratio = log_ratio.exp()
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return SequenceTerms(ratio, torch.minimum(free, clipped), clipped < free)


@dataclass(frozen=True)
class Algorithm:
    """Settings of GSPO."""

    clip_low: float = 3e-3
    """How far the mean log-probability ratio may fall before a sequence stops counting.

    The paper's 3e-4 is for long texts.
    """
    clip_high: float = 4e-3
    std_floor: float = 0.01
    """Added to a group's standard deviation of rewards."""
    min_std: float = 1e-6
    """Groups whose rewards spread less than this carry no signal and are left out."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1 or self.clip_high <= 0 or self.std_floor < 0 or self.min_std < 0:
            raise ValueError(
                f"algorithm.clip_low is {self.clip_low}, clip_high {self.clip_high}, std_floor {self.std_floor}, "
                f"min_std {self.min_std}; clips must be above 0 (clip_low below 1), the others 0 or more."
            )

    def advantages(self, totals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Advantages [B, G] of total rewards [B, G], 0 in groups without signal, and which groups [B] carry one."""
        counts = groups_with_signal(totals, self.min_std)
        # Equal rewards differ from their mean by a rounding error, which without a floor would be divided by itself.
        return np.where(counts[:, None], group_advantages(totals, self.std_floor), 0.0), counts

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> SequenceTerms:
        """Terms of each sequence from token log-probabilities [B, G, T] and advantages [B, G]."""
        log_ratio = sequence_log_ratio(new_logprobs, old_logprobs, mask)
        return sequence_terms(log_ratio, advantages, self.clip_low, self.clip_high)

    def loss(self, terms: SequenceTerms, weights: Tensor) -> Tensor:
        """Minus the weighted sum of the objectives.

        Weights [B, G] that add up to 1 over a mini-batch make it their mean.
        """
        return -(terms.objective * weights).sum()
