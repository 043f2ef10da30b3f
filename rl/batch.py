"""From scored groups to what the learner computes on.

A Batch names images instead of holding them: learner ranks read images themselves, and old log-probabilities are
theirs too
(recomputed before the first update, never taken from the sampler).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.example import ImageRef
from rl.gspo import Algorithm
from rollout.records import Group


@dataclass(frozen=True)
class Batch:
    """B groups of G answers."""

    images: tuple[ImageRef, ...]
    """[B]"""
    phrases: tuple[str, ...]
    """[B]"""
    tokens: tuple[tuple[NDArray[np.int64], ...], ...]
    """[B][G] token ids of each answer, end token included."""
    sampler_logprobs: tuple[tuple[NDArray[np.float32], ...], ...]
    """[B][G] log-probability of each token as the sampler saw it; compared and logged, never learned from."""
    advantages: NDArray[np.float32]
    """[B, G]"""
    counts: NDArray[np.bool_]
    """[B] False for a group without signal: it keeps its place, so that no rank waits for another, but weighs
    nothing."""

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: Sequence[int]) -> "Batch":
        """The groups at `indices`."""
        return Batch(
            tuple(self.images[k] for k in indices),
            tuple(self.phrases[k] for k in indices),
            tuple(self.tokens[k] for k in indices),
            tuple(self.sampler_logprobs[k] for k in indices),
            self.advantages[list(indices)],
            self.counts[list(indices)],
        )


def pack(groups: Sequence[Group], algorithm: Algorithm) -> Batch:
    """A Batch of groups of equal size that have their totals."""
    advantages, counts = algorithm.advantages(np.array([group.totals for group in groups]))
    responses = [[rollout.response for rollout in group.rollouts] for group in groups]
    return Batch(
        images=tuple(group.example.image for group in groups),
        phrases=tuple(group.example.prompt.text for group in groups),
        tokens=tuple(tuple(response.tokens for response in row) for row in responses),
        sampler_logprobs=tuple(tuple(response.logprobs for response in row) for row in responses),
        advantages=advantages.astype(np.float32),
        counts=counts,
    )
