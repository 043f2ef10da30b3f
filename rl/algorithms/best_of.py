"""Rejection fine-tuning (RAFT, arXiv 2304.06767): imitate the best of the policy's own answers to each question.

    loss = -mean over groups of (1 / |y|) sum_t log p(y_t),  y the answer of the group with the highest reward

No ratio, no clipping, and nothing is learned from what was bad. It is what reinforcement has to beat: the same samples
and the same rewards, used the simplest way.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.ranges import check_ranges
from rl.algorithms.base import (
    MAX_LOG_RATIO,
    LossTerms,
    PolicyGradient,
    groups_with_signal,
    mean_over_tokens,
    sequence_log_ratio,
)


@dataclass(frozen=True)
class Algorithm(PolicyGradient):
    """Settings of rejection fine-tuning; those of clipping are not looked at."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm")
        if self.entropy:
            raise ValueError(
                f"algorithm.entropy is {self.entropy}, but best_of imitates the best answers and pushes none down; set "
                "it to 0, or choose another algorithm."
            )

    def advantages(self, totals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[B, G] G for the answer with the highest of the rewards [B, G], the first of equals, 0 for all others; and
        which groups [B] carry a signal. A mean over all answers is then the mean over groups of their best."""
        counts = groups_with_signal(totals, self.min_std)
        chosen = np.zeros_like(totals, np.float64)
        chosen[np.arange(len(totals)), totals.argmax(axis=1)] = totals.shape[1]
        return np.where(counts[:, None], chosen, 0.0), counts

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """The mean log-probability of a token times the advantage; K = 1, the ratio for logs alone."""
        if advantages.dim() == 3:
            advantages = mean_over_tokens(advantages, mask)
        log_ratio = sequence_log_ratio(new_logprobs, old_logprobs, mask).detach()
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()[..., None]
        objective = mean_over_tokens(new_logprobs, mask) * advantages
        return LossTerms(objective, ratio, torch.zeros_like(ratio, dtype=torch.bool), torch.ones_like(ratio).bool())
