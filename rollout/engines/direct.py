"""Answers of policies that choose at all places at once: one pass a question, and any number of answers from it.

Every random number is keyed as those of the engine `shared` are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from envs.example import Question
from envs.plugin import Plugin
from envs.ranges import at_least, check_ranges
from policies.families.base import DirectPolicy, PromptRows, Response
from rollout.engines.base import uniforms
from rollout.engines.shared import SharedSampler
from rollout.settings import Sampling


@dataclass(frozen=True)
class Engine:
    """Our own engine for such policies."""

    max_rows: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Questions of a unit that go through the model at once; null: all of them. It bounds the memory of large pools."""

    def __post_init__(self) -> None:
        check_ranges(self, "pool.engine")

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """Raises ValueError for a grammar: there is nothing to write."""
        if sampling.grammar:
            raise ValueError("sampling.grammar is true, and pool.engine direct writes nothing; set it to false.")

    def open(self, policy: Plugin, device: str, sleeps: bool = False) -> "DirectSampler":
        """A sampler that holds the policy's checkpoint on `device`; it may always sleep."""
        return DirectSampler(policy, self, device)


class DirectSampler(SharedSampler):
    """The policy itself, as a sampler; weights come and go as in `shared`."""

    def __init__(self, policy: Plugin, settings: Engine, device: str = "cpu") -> None:
        super().__init__(policy, device=device)
        self._most = settings.max_rows
        if not isinstance(self.policy, DirectPolicy):
            raise ValueError(
                f"pool.engine is direct, and policy.name {policy.name} writes a token after the other; set pool.engine "
                "to {name: shared}."
            )

    def prepare(self, questions: Sequence[Question], sampling: Sampling) -> PromptRows:
        """All of `sample` that needs no weights; ValueError for a question that the policy cannot be asked."""
        assert isinstance(self.policy, DirectPolicy)
        return self.policy.unanswered(questions)

    def sample_prepared(
        self, prepared: PromptRows, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] answers to questions that were prepared."""
        assert isinstance(self.policy, DirectPolicy)
        size, found = self._most or len(seeds), list[list[Response]]()
        for first in range(0, len(seeds), size):
            part = slice(first, first + size)
            rows = prepared.groups(first, min(first + size, len(seeds))).to(self.policy.device)
            found += answered(self.policy, rows, sampling, seeds[part])
        return found


def answered(
    policy: DirectPolicy, rows: PromptRows, sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> list[list[Response]]:
    """[B][G] answers to B rows, each by its seed; at temperature 0 the likeliest, whose log-probabilities are those at
    1."""
    logprobs, counts = policy.place_logprobs(rows, sampling.temperature or 1.0)
    found, sizes = logprobs.double().cpu().numpy(), counts.tolist()
    return [
        [_answer(found[b, : sizes[b]], None if sampling.temperature == 0 else seed) for seed in row]
        for b, row in enumerate(seeds)
    ]


def _answer(logprobs: NDArray[np.float64], seed: int | None) -> Response:
    """One answer by log-probabilities [T, V]; seed: None for the likeliest."""
    if seed is None:
        chosen = logprobs.argmax(1)
    else:
        # By inverse transform, as the engine `shared` draws.
        cumulative = np.exp(logprobs).cumsum(1)
        draws = uniforms((seed,), len(logprobs))[:, 0] * cumulative[:, -1]
        chosen = (cumulative <= draws[:, None]).sum(1).clip(max=logprobs.shape[1] - 1)
    told = np.take_along_axis(logprobs, chosen[:, None], 1)[:, 0]
    return Response(chosen.astype(np.int64), told.astype(np.float32), "stop")


@torch.inference_mode()
def greedy(policy: DirectPolicy, questions: Sequence[Question]) -> list[Response]:
    """The likeliest answer to each question."""
    rows = policy.unanswered(questions).to(policy.device)
    return [row[0] for row in answered(policy, rows, Sampling(0.0), [[0]] * len(questions))]
