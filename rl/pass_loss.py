"""The loss of one forward pass, and what is logged of it: everything of a learner's step that knows no engine."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from policies.base import PromptRows
from rl.batch import Batch
from rl.learner_stats import Mean, PassStats, importance_stats, loss_stats, pass_mean, sampler_stats
from rl.passes import Pass
from rl.policy_gradient import PolicyGradient, importance_weights, token_divergence


@dataclass(frozen=True)
class MiniBatch:
    """What the passes between two updates have in common, on all ranks."""

    responses: int
    """Answers in groups that count, at least 1: the loss is the mean over them."""
    passes: int
    """Passes that weigh."""


@dataclass(frozen=True)
class Work:
    """One pass of this rank."""

    part: Batch
    """Its groups; of a pass that does not weigh, none counts."""
    rows: PromptRows
    """The same groups, as the policy takes them."""
    weighs: bool
    """False for a repeat that only keeps ranks in step."""
    most_scored: int
    """Most tokens that any rank scores in its pass at this time."""
    minibatch: MiniBatch


def work_of(batch: Batch, one: Pass, rows: PromptRows, most_scored: int, minibatch: MiniBatch) -> Work:
    """The Work of a planned pass over groups of a batch, with the rows of these groups."""
    part = batch.part(one.groups)
    if not one.weighs:
        part = replace(part, counts=np.zeros_like(part.counts))
    return Work(part, rows, one.weighs, most_scored, minibatch)


def pass_loss(
    algorithm: PolicyGradient, work: Work, new: Tensor, old: Tensor, reference: Tensor | None = None
) -> tuple[Tensor, PassStats]:
    """This pass's part of the loss, a scalar: the parts of all passes and ranks add up to a mini-batch's mean.

    new, old, reference: [B, G, T] log-probabilities of the policy, of what it was before the step's first update, and
    of the one that the run began with, where the algorithm has a divergence from it.
    """
    part, mask = work.part, work.rows.scored_mask
    num_tokens = mask.shape[-1]
    advantages = torch.from_numpy(part.padded_advantages(num_tokens)).to(new.device)
    counts = torch.from_numpy(part.counts).to(new.device)[:, None].expand(part.advantages.shape)
    weights = counts.float() / work.minibatch.responses
    stats: PassStats = {}
    if algorithm.importance_cap is not None:
        sampler = torch.from_numpy(part.padded_sampler_logprobs(num_tokens)).to(new.device)
        importance = importance_weights(old, sampler, mask, algorithm.importance_level)
        advantages = algorithm.weigh(advantages, importance)
        there = mask.any(-1, keepdim=True) if importance.shape[-1] == 1 else mask
        stats |= importance_stats(importance, algorithm.importance_cap, counts[..., None] & there)
    terms = algorithm.terms(new, old, mask, advantages)
    loss = algorithm.loss(terms, weights)
    stats |= loss_stats(terms, counts) | sampler_stats(part, mask, old)
    if reference is not None:
        divergence = token_divergence(new, reference, mask)
        loss = loss + algorithm.kl * (algorithm.pool(divergence, mask) * weights).sum()
        stats["kl"] = pass_mean(divergence, counts[..., None] & mask)
    # The mean of these over passes is the loss of the mini-batch; and all mini-batches weigh the same.
    stats["loss"] = Mean(float(loss.detach()) * work.minibatch.passes, 1 / work.minibatch.passes)
    return loss, stats if work.weighs else {name: Mean(mean.value, 0) for name, mean in stats.items()}
