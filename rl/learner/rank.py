"""One learner rank: a policy in a DeepSpeed engine.

A plain class that runs without Ray, alone or as one of several ranks.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.datasets.base import Env
from policies.families.base import PromptRows
from policies.lora import learns_beside, without_adapters
from policies.sharing.routes import routed
from policies.vision.image_memory import ImageMemory
from policies.weights import BUCKET_BYTES, Bucket, BucketShape, make_bucket
from rl.algorithms.base import PolicyGradient
from rl.config.learner import LearnerSettings, RankPlace, RankSettings
from rl.learner.batches.batch import Batch
from rl.learner.batches.micro_batches import (
    GroupTokens,
    MicroBatch,
    MiniBatch,
    PassBudget,
    Round,
    budgeted_micro_batches,
    decoder_loss,
    even_micro_batches,
    micro_batch_loss,
    micro_batch_of,
    refuse_small_budget,
    supervised_loss,
)
from rl.learner.batches.stats import MicroBatchStats, of_all_ranks, step_stats
from rl.learner.engine import Watchdog, adamw, trained_of, watched
from rl.learner.muon import LR_SHARE, SlowPart, rate_groups
from rl.learner.noise import GradientSketches
from rl.learner.policy import TrainedPolicy, Weights


class LearnerRank:
    """A DeepSpeed engine around the policy, and the step on it that the algorithm asks for."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        torch.set_num_threads(settings.learner.threads)
        torch.manual_seed(settings.seed)
        self._settings, self._place = settings, place
        self._algorithm: PolicyGradient = settings.algorithm.build()
        self._env: Env = settings.env.build(split="train")
        self.watchdog = Watchdog(f"learner rank {place.rank} of {place.world_size}")
        optimizer = partial(_optimizer, settings.learner)
        self._policy = TrainedPolicy(settings.policy, settings.learner, place, self.watchdog, optimizer)
        self._engine = self._policy.engine
        self._along: list[Tensor] = []
        """What learns by a loss of its own and not by the rewards: the decoder that learns along."""
        if settings.learner.decoder_weight:
            self._along = list(self._policy.network.decoder.parameters())
        self._reference: Any = None
        """The policy that the run began with, whole on this rank at every ZeRO stage, where a divergence from it counts
        and it is not the policy itself without its adapters."""
        if self._algorithm.kl > 0 and (settings.learner.lora is None or learns_beside(self._policy.network.model)):
            self._reference = settings.policy.build().to(self._engine.device).requires_grad_(False).eval()
        self._images = ImageMemory()
        if self._sees_the_same_again():
            for policy in (self._policy.network, self._reference):
                if policy is not None:
                    policy.remember_images(self._images)

    def _sees_the_same_again(self) -> bool:
        """Whether a frozen tower is shown the images of a step more than once.

        Under ZeRO-3 it computes all passes: one without the tower would spoil DeepSpeed's record of which module comes
        after which, by which it fetches weights ahead.
        """
        learner = self._settings.learner
        frozen = not any(part.requires_grad for part in self._policy.network.vision_tower.parameters())
        return frozen and learner.zero_stage < 3 and (learner.minibatches > 1 or self._algorithm.kl > 0)

    @watched
    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from one rollout batch (all ranks get the same one and take their share); returns what to log of it.

        Mini-batches are stretches of the batch. Every rank goes through equally many micro-batches, with or without
        signal in its groups, and comes to the same numbers.
        """
        learner = self._settings.learner
        lr = learner.lr_at(self._engine.steps_done)
        self._images.clear()
        shares = [self._share(batch, part) for part in np.array_split(np.arange(len(batch)), learner.minibatches)]
        # Before the first update the new log-probabilities are the old ones, so these need no pass of their own.
        old = [[self._logprobs(micro) if m else None for micro in share] for m, share in enumerate(shares)]
        logs: list[MicroBatchStats] = []
        norms, dropped, sketches = [], 0.0, GradientSketches(self._engine.steps_done, self._place.world_size)
        for share, before in zip(shares, old, strict=True):
            for k, (micro, logprobs) in enumerate(zip(share, before, strict=True)):
                if k and k == len(share) // 2 and (gradients := self._engine.gradients(self._along)) is not None:
                    sketches.half(gradients)
                logs.append(self._learn(micro, logprobs, last=micro is share[-1]))
            if (gradients := self._engine.gradients(self._along)) is not None:
                sketches.minibatch(gradients)
            norm, applied = self._engine.update(lr)
            norms.append(norm)
            dropped += not applied
        self._engine.end_step()
        stats = step_stats(of_all_ranks(logs, self._engine.device))
        stats |= {"grad_norm": float(np.mean(norms)), "updates_dropped": dropped, "lr": lr}
        return stats | sketches.stats()

    def _share(self, batch: Batch, groups: NDArray[np.int64]) -> list[MicroBatch]:
        """This rank's micro-batches over a mini-batch, some groups of the batch."""
        rounds = self._rounds(batch, groups.tolist())
        num_micro_batches = sum(one.weighs for at_once in rounds for one in at_once)
        responses = int(batch.counts[groups].sum()) * batch.advantages.shape[1]
        minibatch, share = MiniBatch(max(1, responses), num_micro_batches, len(groups)), []
        for at_once in rounds:
            mine = at_once[self._place.rank]
            share.append(micro_batch_of(batch, mine, self._rows(batch.part(mine.groups)), minibatch))
        return share

    def _rounds(self, batch: Batch, groups: list[int]) -> list[Round]:
        learner, world = self._settings.learner, self._place.world_size
        processor, answers = self._policy.network.processor, batch.answer_tokens()
        patches = np.array([processor.image_patches(image.height, image.width) for image in batch.images])
        prompts = np.zeros_like(answers) if batch.prompt_lengths is None else np.array(batch.prompt_lengths)
        tokens = GroupTokens(prompts, answers, patches)
        if learner.token_budget is None:
            return even_micro_batches(groups, tokens, learner.micro_groups, world)
        if batch.prompt_lengths is None:
            raise ValueError("learner.token_budget needs a batch that knows its prompt_lengths; make it by pack().")
        budget = PassBudget(learner.token_budget, learner.patch_budget)
        refuse_small_budget(budget, tokens, self._settings.most_answer_tokens)
        return budgeted_micro_batches(groups, tokens, budget, world)

    def _rows(self, part: Batch) -> PromptRows:
        # Photos of a whole mini-batch need not lie on the device at once.
        processor = self._engine.network.processor
        rows: PromptRows = processor.rows(part.questions(self._env), part.responses)
        if part.truths is not None:
            rows = processor.sampled_rows(rows, part.choices, part.true_masks())
        return rows if part.routes is None else routed(rows, part.routes)

    def _forward(self, policy: Callable[..., Tensor], micro: MicroBatch) -> tuple[Tensor, Tensor | None]:
        """[B, G, T] log-probabilities, and the decoder's losses at the same tokens where rows say what is true."""
        with self._images.at(id(micro.part)):  # one object as long as the step
            temperature = self._settings.temperature if micro.part.temperature is None else micro.part.temperature
            if micro.rows.slots is None:
                return policy(micro.rows, temperature, self._settings.grammar_tokens), None
            both = policy(micro.rows, temperature, self._settings.grammar_tokens, losses_apart=True)
            return both[0], both[1]

    @torch.no_grad()
    def _logprobs(self, micro: MicroBatch) -> Tensor:
        """[B, G, T] of the answers alone."""
        return self._undrawn(micro.to(self._engine.device))

    @torch.no_grad()
    def _reference_logprobs(self, micro: MicroBatch) -> Tensor:
        """[B, G, T] log-probabilities of the policy that the run began with, on the same routes."""
        if self._reference is not None:
            return self._forward(self._reference, micro.without_masks())[0][:, : micro.num_answers]
        with without_adapters(self._policy.network):
            return self._undrawn(micro)

    def _undrawn(self, micro: MicroBatch) -> Tensor:
        """[B, G, T] of the answers, by a pass that draws no masks, but for ZeRO-3, whose passes all take one way."""
        if self._settings.learner.zero_stage < 3:
            micro = micro.without_masks()
        return self._forward(self._policy, micro)[0][:, : micro.num_answers]

    def _learn(self, micro: MicroBatch, old: Tensor | None, last: bool) -> MicroBatchStats:
        """One forward and backward pass, the last one of its mini-batch or not.

        old: [B, G, T] log-probabilities before the first update; None where it was not yet done.
        """
        micro = micro.to(self._engine.device)
        reference = self._reference_logprobs(micro) if self._algorithm.kl > 0 else None
        new, masks = self._forward(self._policy, micro)
        self._images.forget(id(micro.part))
        answers, taught = new[:, : micro.num_answers], new[:, micro.num_answers :]
        before = answers.detach() if old is None else old
        loss, stats = micro_batch_loss(self._algorithm, micro, answers, before, reference)
        if micro.part.taught is not None:
            term, more = supervised_loss(micro, taught)
            loss, stats = loss + self._settings.learner.sft_weight * term, stats | more
        if masks is not None:
            term, more = decoder_loss(micro, masks)
            loss, stats = loss + self._settings.learner.decoder_weight * term, stats | more
        if not math.isfinite(stats["loss"].value):
            loss = new.sum() * math.nan  # a clamp may answer NaN with a gradient of 0, and other ranks must know
        # The engine takes the mean over ranks; the loss is this rank's part of a sum.
        self._engine.backward(loss * self._place.world_size, last)
        return stats

    def parts(self, average: bool = False, bucket_bytes: int = BUCKET_BYTES) -> Iterator[Weights]:
        """What the workers get: the weights, or their running average where there is one (TrainedPolicy.parts)."""
        return self._policy.parts(self._sends_merged, average, bucket_bytes)

    def buckets(self, average: bool = False, bucket_bytes: int = BUCKET_BYTES) -> Iterator[Bucket]:
        """`parts` as buckets."""
        return map(make_bucket, self.parts(average, bucket_bytes))

    def shapes(self) -> tuple[BucketShape, ...]:
        """What each bucket of `parts` holds."""
        return self._policy.shapes(self._sends_merged)

    def walk(self) -> None:
        """Take part in another rank's `parts`."""
        self._policy.walk(self._sends_merged)

    @property
    def _sends_merged(self) -> bool:
        lora = self._settings.learner.lora
        return lora is None or lora.push == "merged"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._engine.device

    @watched
    def rest(self) -> None:
        """Let rollout workers have the card (Rest.begin)."""
        self._engine.rest.begin()

    @watched
    def wake(self) -> None:
        """Have the card again (Rest.end)."""
        self._engine.rest.end()

    @watched
    def save(self, folder: Path, tag: str) -> None:
        """TrainingEngine.save."""
        self._engine.save(folder, tag)

    @watched
    def load(self, folder: Path, tag: str) -> None:
        """TrainingEngine.load."""
        self._engine.load(folder, tag)

    @watched
    def save_policy(self, folder: Path) -> None:
        """TrainedPolicy.save."""
        self._policy.save(folder)


def _optimizer(learner: LearnerSettings, policy: Any, slower: SlowPart) -> torch.optim.Optimizer | None:
    """AdamW of a policy whose decoder learns at a rate of its own; None, for the usual one, where none does."""
    if learner.decoder_lr is None:
        return None
    own = {id(parameter) for parameter in policy.decoder.parameters()}
    trained = trained_of(policy)
    groups = rate_groups([each for each in trained if id(each) not in own], slower)
    decoder = [each for each in trained if id(each) in own]
    return adamw([*groups, {"params": decoder, LR_SHARE: learner.decoder_lr / learner.lr}], learner)
