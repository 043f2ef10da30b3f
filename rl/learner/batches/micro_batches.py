"""Which groups go through the policy together: mini-batches cut into micro-batches, these dealt to ranks, and the loss
of one.

The plan is made by pure functions of what every rank knows, so that all ranks come to the same one without a word. A
micro-batch of B groups runs on B * (P + K) tokens, P the longest prompt in it and K the most answer tokens of a group
of it (policies/sharing/packing.py); what is shorter is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.families.base import PromptRows
from rl.algorithms.base import PolicyGradient, importance_weights, token_divergence
from rl.learner.batches.batch import Batch
from rl.learner.batches.stats import Mean, MicroBatchStats, importance_stats, loss_stats, masked_mean, sampler_stats


@dataclass(frozen=True)
class PlannedMicroBatch:
    """One forward and backward pass of one rank."""

    groups: tuple[int, ...]
    """Places in the batch."""
    weighs: bool = True
    """False for a repeat of another micro-batch, which only keeps this rank in step with those that have one more."""


Round = tuple[PlannedMicroBatch, ...]
"""[ranks] micro-batches that the ranks do at the same time."""


@dataclass(frozen=True)
class GroupTokens:
    """How many tokens each group of a batch takes."""

    prompts: NDArray[np.int64]
    """[B] of its prompt."""
    answers: NDArray[np.int64]
    """[B] of all its answers together."""
    patches: NDArray[np.int64] | None = None
    """[B] patches that the vision tower sees of its image; None where nobody counted them."""

    def of(self, groups: Sequence[int]) -> "GroupTokens":
        """Tokens of some groups."""
        chosen = list(groups)
        patches = None if self.patches is None else self.patches[chosen]
        return GroupTokens(self.prompts[chosen], self.answers[chosen], patches)

    def padded(self, groups: Sequence[int]) -> int:
        """Tokens that a micro-batch over these groups runs on, padding included."""
        chosen = self.of(groups)
        return len(groups) * int(chosen.prompts.max() + chosen.answers.max())

    def work(self, groups: Sequence[int], budget: "PassBudget") -> float:
        """How much of a budget a micro-batch over these groups takes: its share of the tokens and, where they have one,
        of the patches."""
        tokens = self.padded(groups) / budget.tokens
        if budget.patches is None or self.patches is None:
            return tokens
        return tokens + int(self.patches[list(groups)].sum()) / budget.patches

    def fits(self, groups: Sequence[int], budget: "PassBudget") -> bool:
        """Whether a micro-batch over these groups is within a budget."""
        patches = 0 if self.patches is None else int(self.patches[list(groups)].sum())
        return self.padded(groups) <= budget.tokens and (budget.patches is None or patches <= budget.patches)


@dataclass(frozen=True)
class PassBudget:
    """Most that one forward pass may go over."""

    tokens: int
    """Tokens, padding included."""
    patches: int | None = None
    """Patches of all its images together; None for as many as the tokens allow."""


def even_micro_batches(groups: Sequence[int], tokens: GroupTokens, size: int, ranks: int) -> list[Round]:
    """Micro-batches of `size` groups each, by length, the longest first; ranks * size must divide the number of groups.

    Groups of like length share a micro-batch, so that little of it is padding, and micro-batches of like length a
    round, so that no rank waits long for another.
    """
    by_length = _by_length(groups, tokens)
    cut = [tuple(by_length[first : first + size]) for first in range(0, len(by_length), size)]
    return _dealt([PlannedMicroBatch(one) for one in cut], ranks)


def _by_length(groups: Sequence[int], tokens: GroupTokens) -> list[int]:
    """The groups, the longest first; of equally long ones that with more patches, then the first."""

    def order(group: int) -> tuple[int, int, int]:
        patches = 0 if tokens.patches is None else int(tokens.patches[group])
        return -int(tokens.prompts[group] + tokens.answers[group]), -patches, group

    return sorted(groups, key=order)


def _dealt(micro_batches: list[PlannedMicroBatch], ranks: int) -> list[Round]:
    """Rounds of consecutive micro-batches, dealt to and fro, so that no rank always has the longest of its round."""
    cut = [micro_batches[first : first + ranks] for first in range(0, len(micro_batches), ranks)]
    return [tuple(at_once[::-1] if number % 2 else at_once) for number, at_once in enumerate(cut)]


def budgeted_micro_batches(groups: Sequence[int], tokens: GroupTokens, budget: PassBudget, ranks: int) -> list[Round]:
    """Fewest micro-batches that a budget allows, with as little padding: groups by length, the longest first.

    They are halved until all ranks have equally many; where single groups run out first, repeats without weight fill
    the last round. Those that are as much work share a round: by their share of the budget, of tokens and of patches.
    Raises ValueError for a group that alone is above the budget.
    """
    refuse_small_budget(budget, tokens.of(groups))
    micro_batches = _stretches(_by_length(groups, tokens), tokens, budget)
    while len(micro_batches) % ranks and max(map(len, micro_batches)) > 1:
        longest = max((one for one in micro_batches if len(one) > 1), key=tokens.padded)
        at, half = micro_batches.index(longest), len(longest) // 2
        micro_batches[at : at + 1] = [longest[:half], longest[half:]]
    micro_batches.sort(key=lambda one: -tokens.work(one, budget))
    filled = [PlannedMicroBatch(tuple(one)) for one in micro_batches]
    # The least micro-batch is the cheapest to repeat.
    filled += [PlannedMicroBatch(filled[-1].groups, weighs=False)] * (-len(filled) % ranks)
    return _dealt(filled, ranks)


def _stretches(groups: list[int], tokens: GroupTokens, budget: PassBudget) -> list[list[int]]:
    """The groups, in their order, cut into the fewest stretches within the budget, the least padded of these cuts."""
    cuts = [(0, 0, 0)]  # of the first n groups: stretches, padded tokens, where the last stretch begins
    for end in range(1, len(groups) + 1):
        found = []
        for first in range(end - 1, -1, -1):
            if not tokens.fits(groups[first:end], budget):
                break
            found.append((cuts[first][0] + 1, cuts[first][1] + tokens.padded(groups[first:end]), first))
        cuts.append(min(found))
    stretches, end = [], len(groups)
    while end:
        first = cuts[end][2]
        stretches.append(groups[first:end])
        end = first
    return stretches[::-1]


def refuse_small_budget(budget: PassBudget, tokens: GroupTokens, most_answer_tokens: int = 0) -> None:
    """Raise ValueError, with the arithmetic, where a group is above the budget or could be.

    most_answer_tokens: of one group; where its answers were short this time, the next ones may not be.
    """
    answers = np.maximum(tokens.answers, most_answer_tokens)
    longest = int((tokens.prompts + answers).argmax())
    prompt, most = int(tokens.prompts[longest]), int(answers[longest])
    if budget.patches is not None and tokens.patches is not None and tokens.patches.max() > budget.patches:
        raise ValueError(
            f"the image of group {int(tokens.patches.argmax())} of the step has {int(tokens.patches.max())} patches, "
            f"more than learner.patch_budget {budget.patches}; set it to that number or more, or lower "
            "policy.max_pixels."
        )
    if prompt + most > budget.tokens:
        raise ValueError(
            f"group {longest} of the step can take {prompt} prompt + {most} answer tokens = {prompt + most}, more than "
            f"learner.token_budget {budget.tokens}, and a group is one row: set the budget to {prompt + most} or more, "
            "or lower group_size, sampling.max_tokens or the size of images."
        )


@dataclass(frozen=True)
class MiniBatch:
    """What the micro-batches between two updates have in common, on all ranks."""

    responses: int
    """Answers in groups that count, at least 1: the loss is the mean over them."""
    micro_batches: int
    """Micro-batches that weigh."""
    groups: int = 1
    """Groups, those without signal included: the supervised term is the mean over them."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass of this rank goes over."""

    part: Batch
    """Groups of the micro-batch; of one that does not weigh, none counts."""
    rows: PromptRows
    """Groups of the micro-batch, as the policy takes them; in the host's memory until their turn."""
    weighs: bool
    """False for a repeat that only keeps ranks in step."""
    minibatch: MiniBatch

    @property
    def num_answers(self) -> int:
        """G, answers of a group that have a reward; an answer that is taught comes after them."""
        return self.part.advantages.shape[1]

    def without_masks(self) -> "MicroBatch":
        """This micro-batch for a pass in which no mask is drawn."""
        return replace(self, rows=replace(self.rows, slots=None))

    def to(self, device: torch.device) -> "MicroBatch":
        """This micro-batch with its rows on another device."""
        return replace(self, rows=self.rows.to(device))


