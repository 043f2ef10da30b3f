"""Clipped policy gradients on groups of answers: what the algorithms share, as pure functions on tensors.

    A    = (r - mean(r)) / (std + floor)              r the totals of a group; std of the group or of the batch
    x    = a likelihood ratio, new policy over old    of a response (GSPO) or of a token (GRPO)
    loss = -mean over responses of min(x A, clip(x, 1 - clip_low, 1 + clip_high) A)      (arXiv 1707.06347, 2402.03300)

Departures from the papers: the floor under the standard deviation (rewards of polygons are continuous: in a group of
near-equal answers, dividing by the bare std would make noise as loud as signal), and groups whose rewards do not differ
are left out of the mean. Letters: B groups, G answers a group, T tokens; K is 1 where a response has one ratio, T where
each of its tokens has its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.ranges import above, at_least, between, check_ranges, one_of
from rollout.records import Group

MAX_LOG_RATIO = 10.0
"""Log ratios are clamped to this before exp: exp can overflow, and 0 * inf is NaN in the backward pass."""
NORMALISATIONS = ("group", "batch", "none")
IMPORTANCE_LEVELS = ("sequence", "token")

TokenAdvantages = tuple[tuple[NDArray[np.float32], ...], ...]
"""[B][G] arrays [T]: an advantage for each token of each response."""


@dataclass(frozen=True)
class Advantages:
    """What B groups of G answers are learned from."""

    values: NDArray[np.float64]
    """[B, G] advantage of each answer, 0 in groups without signal."""
    counts: NDArray[np.bool_]
    """[B] False for a group without signal."""
    of_tokens: TokenAdvantages | None = None
    """[B][G] arrays [T] that take the place of `values` in the loss, where the algorithm gives tokens their own."""


@dataclass(frozen=True)
class LossTerms:
    """What a loss is made of."""

    objective: Tensor
    """[B, G] objective of each response, clipped and pooled over its tokens, to be maximised; carries the gradient."""
    ratio: Tensor
    """[B, G, K] likelihood ratios, new policy over old."""
    clipped: Tensor
    """[B, G, K] bool, True where the clipped branch was the smaller one: no gradient."""
    present: Tensor
    """[B, G, K] bool, False on padding."""


def group_advantages(totals: NDArray[np.float64], std_floor: float, by: str = "group") -> NDArray[np.float64]:
    """Advantages [B, G] of rewards [B, G]: deviation from the group's mean over a standard deviation plus a floor.

    by: `group`, that of the group (arXiv 2402.03300); `batch`, that of all rewards at hand (arXiv 2508.08221); `none`,
    the deviation itself (arXiv 2503.20783). 0 where both deviation and divisor are 0.
    """
    deviation = totals - totals.mean(axis=1, keepdims=True)
    if by == "none":
        return deviation
    spread = (totals.std(axis=1, keepdims=True) if by == "group" else totals.std(keepdims=True)) + std_floor
    return np.divide(deviation, spread, out=np.zeros_like(deviation), where=spread > 0)


def entropy_advantages(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B, G] what adds to advantages so that they raise the entropy of the answers: the rare one is preferred.

    logprobs: [B, G] of whole answers, sums over their tokens. log p's mean over the group less log p: of a gradient of
    A log p, its expectation is the gradient of the entropy, since -d/dp of sum p log p is -(log p + 1).
    """
    return logprobs.mean(axis=1, keepdims=True) - logprobs


def groups_with_signal(totals: NDArray[np.float64], min_std: float) -> NDArray[np.bool_]:
    """[B] True where the rewards [B, G] of a group differ: their standard deviation is above min_std."""
    return totals.std(axis=1) > min_std


def token_log_ratio(new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, G, T] log-probability ratio of each token, 0 outside the mask; all three are [B, G, T], the mask bool."""
    return torch.where(mask, new_logprobs - old_logprobs, 0.0)


def sequence_log_ratio(new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, G] mean log-probability ratio over the tokens of each response: log s_i of GSPO (arXiv 2507.18071, eq. 7).

    new_logprobs, old_logprobs, mask (bool, True on response tokens): [B, G, T]. Exactly 0 where the policy has not
    moved, and for a response without tokens.
    """
    return mean_over_tokens(token_log_ratio(new_logprobs, old_logprobs, mask), mask)


