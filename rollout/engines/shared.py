"""Our sampler: each prompt is encoded once and shared by its answers; groups enter as others leave.

Every random number is keyed by (seed, step, position of the group, index in the group, token): which worker samples
a group, and how often it is retried, changes nothing. When groups enter and leave follows from the unit's own answers
alone, so neither does that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from envs.example import Question
from envs.plugin import Plugin
from envs.ranges import at_least, check_ranges
from policies.families.base import PolicyContract, PromptRows, Response
from policies.grammar import GrammarWalk
from policies.sharing.prompt_cache import PromptCache
from policies.weights import Bucket, bucket_names, held_checksum, load_bucket, make_bucket
from rollout.engines.base import uniforms
from rollout.settings import Sampling

_WORTH_LEAVING = 0.75
"""Part of the places that must do for those still running: leaving costs a copy of their tokens' keys and values."""


@dataclass(frozen=True)
class Engine:
    """Our own engine on transformers: nothing to install, the same on a CPU and on a GPU."""

    max_answers: Annotated[int | None, at_least(1, ", or to null.")] = None
    """Answers of a unit that are sampled at once, rounded down to whole groups, but one group at least; the next group
    enters when one is done. null: all of the unit. It bounds the memory of large units, and is part of the result's
    identity to the last bit, as groups_per_unit is."""

    def __post_init__(self) -> None:
        check_ranges(self, "pool.engine")

    def check(self, sampling: Sampling, gpus_per_worker: float) -> None:
        """It can draw in every way there is, with and without GPUs."""

    def open(self, policy: Plugin) -> "SharedSampler":
        """A sampler that holds the policy's checkpoint, on the GPU where this process sees one."""
        return SharedSampler(policy, self.max_answers)


class SharedSampler:
    """The policy itself, as a sampler."""

    def __init__(self, policy: Plugin, max_answers: int | None = None) -> None:
        self._plugin, self._max_answers = policy, max_answers
        # Ray shows a worker only the GPUs reserved for it, so with gpus_per_worker 0 there is none to be seen.
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.policy = policy.build().to(self._device).eval()

    def load_bucket(self, bucket: Bucket) -> None:
        """Take over some weights."""
        load_bucket(self.policy.model, bucket)

    def held_checksum(self) -> str:
        """Checksum computed from the parameters that are held now, whatever was sent."""
        return held_checksum(self.policy.model)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Replace the weights by those of a Hugging Face folder."""
        self.policy = self._plugin.with_settings(checkpoint=checkpoint).build().to(self._device).eval()

    def buckets(self) -> Iterator[Bucket]:
        """The weights that are held, cut into buckets."""
        return (make_bucket(part) for part in bucket_names(self.policy.model))

    def sample(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Response]]:
        """[B][G] responses to B questions; each answer's tokens follow from its seed."""
        no_response = [[np.array([self.policy.processor.end_token])]] * len(questions)
        rows = self.policy.rows(questions, no_response)
        draws = np.array([[uniforms((seed,), sampling.max_tokens) for seed in row] for row in seeds])
        flat = sample(self.policy, rows, sampling, draws, self._max_answers)
        size = draws.shape[1]
        return [flat[first : first + size] for first in range(0, len(flat), size)]


@torch.inference_mode()
def sample(
    policy: PolicyContract,
    rows: PromptRows,
    sampling: Sampling,
    draws: NDArray[np.float64],
    max_answers: int | None = None,
) -> list[Response]:
    """B*G responses to B prompts, in order.

    Draws: [B, G, max_tokens] uniform numbers; rows' own responses are not looked at. max_answers: see `Engine`. Raises
    ValueError where the grammar is asked for and tokenizer or limit do not suffice for it.
    """
    flight = _Flight(policy, rows, sampling, draws, max_answers)
    while flight.running:
        flight.draw()
        flight.settle()
    return flight.responses()


