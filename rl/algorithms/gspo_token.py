"""GSPO-token (arXiv 2507.18071, section 4.3): GSPO's ratio, with an advantage for each token.

    s_it = sg[s_i] * p_new(y_it) / sg[p_new(y_it)]                      sg[x]: x, without its gradient
    loss = -mean_i mean_t min(s_it A_it, clip(s_it, 1 - clip_low, 1 + clip_high) A_it)

Where all tokens of a response have its advantage, loss and gradient are GSPO's. An algorithm of your own on top of this
one gives tokens their own, such as one a vertex, by `token_advantages`.
"""

from dataclasses import dataclass

from torch import Tensor

from rl.algorithms import gspo
from rl.algorithms.base import LossTerms, per_token, sequence_token_log_ratio


@dataclass(frozen=True)
class Algorithm(gspo.Algorithm):
    """Settings of GSPO-token, which are GSPO's."""

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """A ratio per token, K = T, of its response's value; advantages [B, G] or [B, G, T]."""
        log_ratio = sequence_token_log_ratio(new_logprobs, old_logprobs, mask)
        objective, ratio, clipped = self.clip(log_ratio, per_token(advantages))
        return LossTerms(self.pool(objective, mask), ratio, clipped, mask)
