"""Group relative policy optimisation (arXiv 2402.03300): one ratio per token, averaged over each response.

r_it = p_new(y_it) / p_old(y_it)
loss = -mean_i (1 / |y_i|) sum_t min(r_it A_i, clip(r_it, 1 - clip_low, 1 + clip_high) A_i)
"""

from dataclasses import dataclass

from torch import Tensor

from rl.algorithms.base import LossTerms, PolicyGradient, per_token, token_log_ratio


@dataclass(frozen=True)
class Algorithm(PolicyGradient):
    """Settings of GRPO; its clips of 0.2 bound the ratio of a single token."""

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """A ratio per token, K = T; advantages [B, G] or [B, G, T]."""
        log_ratio = token_log_ratio(new_logprobs, old_logprobs, mask)
        objective, ratio, clipped = self.clip(log_ratio, per_token(advantages))
        return LossTerms(self.pool(objective, mask), ratio, clipped, mask)
