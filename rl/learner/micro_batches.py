"""Which groups go through the policy together: mini-batches cut into passes, these dealt to ranks, and the loss of one.

The plan is made by pure functions of what every rank knows, so that all ranks come to the same one without a word. A
pass of B groups runs on B * (P + K) tokens, P the longest prompt in it and K the most answer tokens of a group of it
(policies/sharing/packing.py); what is shorter is padded. Besides, its attention mask takes at most n * B * G * T * (P +
T) bytes, T the longest of G answers, n the queries per key head (policies/sharing/attention.py): 8 MB times n for 16
answers of 400 tokens to 900.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.families.base import PromptRows
from rl.algorithms.base import PolicyGradient, importance_weights, token_divergence
from rl.learner.batch import Batch
from rl.learner.stats import Mean, PassStats, importance_stats, loss_stats, pass_mean, sampler_stats


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one rank."""

    groups: tuple[int, ...]
    """Places in the batch."""
    weighs: bool = True
    """False for a repeat of another pass, which only keeps this rank in step with those that have one more."""


Round = tuple[Pass, ...]
"""[ranks] passes that the ranks do at the same time."""


@dataclass(frozen=True)
class GroupTokens:
    """How many tokens each group of a batch takes."""

    prompts: NDArray[np.int64]
    """[B] of its prompt."""
    answers: NDArray[np.int64]
    """[B] of all its answers together."""

    def of(self, groups: Sequence[int]) -> "GroupTokens":
        """Tokens of some groups."""
        return GroupTokens(self.prompts[list(groups)], self.answers[list(groups)])

    def padded(self, groups: Sequence[int]) -> int:
        """Tokens that a pass over these groups runs on, padding included."""
        chosen = self.of(groups)
        return len(groups) * int(chosen.prompts.max() + chosen.answers.max())


def even_passes(groups: Sequence[int], per_pass: int, ranks: int) -> list[Round]:
    """Passes of per_pass groups each; ranks * per_pass must divide the number of groups."""
    shares = [np.asarray(groups)[rank::ranks].reshape(-1, per_pass).tolist() for rank in range(ranks)]
    return [tuple(Pass(tuple(share)) for share in at_once) for at_once in zip(*shares, strict=True)]


def budget_passes(groups: Sequence[int], tokens: GroupTokens, budget: int, ranks: int) -> list[Round]:
    """Fewest passes that a budget of padded tokens allows, with as little padding: groups by length, the longest first.

    Passes are halved until all ranks have equally many; where single groups run out first, repeats without weight fill
    the last round. Raises ValueError for a group that alone is above the budget.
    """
    refuse_small_budget(budget, tokens.of(groups))
    by_length = sorted(groups, key=lambda k: (-int(tokens.prompts[k] + tokens.answers[k]), k))
    passes = _stretches(by_length, tokens, budget)
    while len(passes) % ranks and max(map(len, passes)) > 1:
        longest = max((one for one in passes if len(one) > 1), key=tokens.padded)
        at, half = passes.index(longest), len(longest) // 2
        passes[at : at + 1] = [longest[:half], longest[half:]]
    filled = [Pass(tuple(one)) for one in passes]
    # The shortest pass is the cheapest to repeat.
    filled += [Pass(filled[-1].groups, weighs=False)] * (-len(filled) % ranks)
    return [tuple(filled[first : first + ranks]) for first in range(0, len(filled), ranks)]


def _stretches(groups: list[int], tokens: GroupTokens, budget: int) -> list[list[int]]:
    """The groups, in their order, cut into the fewest passes within the budget, and of these cuts the least padded."""
    cuts = [(0, 0, 0)]  # of the first n groups: passes, padded tokens, where the last pass begins
    for end in range(1, len(groups) + 1):
        found = []
        for first in range(end - 1, -1, -1):
            padded = tokens.padded(groups[first:end])
            if padded > budget:
                break
            found.append((cuts[first][0] + 1, cuts[first][1] + padded, first))
        cuts.append(min(found))
    passes, end = [], len(groups)
    while end:
        first = cuts[end][2]
        passes.append(groups[first:end])
        end = first
    return passes[::-1]


def refuse_small_budget(budget: int, tokens: GroupTokens, most_answer_tokens: int = 0) -> None:
    """Raise ValueError, with the arithmetic, where a group is above the budget or could be.

    most_answer_tokens: of one group; where its answers were short this time, the next ones may not be.
    """
    answers = np.maximum(tokens.answers, most_answer_tokens)
    longest = int((tokens.prompts + answers).argmax())
    prompt, most = int(tokens.prompts[longest]), int(answers[longest])
    if prompt + most > budget:
        raise ValueError(
            f"group {longest} of the step can take {prompt} prompt + {most} answer tokens = {prompt + most}, more than "
            f"learner.token_budget {budget}, and a group is one row: set the budget to {prompt + most} or more, or "
            "lower group_size, sampling.max_tokens or the size of images."
        )


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
    """Groups of the pass; of one that does not weigh, none counts."""
    rows: PromptRows
    """Groups of the pass, as the policy takes them."""
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
