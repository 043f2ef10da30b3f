"""Our sampler: each prompt is encoded once, its cache forked to G answers, and finished answers leave the batch.

Every random number is keyed by (seed, step, position of the group, index in the group, token): which worker samples
a group, and
how often it is retried, changes nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.base import PolicyContract, PromptRows, Response
from policies.grammar import GrammarWalk


@dataclass
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (and reports its log-probability at temperature 1)."""
    max_tokens: int = 64
    """Longest answer, tokens; longer ones are cut and read as truncated."""
    grammar: bool = False
    """Whether only tokens are sampled that lead to a valid answer within max_tokens, by the codec's grammar.

    The learner takes its log-probabilities among the same tokens.
    """

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_tokens < 1:
            raise ValueError(
                f"sampling.temperature is {self.temperature} and sampling.max_tokens {self.max_tokens}; they must "
                "be 0 or more and 1 or more."
            )

    @property
    def grammar_tokens(self) -> int | None:
        """The limit on tokens that masks depend on; None where the grammar is off."""
        return self.max_tokens if self.grammar else None


def uniforms(key: tuple[int, ...], max_tokens: int) -> NDArray[np.float64]:
    """[max_tokens] numbers in [0, 1) for one answer, a function of its key alone."""
    return np.random.default_rng(list(key)).random(max_tokens)


@torch.no_grad()
def sample(policy: PolicyContract, rows: PromptRows, sampling: Sampling, draws: NDArray[np.float64]) -> list[Response]:
    """B*G responses to B prompts, in order.

    Draws: [B, G, max_tokens] uniform numbers; rows' own responses are not looked at. Raises ValueError where the
    grammar is asked for and tokenizer or limit do not suffice for it.
    """
    b, g, most = draws.shape
    temperature = sampling.temperature or 1.0
    tokens = np.zeros((b * g, most), np.int64)
    logprobs = np.zeros((b * g, most), np.float32)
    lengths = np.full(b * g, most)
    flat_draws = torch.from_numpy(draws.reshape(b * g, most)).to(policy.device)
    active = torch.arange(b * g, device=policy.device)
    walk = GrammarWalk(policy.token_grammar() if sampling.grammar else None, b * g, most)
    cache, token_logprobs = policy.prefill(rows, g, temperature, walk.allowed_first())
    ended = torch.zeros(b * g, dtype=torch.bool, device=policy.device)
    for t in range(most):
        chosen = _choose(token_logprobs, flat_draws[active, t], sampling.temperature == 0)
        places = active.cpu().numpy()
        running = ~ended.cpu().numpy()
        tokens[places[running], t] = chosen.cpu().numpy()[running]
        logprobs[places[running], t] = token_logprobs.gather(1, chosen[:, None])[:, 0].cpu().numpy()[running]
        stopped = (chosen == policy.end_token) & ~ended
        lengths[active[stopped].cpu().numpy()] = t + 1
        ended |= stopped
        if bool(ended.all()) or t + 1 == most:
            break
        # Leaving costs a copy of the cache, so wait until a quarter has finished.
        if ended.float().mean() >= 0.25:
            left = (~ended).nonzero()[:, 0]
            policy.keep(cache, left)
            active, chosen, ended = active[left], chosen[left], ended[left]
            walk.keep(left)
        token_logprobs = policy.decode(cache, chosen, temperature, walk.allowed_after(chosen))
    return [_response(tokens[k, : lengths[k]], logprobs[k, : lengths[k]], policy.end_token) for k in range(b * g)]


def _choose(logprobs: Tensor, draws: Tensor, greedy: bool) -> Tensor:
    """One token [N] from log-probabilities [N, V]: the likeliest, or by inverse transform of draws [N] in [0, 1)."""
    if greedy:
        return logprobs.argmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]


def _response(tokens: NDArray[np.int64], logprobs: NDArray[np.float32], end_token: int) -> Response:
    return Response(tokens, logprobs, "stop" if tokens[-1] == end_token else "length")
