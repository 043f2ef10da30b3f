"""From scored groups to what the learner computes on.

A Batch names images instead of holding them: learner ranks read images themselves, and compute old log-probabilities
themselves too (before the first update, never taken from the sampler).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.datasets.base import Env
from envs.example import ImageRef, Prompt, Question
from envs.geometry.rle import mask_from_rle, rle_from_mask
from policies.families.base import Response, Routes
from rl.algorithms.base import Advantages, TokenAdvantages
from rollout.records import Group


@dataclass(frozen=True)
class Batch:
    """B groups of G answers."""

    images: tuple[ImageRef, ...]
    """[B]"""
    prompts: tuple[Prompt, ...]
    """[B]"""
    choices: tuple[tuple[NDArray[np.int64], ...], ...]
    """[B][G] what was chosen at each place of each answer, end token included: token ids [T], or [T, 1 + C] with what
    C further heads chose (policies/choices.py)."""
    sampler_logprobs: tuple[tuple[NDArray[np.float32], ...], ...]
    """[B][G] log-probability of what was chosen at each place as the sampler saw it; compared and logged, and
    learned from only as importance weights."""
    advantages: NDArray[np.float32]
    """[B, G]"""
    counts: NDArray[np.bool_]
    """[B] False for a group without signal: it keeps its place, so that no rank waits for another, but weighs
    nothing."""
    token_advantages: TokenAdvantages | None = None
    """[B][G] arrays [T] that take the place of `advantages` in the loss, where the algorithm gives tokens their own."""
    prompt_lengths: tuple[int, ...] | None = None
    """[B] tokens of each prompt, image placeholders included; None where nobody counted them."""
    taught: tuple[NDArray[np.int64], ...] | None = None
    """[B] choices of an answer to each prompt that is learned by supervision beside the G; None where none is."""
    temperature: float | None = None
    """What the answers were sampled at; None: what the learner's settings say."""
    routes: tuple[tuple[Routes | None, ...], ...] | None = None
    """[B][G] which experts the tokens went to as the sampler saw it, so that they go there again; None where no answer
    says it."""
    candidates: tuple[tuple[str, ...] | None, ...] | None = None
    """[B] masks that each question lets be chosen from, as COCO run lengths; None where none does."""
    truths: tuple[tuple[str, ...], ...] | None = None
    """[B] true masks of each question that asks for masks, as COCO run lengths, for a decoder that learns by them; None
    where none does."""

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: Sequence[int]) -> "Batch":
        """The groups at `indices`."""
        return Batch(
            tuple(self.images[k] for k in indices),
            tuple(self.prompts[k] for k in indices),
            tuple(self.choices[k] for k in indices),
            tuple(self.sampler_logprobs[k] for k in indices),
            self.advantages[list(indices)],
            self.counts[list(indices)],
            None if self.token_advantages is None else tuple(self.token_advantages[k] for k in indices),
            None if self.prompt_lengths is None else tuple(self.prompt_lengths[k] for k in indices),
            None if self.taught is None else tuple(self.taught[k] for k in indices),
            self.temperature,
            None if self.routes is None else tuple(self.routes[k] for k in indices),
            None if self.candidates is None else tuple(self.candidates[k] for k in indices),
            None if self.truths is None else tuple(self.truths[k] for k in indices),
        )

    @property
    def responses(self) -> tuple[tuple[NDArray[np.int64], ...], ...]:
        """[B][G] choices of all that the policy goes over; [B][G + 1] where an answer is taught, which comes last."""
        if self.taught is None:
            return self.choices
        return tuple((*row, taught) for row, taught in zip(self.choices, self.taught, strict=True))

    def questions(self, env: Env) -> list[Question]:
        """[B] what the policy was shown; env: where the images are."""
        pools = self.candidates or (None,) * len(self.images)
        return [
            Question(env.image(ref), prompt, _masks(pool, ref))
            for ref, prompt, pool in zip(self.images, self.prompts, pools, strict=True)
        ]

    def true_masks(self) -> list[NDArray[np.bool_]]:
        """[B] true masks [N, H, W]; of a batch that has them."""
        assert self.truths is not None
        return [_stacked(masks, ref) for masks, ref in zip(self.truths, self.images, strict=True)]

    def padded_advantages(self, num_tokens: int) -> NDArray[np.float32]:
        """[B, G] advantages of the responses, or [B, G, num_tokens] of their tokens where these have their own."""
        return self.advantages if self.token_advantages is None else _padded(self.token_advantages, num_tokens)

    def padded_sampler_logprobs(self, num_tokens: int) -> NDArray[np.float32]:
        """[B, G, num_tokens] log-probabilities that the sampler gave, 0 on padding."""
        return _padded(self.sampler_logprobs, num_tokens)

    def answer_tokens(self) -> NDArray[np.int64]:
        """[B] tokens of all answers of each group together, the one that is taught included."""
        return np.array([sum(len(tokens) for tokens in row) for row in self.responses], np.int64)