def micro_batch_of(batch: Batch, one: PlannedMicroBatch, rows: PromptRows, minibatch: MiniBatch) -> MicroBatch:
    """The micro-batch of a plan, with the rows of its groups."""
    part = batch.part(one.groups)
    if not one.weighs:
        part = replace(part, counts=np.zeros_like(part.counts))
    return MicroBatch(part, rows, one.weighs, minibatch)


def micro_batch_loss(
    algorithm: PolicyGradient, micro: MicroBatch, new: Tensor, old: Tensor, reference: Tensor | None = None
) -> tuple[Tensor, MicroBatchStats]:
    """Part of the loss that a micro-batch has, a scalar: the parts of all of them and of all ranks add up to a
    mini-batch's mean.

    new, old, reference: [B, G, T] log-probabilities of the policy, of what it was before the step's first update, and
    of the one that the run began with, where the algorithm has a divergence from it.
    """
    part, mask = micro.part, micro.rows.scored_mask[:, : micro.num_answers]
    num_tokens = mask.shape[-1]
    advantages = torch.from_numpy(part.padded_advantages(num_tokens)).to(new.device)
    counts = torch.from_numpy(part.counts).to(new.device)[:, None].expand(part.advantages.shape)
    weights = counts.float() / micro.minibatch.responses
    stats: MicroBatchStats = {}
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
        stats["kl"] = masked_mean(divergence, counts[..., None] & mask)
    # The mean of these over micro-batches is the loss of the mini-batch; and all mini-batches weigh the same.
    num = micro.minibatch.micro_batches
    stats["loss"] = Mean(float(loss.detach()) * num, 1 / num)
    return loss, stats if micro.weighs else _weightless(stats)