class _Flight:
    """The answers under way: R prompts at a time with C answers each, in fixed places."""

    def __init__(
        self,
        policy: PolicyContract,
        rows: PromptRows,
        sampling: Sampling,
        draws: NDArray[np.float64],
        max_answers: int | None,
    ) -> None:
        b, g, most = draws.shape
        r = b if max_answers is None else min(b, max(1, max_answers // g))
        self._policy, self._rows, self._sampling = policy, rows, sampling
        self._ends = torch.tensor(policy.processor.end_tokens, device=policy.device)
        # One column more than there are tokens: where groups that are done draw from and write to until they leave.
        self._draws = functional.pad(torch.from_numpy(draws.reshape(b * g, most)), (0, 1)).to(policy.device)
        self._tokens = torch.zeros(b * g, most + 1, dtype=torch.int64, device=policy.device)
        self._logprobs = torch.zeros(b * g, most + 1, device=policy.device)
        self._walk = GrammarWalk(policy.processor.token_grammar() if sampling.grammar else None, r * g, most)
        self._next_group, self._num_groups, self._group_size = r, b, g
        self._cache = PromptCache(policy.encode(rows.groups(0, r)), g, most)
        # By place: where the answer there has its row in the flat [B * G * (T + 1)], if it is finished, its last token.
        self._starts = torch.arange(r * g, device=policy.device).view(r, g) * (most + 1)
        self._ended = torch.zeros(r, g, dtype=torch.bool, device=policy.device)
        self._last = self._cache.prompts.last_tokens[:, None].expand(r, g)
        self._drawn = torch.zeros(r, 1, dtype=torch.int64, device=policy.device)
        self.running = True

    def draw(self) -> None:
        """One more token of every answer; those of finished ones are never looked at."""
        temperature = self._sampling.temperature or 1.0
        logprobs = self._policy.decode(self._cache, self._last, temperature, self._walk.allowed())
        now = (self._starts + self._drawn).view(-1)
        chosen = _choose(logprobs, self._draws.take(now), self._sampling.temperature == 0)
        self._walk.advance(chosen)
        self._tokens.put_(now, chosen)
        self._logprobs.put_(now, logprobs.gather(1, chosen[:, None])[:, 0])
        self._last = chosen.view_as(self._starts)
        self._drawn = (self._drawn + 1).clamp(max=self._sampling.max_tokens)
        at_limit = self._drawn == self._sampling.max_tokens
        self._ended = self._ended | torch.isin(self._last, self._ends) | at_limit

    def settle(self) -> None:
        """Let groups that are done make room for the next ones, or finished answers leave."""
        running = (~self._ended).sum(1).tolist()
        waiting = self._num_groups - self._next_group
        done = [place for place, num in enumerate(running) if not num]
        if waiting and done:
            self._enter(torch.tensor(done[:waiting], device=self._policy.device))
        elif not waiting:
            self.running = any(running)
            places = len(running) - len(done), max(running)
            if self.running and places[0] * places[1] <= _WORTH_LEAVING * self._ended.numel():
                self._leave(torch.tensor(running, device=self._policy.device).nonzero()[:, 0], places[1])

    def _enter(self, places: Tensor) -> None:
        """Put the next groups at `places` [M]."""
        first, size = self._next_group, self._group_size
        self._next_group += len(places)
        entering = self._policy.encode(self._rows.groups(first, self._next_group))
        self._cache.replace(places, entering)
        answers = torch.arange(first * size, self._next_group * size, device=self._policy.device)
        self._starts = self._starts.index_copy(0, places, answers.view(-1, size) * self._tokens.shape[1])
        self._last = self._last.index_copy(0, places, entering.last_tokens[:, None].expand(-1, size))
        self._ended[places] = False
        self._drawn[places] = 0
        self._walk.restart((places[:, None] * size + torch.arange(size, device=places.device)).view(-1))

    def _leave(self, places: Tensor, size: int) -> None:
        """Keep the groups at `places` [M], with `size` answers of each, the finished ones leaving first."""
        order = self._ended[places].to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        self._cache.keep(places, order)
        self._walk.keep((places[:, None] * self._ended.shape[1] + order).view(-1))
        self._starts, self._ended, self._last = (
            part[places].gather(1, order) for part in (self._starts, self._ended, self._last)
        )
        self._drawn = self._drawn[places]

    def responses(self) -> list[Response]:
        """All answers, in order, each to the first token that ends it."""
        tokens, logprobs = self._tokens[:, :-1].cpu().numpy(), self._logprobs[:, :-1].cpu().numpy()
        known = self._ends.tolist()
        ends = np.isin(tokens, known)
        lengths = np.where(ends.any(1), ends.argmax(1) + 1, tokens.shape[1])
        return [_response(tokens[k, :length], logprobs[k, :length], known) for k, length in enumerate(lengths)]


def _choose(logprobs: Tensor, draws: Tensor, greedy: bool) -> Tensor:
    """One token [N] from log-probabilities [N, V]: the likeliest, or by inverse transform of draws [N] in [0, 1)."""
    if greedy:
        return logprobs.argmax(-1)
    # Summed in float64: in a vocabulary of 150,000 the last tokens would else be reached too seldom.
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]


def _response(tokens: NDArray[np.int64], logprobs: NDArray[np.float32], ends: Sequence[int]) -> Response:
    return Response(tokens, logprobs, "stop" if tokens[-1] in ends else "length")
