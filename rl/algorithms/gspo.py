"""Group sequence policy optimisation (arXiv 2507.18071): one length-normalised ratio per response.

s_i  = exp( (1 / |y_i|) * sum_t [log p_new(y_it) - log p_old(y_it)] )
loss = -mean_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.base import LossTerms, PolicyGradient, mean_over_tokens, sequence_log_ratio


@dataclass(frozen=True)
class Algorithm(PolicyGradient):
    """Settings of GSPO."""

    clip_low: float = 3e-3
    """How far the mean log-probability ratio may fall before a sequence stops counting.

    The paper's 3e-4 is for long texts.
    """
    clip_high: float = 4e-3
    """How far the mean log-probability ratio may rise before a sequence stops counting."""

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """One ratio per response, K = 1, from token log-probabilities [B, G, T] and advantages [B, G].

        Of advantages [B, G, T], such as importance weights of tokens make them, it takes each response's mean.
        """
        if advantages.dim() == 3:
            advantages = mean_over_tokens(advantages, mask)
        log_ratio = sequence_log_ratio(new_logprobs, old_logprobs, mask)
        objective, ratio, clipped = self.clip(log_ratio, advantages)
        present = torch.ones_like(clipped)[..., None]
        return LossTerms(objective, ratio[..., None], clipped[..., None], present)