def supervised_loss(micro: MicroBatch, taught: Tensor) -> tuple[Tensor, MicroBatchStats]:
    """Part of the mean negative log-likelihood of a token that a micro-batch has, a scalar; mean over groups.

    taught: [B, 1, T] log-probabilities of the answers that are taught.
    """
    mask = micro.rows.scored_mask[:, micro.num_answers :]
    each = -(taught * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
    stats: MicroBatchStats = {"sft_loss": Mean(float(each.detach().mean()), len(each))}
    loss = each.sum() / micro.minibatch.groups * micro.weighs
    return loss, stats if micro.weighs else _weightless(stats)


def decoder_loss(micro: MicroBatch, losses: Tensor) -> tuple[Tensor, MicroBatchStats]:
    """Part of the decoder's own loss that a micro-batch has, a scalar: mean over the answers of a mini-batch, those in
    groups without signal included, of the mean over an answer's masks that are taught, 0 for an answer of none.

    losses: [B, G or more, T] at the tokens that ask for masks, 0 elsewhere; those behind the G answers, of an answer
    that is taught beside them, do not count. Logs decoder_loss, the mean over masks, and
    decoder_taught, the share of the masks asked for that are taught: whose boxes are about a true one.
    """
    slots = micro.rows.slots
    assert slots is not None
    losses = losses[:, : micro.num_answers]
    taught = slots.taught[:, : micro.num_answers].sum(2)
    num, asked = int(taught.sum()), int(slots.exists[:, : micro.num_answers].sum())
    stats: MicroBatchStats = {
        "decoder_loss": Mean(float(losses.detach().sum()) / max(1, num), num),
        "decoder_taught": Mean(num / max(1, asked), asked),
    }
    answers = micro.minibatch.groups * micro.num_answers
    loss = (losses.sum(2) / taught.clamp(min=1)).sum() / answers * micro.weighs
    return loss, stats if micro.weighs else _weightless(stats)


def _weightless(stats: MicroBatchStats) -> MicroBatchStats:
    return {name: Mean(mean.value, 0) for name, mean in stats.items()}