def sequence_token_log_ratio(new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, G, T] log s_it of GSPO-token (arXiv 2507.18071, eq. 14): the value of log s_i, the gradient of token t."""
    sequence = sequence_log_ratio(new_logprobs, old_logprobs, mask).detach()
    # In this order the small difference is exactly 0 before anything is added to it.
    return torch.where(mask, new_logprobs - new_logprobs.detach(), 0.0) + sequence[..., None]


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, G] mean of values [B, G, T] over the tokens of each response; 0 for a response without tokens."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def clipped_objective(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """min(x A, clip(x) A), x, and whether the clipped branch was the smaller one; of log x and A of one shape.

    log x is clamped to MAX_LOG_RATIO either way; outside of it there is no gradient.
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.minimum(free, clipped), ratio, clipped < free


def token_divergence(new_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, G, T] estimate of KL(new, reference) at each token, 0 or more: exp(d) - d - 1 (arXiv 2402.03300, eq. 4).

    d = log p_reference - log p_new, clamped to MAX_LOG_RATIO either way; 0 outside the mask. All are [B, G, T].
    """
    difference = token_log_ratio(reference_logprobs, new_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (difference.exp() - difference - 1).clamp(min=0.0)  # near d = 0 it can round to less


def importance_weights(learner_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, level: str) -> Tensor:
    """How much likelier the sampled tokens are to the learner, before its first update, than they were to the sampler.

    level: `sequence`, [B, G, 1] of whole responses, the product over their tokens; `token`, [B, G, T], 1 outside the
    mask. All given are [B, G, T]. The log of a weight is clamped to MAX_LOG_RATIO either way; no gradient.
    """
    log_weight = token_log_ratio(learner_logprobs, sampler_logprobs, mask).detach()
    if level == "sequence":
        log_weight = log_weight.sum(-1, keepdim=True)
    return log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True)
class PolicyGradient:
    """Settings and steps that all algorithms share; each adds its own `terms`."""

    clip_low: Annotated[float, between(0, 1, open=True, open_high=True)] = 0.2
    """How far a ratio may fall below 1 before it stops counting."""
    clip_high: Annotated[float, above(0)] = 0.2
    """How far a ratio may rise above 1 before it stops counting."""
    std_floor: Annotated[float, at_least(0)] = 0.01
    """What is added to the standard deviation of rewards that advantages are divided by."""
    min_std: Annotated[float, at_least(0)] = 1e-6
    """Groups whose rewards spread less than this carry no signal and are left out."""
    normalise_by: Annotated[str, one_of(*NORMALISATIONS)] = "group"
    """Whose standard deviation divides advantages: `group`, `batch` or `none`."""
    kl: Annotated[float, at_least(0)] = 0.0
    """Weight of the divergence from the policy that the run began with; above 0, each rank holds a copy of that."""
    entropy: Annotated[float, between(-1, 1)] = 0.0
    """Weight of the answers' entropy, in nats of a whole answer, beside advantages: more than 0 keeps answers apart,
    less than 0 makes them more alike. What was sampled stands for it, so that it costs nothing. Where log-probabilities
    of a group spread by 5, a weight of 0.05 moves advantages by 0.25; long answers want less."""
    importance_cap: Annotated[float | None, above(0, ", such as 2, or to null for no importance weights.")] = None
    """Cap of importance weights min(cap, p_learner / p_sampler) on advantages: truncated importance sampling, for
    answers of another engine or of older weights. Null: no weights.
    """
    importance_level: Annotated[str, one_of(*IMPORTANCE_LEVELS)] = "sequence"
    """Whose likelihoods importance weights compare: a whole answer's (`sequence`) or each token's own (`token`)."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm")
        if self.clip_low > self.clip_high:
            raise ValueError(
                f"algorithm.clip_low is {self.clip_low}, above clip_high {self.clip_high}: bad answers would be "
                f"pushed down further than good ones are raised; set clip_low to {self.clip_high} or less, or "
                f"clip_high to {self.clip_low} or more."
            )

    def advantages(self, totals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Advantages [B, G] of total rewards [B, G], 0 in groups without signal, and which groups [B] carry one."""
        counts = groups_with_signal(totals, self.min_std)
        advantages = group_advantages(totals, self.std_floor, self.normalise_by)
        # Equal rewards differ from their mean by a rounding error, which without a floor would be divided by itself.
        return np.where(counts[:, None], advantages, 0.0), counts

    def token_advantages(self, groups: Sequence[Group], advantages: NDArray[np.float64]) -> TokenAdvantages | None:
        """Advantages of single tokens where those of a response differ, such as one per vertex; None where they do not.

        groups: B with their totals; advantages: [B, G] of these. Only algorithms with one ratio per token can use them.
        """
        return None

    def of_groups(self, groups: Sequence[Group]) -> Advantages:
        """Advantages of B groups of equal size that have their totals, of single tokens where these have their own.

        Raises ValueError where token advantages are not one for each token.
        """
        values, counts = self.advantages(np.array([group.totals for group in groups], np.float64))
        if self.entropy:
            values = values + self.entropy * entropy_advantages(_logprobs(groups)) * counts[:, None]
        of_tokens = self.token_advantages(groups, values)
        if of_tokens is not None:
            _refuse_other_lengths(of_tokens, groups)
        return Advantages(values, counts, of_tokens)

    def weigh(self, advantages: Tensor, importance: Tensor) -> Tensor:
        """Advantages [B, G] or [B, G, T] times importance weights [B, G, 1] or [B, G, T], truncated; for `terms`.

        A weight is above 0, so that min(x A, clip(x) A) is multiplied by it.
        """
        assert self.importance_cap is not None
        weighed = per_token(advantages) * importance.clamp(max=self.importance_cap)
        return weighed[..., 0] if weighed.shape[-1] == 1 else weighed

    def clip(self, log_ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`clipped_objective` under these settings."""
        return clipped_objective(log_ratio, advantages, self.clip_low, self.clip_high)

    def terms(self, new_logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, advantages: Tensor) -> LossTerms:
        """Terms of the loss from token log-probabilities [B, G, T], their mask, and advantages [B, G] or [B, G, T]."""
        raise NotImplementedError

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """[B, G] one value per response from one per token [B, G, T]."""
        return mean_over_tokens(values, mask)

    def loss(self, terms: LossTerms, weights: Tensor) -> Tensor:
        """Minus the weighted sum of the objectives.

        Weights [B, G] that add up to 1 over a mini-batch make it their mean.
        """
        return -(terms.objective * weights).sum()


def per_token(advantages: Tensor) -> Tensor:
    """Advantages [B, G] as [B, G, 1], to stand beside values of tokens; those of tokens [B, G, T] as they are."""
    return advantages if advantages.dim() == 3 else advantages[..., None]


def _logprobs(groups: Sequence[Group]) -> NDArray[np.float64]:
    """[B, G] log-probability of each answer, as it was sampled."""
    return np.array([[rollout.response.logprobs.sum(dtype=np.float64) for rollout in one.rollouts] for one in groups])


def _refuse_other_lengths(of_tokens: TokenAdvantages, groups: Sequence[Group]) -> None:
    given = [[len(values) for values in row] for row in of_tokens]
    needed = [[len(rollout.response.tokens) for rollout in group.rollouts] for group in groups]
    if given != needed:
        b = next((b for b, (one, other) in enumerate(zip(given, needed, strict=False)) if one != other), len(given))
        raise ValueError(
            f"the algorithm's token_advantages of group {b} have the lengths {given[b : b + 1]}, its responses "
            f"{needed[b : b + 1]} tokens; give one for each token, the end token included."
        )
