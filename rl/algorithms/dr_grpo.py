"""Dr. GRPO (arXiv 2503.20783): GRPO without its two biases, by the length of an answer and by the spread of its group.

A_i  = r_i - mean(r)
loss = -mean_i (1 / length_divisor) sum_t min(r_it A_i, clip(r_it, 1 - clip_low, 1 + clip_high) A_i)
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from envs.ranges import at_least
from rl.algorithms import grpo


@dataclass(frozen=True)
class Algorithm(grpo.Algorithm):
    """Settings of Dr. GRPO."""

    normalise_by: str = "none"
    length_divisor: Annotated[int, at_least(1, ", such as sampling.max_tokens.")] = 128
    """What the sum over the tokens of any answer is divided by, the longest answers' length or so.

    Where `sampling.max_tokens` says that, write `length_divisor: ${sampling.max_tokens}`.
    """

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """[B, G] sum of values [B, G, T] over the tokens of each response, over one constant for all."""
        return torch.where(mask, values, 0.0).sum(-1) / self.length_divisor