def _padded(rows: Sequence[Sequence[NDArray[np.float32]]], num_tokens: int) -> NDArray[np.float32]:
    """[B, G, num_tokens] of B x G arrays of uneven length, 0 behind their ends."""
    padded = np.zeros((len(rows), max(map(len, rows), default=0), num_tokens), np.float32)
    for b, row in enumerate(rows):
        for g, values in enumerate(row):
            padded[b, g, : len(values)] = values
    return padded


def pack(
    groups: Sequence[Group],
    advantages: Advantages,
    taught: Sequence[NDArray[np.int64]] | None = None,
    truths: bool = False,
) -> Batch:
    """A Batch of B groups of equal size, to be learned from by their advantages, and by the answers [B] `taught`.

    truths: whether the true masks go with it, for a decoder that learns by them.
    """
    responses = [[rollout.response for rollout in group.rollouts] for group in groups]
    return Batch(
        images=tuple(group.example.image for group in groups),
        prompts=tuple(group.example.prompt for group in groups),
        choices=tuple(tuple(response.choices for response in row) for row in responses),
        sampler_logprobs=tuple(tuple(response.logprobs for response in row) for row in responses),
        advantages=advantages.values.astype(np.float32),
        counts=advantages.counts,
        token_advantages=advantages.of_tokens,
        prompt_lengths=tuple(len(group.prompt_tokens) for group in groups),
        taught=None if taught is None else tuple(taught),
        temperature=groups[0].temperature,
        routes=_routes(responses),
        candidates=_pools(groups),
        truths=tuple(map(_truths, groups)) if truths else None,
    )


def _truths(group: Group) -> tuple[str, ...]:
    example = group.example
    return tuple(map(rle_from_mask, example.truth.masks)) if example.prompt.asked == "mask" else ()


def _pools(groups: Sequence[Group]) -> tuple[tuple[str, ...] | None, ...] | None:
    pools = [group.example.candidates for group in groups]
    if all(pool is None for pool in pools):
        return None
    return tuple(None if pool is None else tuple(map(rle_from_mask, pool)) for pool in pools)


def _masks(pool: Sequence[str] | None, image: ImageRef) -> NDArray[np.bool_] | None:
    return None if pool is None else _stacked(pool, image)


def _stacked(pool: Sequence[str], image: ImageRef) -> NDArray[np.bool_]:
    """[N, H, W] from run lengths."""
    masks = [mask_from_rle(counts, image.height, image.width) for counts in pool]
    return np.stack(masks) if masks else np.zeros((0, image.height, image.width), np.bool_)


def _routes(responses: Sequence[Sequence[Response]]) -> tuple[tuple[Routes | None, ...], ...] | None:
    found = tuple(tuple(response.routes for response in row) for row in responses)
    return found if any(routes is not None for row in found for routes in row) else None
