"""One learner rank: a policy in a DeepSpeed engine.

A plain class that runs without Ray, alone or as one of several ranks.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.datasets.base import Env
from policies.families.base import PromptRows
from policies.lora import Pushed, pushed
from policies.weights import BUCKET_BYTES, Bucket, make_bucket
from rl.algorithms.base import PolicyGradient
from rl.config.learner import RankPlace, RankSettings
from rl.learner.batch import Batch
from rl.learner.engine import TrainingEngine, Watchdog, join, watched
from rl.learner.micro_batches import (
    GroupTokens,
    MicroBatch,
    MiniBatch,
    Round,
    budgeted_micro_batches,
    even_micro_batches,
    micro_batch_loss,
    micro_batch_of,
    refuse_small_budget,
)
from rl.learner.stats import MicroBatchStats, of_all_ranks, step_stats

T = TypeVar("T")
Weights = list[tuple[str, Tensor]]


class LearnerRank:
    """A DeepSpeed engine around the policy, and the step on it that the algorithm asks for."""

    def __init__(self, settings: RankSettings, place: RankPlace) -> None:
        torch.set_num_threads(settings.learner.threads)
        torch.manual_seed(settings.seed)
        self._settings, self._place = settings, place
        self._algorithm: PolicyGradient = settings.algorithm.build()
        self._env: Env = settings.env.build(split="train")
        self.watchdog = Watchdog(f"learner rank {place.rank} of {place.world_size}")
        policy = self._build_policy()
        with self.watchdog.phase("joining the other ranks"):
            join(place)
        # The average goes by the names of the model alone, by which weights travel to the workers.
        self._engine = TrainingEngine(policy, policy.model, settings.learner, place, self.watchdog)
        self._reference = self._build_reference() if self._algorithm.kl > 0 else None

    def _build_reference(self) -> torch.nn.Module:
        """The policy that the run began with, whole on this rank at every ZeRO stage; its checkpoint never changes."""
        return self._settings.policy.build().to(self._engine.device).requires_grad_(False).eval()

    def _build_policy(self) -> Any:
        """The policy to train, frozen where the settings say so."""
        learner = self._settings.learner
        recipe = self._settings.policy
        policy = (recipe if learner.lora is None else recipe.with_settings(lora=learner.lora)).build()
        policy.train()
        if learner.freeze_vision:
            policy.vision_tower.requires_grad_(False)
        if learner.gradient_checkpointing:
            policy.checkpoint_gradients()
        return policy

    @watched
    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from one rollout batch (all ranks get the same one and take their share); returns what to log of it.

        Mini-batches are stretches of the batch. Every rank goes through equally many micro-batches, with or without
        signal in its groups, and comes to the same numbers.
        """
        learner = self._settings.learner
        lr = learner.lr_at(self._engine.steps_done)
        shares = [self._share(batch, part) for part in np.array_split(np.arange(len(batch)), learner.minibatches)]
        # Before the first update the new log-probabilities are the old ones, so these need no pass of their own.
        old = [[self._logprobs(micro) if m else None for micro in share] for m, share in enumerate(shares)]
        logs: list[MicroBatchStats] = []
        norms, dropped = [], 0.0
        for share, before in zip(shares, old, strict=True):
            for micro, logprobs in zip(share, before, strict=True):
                logs.append(self._learn(micro, logprobs, last=micro is share[-1]))
            norm, applied = self._engine.update(lr)
            norms.append(norm)
            dropped += not applied
        self._engine.end_step()
        stats = step_stats(of_all_ranks(logs, self._engine.device))
        return stats | {"grad_norm": float(np.mean(norms)), "updates_dropped": dropped, "lr": lr}

    def _share(self, batch: Batch, groups: NDArray[np.int64]) -> list[MicroBatch]:
        """This rank's micro-batches over a mini-batch, some groups of the batch."""
        rounds = self._rounds(batch, groups.tolist())
        answers = batch.answer_tokens()
        num_micro_batches = sum(one.weighs for at_once in rounds for one in at_once)
        responses = int(batch.counts[groups].sum()) * batch.advantages.shape[1]
        minibatch, share = MiniBatch(max(1, responses), num_micro_batches), []
        for at_once in rounds:
            mine = at_once[self._place.rank]
            most_scored = max(int(answers[list(one.groups)].sum()) for one in at_once)
            share.append(micro_batch_of(batch, mine, self._rows(batch.part(mine.groups)), most_scored, minibatch))
        return share

    def _rounds(self, batch: Batch, groups: list[int]) -> list[Round]:
        learner, world = self._settings.learner, self._place.world_size
        if learner.token_budget is None:
            return even_micro_batches(groups, learner.micro_groups, world)
        if batch.prompt_lengths is None:
            raise ValueError("learner.token_budget needs a batch that knows its prompt_lengths; make it by pack().")
        tokens = GroupTokens(np.array(batch.prompt_lengths), batch.answer_tokens())
        refuse_small_budget(learner.token_budget, tokens, self._settings.most_answer_tokens)
        return budgeted_micro_batches(groups, tokens, learner.token_budget, world)

    def _rows(self, part: Batch) -> PromptRows:
        # Photos of a whole mini-batch need not lie on the device at once.
        rows: PromptRows = self._engine.network.processor.rows(part.questions(self._env), part.tokens)
        return rows

    def _forward(self, policy: Callable[..., Tensor], micro: MicroBatch) -> Tensor:
        return policy(micro.rows, self._settings.temperature, self._settings.grammar_tokens, micro.most_scored)

    @torch.no_grad()
    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return self._forward(self._engine, micro.to(self._engine.device))

    def _learn(self, micro: MicroBatch, old: Tensor | None, last: bool) -> MicroBatchStats:
        """One forward and backward pass, the last one of its mini-batch or not.

        old: [B, G, T] log-probabilities before the first update; None where it was not yet done.
        """
        micro = micro.to(self._engine.device)
        new = self._forward(self._engine, micro)
        reference = None
        if self._reference is not None:
            with torch.no_grad():
                reference = self._forward(self._reference, micro)
        loss, stats = micro_batch_loss(self._algorithm, micro, new, new.detach() if old is None else old, reference)
        if not math.isfinite(stats["loss"].value):
            loss = new.sum() * math.nan  # a clamp may answer NaN with a gradient of 0, and other ranks must know
        # The engine takes the mean over ranks; the loss is this rank's part of a sum.
        self._engine.backward(loss * self._place.world_size, last)
        return stats

    def buckets(self, average: bool = False, bucket_bytes: int = BUCKET_BYTES) -> Iterator[Bucket]:
        """What the workers get: the weights, or their running average where there is one, gathered bucket by bucket.

        bucket_bytes: a receiver proves what it holds by buckets of the default size. All ranks must walk through it:
        under ZeRO-3 each bucket is a collective.
        """
        lora = self._settings.learner.lora
        merged = lora is None or lora.push == "merged"
        return self._gathered(make_bucket, pushed(self._engine.network.model, merged, bucket_bytes), average)

    def _gathered(self, take: Callable[[Weights], T], parts: Iterable[list[Pushed]], average: bool) -> Iterator[T]:
        """What `take` makes of the weights of each part while they are whole. It must copy: nothing that is gathered
        or merged here outlives its part."""
        for part in parts:
            with (
                self.watchdog.phase(f"gathering weights from {part[0].name} on"),
                self._engine.whole(chain.from_iterable(each.parameters for each in part)),
            ):
                taken = take([(each.name, self._sent(each, average)) for each in part])
            yield taken

    def _sent(self, weight: Pushed, average: bool) -> Tensor:
        if average and self._engine.average:
            return self._engine.average[weight.name].to(weight.parameter.dtype)
        return weight.value()

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
        """Write the policy (its running average, where there is one; its adapters merged) as a Hugging Face folder.

        Rank 0 writes, all ranks call. Rank 0 needs the host's memory for one copy, no GPU for more than a bucket.
        """
        take = _on_host if self._place.rank == 0 else _nothing
        weights = dict(
            chain.from_iterable(self._gathered(take, pushed(self._engine.network.model, merged=True), average=True))
        )
        if self._place.rank == 0:
            self._engine.network.save(folder, weights)


def _on_host(weights: Weights) -> Weights:
    return [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in weights]


def _nothing(_: Weights) -> Weights:
    return []
