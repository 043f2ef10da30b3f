"""Answers under way in our own engine: a few prompts at a time, in fixed places, a token after the other.

All that a token changes is written in place, and nothing of it asks the device for a value, so that a GPU is fed
without waiting and a CUDA graph can repeat it (rollout/engines/_token_graph.py). Only every few tokens is it looked
which answers have ended; what they were given beyond is cut off.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from policies.choices import NO_BIN
from policies.families.base import PolicyContract, PromptRows, Response, Routes
from policies.grammar import GrammarWalk
from policies.sharing.prompt_cache import EncodedPrompts, PromptCache, padded_prompts
from rollout.settings import Sampling

_WORTH_LEAVING = 0.75
"""Part of the places that must do for those still running: leaving costs a copy of their tokens' keys and values."""


class Flight:
    """B * G answers, of which R prompts' are under way at a time."""

    def __init__(
        self,
        policy: PolicyContract,
        rows: PromptRows,
        sampling: Sampling,
        draws: NDArray[np.float64],
        at_once: int,
        same_calls: bool = False,
    ) -> None:
        """draws: [B, G, T] uniform numbers, or [B, G, T, 1 + C] for a policy with C further heads; at_once: R.
        same_calls: see PromptCache; then finished answers stay, and `begin` may be called again for other rows."""
        b, g, most = draws.shape[:3]
        self._heads = policy.processor.heads
        self._policy, self._sampling, self._same_calls = policy, sampling, same_calls
        self._num_groups, self._group_size, self._places, self._most = b, g, at_once, most
        self._ends = torch.tensor(policy.processor.end_tokens, device=policy.device)
        # One column more than there are tokens: where groups that are done draw from and write to until they leave.
        columns = 1 + len(self._heads)
        self._draws = torch.zeros(columns, b * g, most + 1, dtype=torch.float64, device=policy.device)
        self._tokens = torch.zeros(b * g, most + 1, dtype=torch.int64, device=policy.device)
        self._logprobs = torch.zeros(b * g, most + 1, device=policy.device)
        self._bins = torch.zeros(columns - 1, b * g, most + 1, dtype=torch.int16, device=policy.device)
        self._routes: Tensor | None = None
        """[B * G * (T + 1), M, k] int16, where the policy has experts and is to tell them."""
        self._prompt_routes: list[NDArray[np.int16]] = []
        """By group, once it has entered."""
        self._cache: PromptCache | None = None
        self.allowed: Tensor | None = None
        """[R * G, V] bool, what may be chosen next; None for anything. With the same calls it stays the same tensor."""
        self.begin(rows, draws)

    def begin(self, rows: PromptRows, draws: NDArray[np.float64]) -> None:
        """Put the first R prompts in their places, nothing said yet; rows and draws of the shapes there were."""
        r, g, device = self._places, self._group_size, self._policy.device
        self._rows, self._next_group = rows, r
        by_head = torch.from_numpy(draws.reshape(-1, self._most, len(self._draws))).permute(2, 0, 1)
        self._draws.copy_(functional.pad(by_head, (0, 1)))
        prompts = self._policy.encode(rows.groups(0, r))
        self._prompt_routes = []
        self._note_routes(prompts)
        if self._cache is None:
            self._cache = PromptCache(prompts, g, self._most, self._same_calls)
            # By place: where the answer there has its row in the flat [B * G * (T + 1)], if it is finished, its last
            # token; by group, how many it has.
            self._starts = torch.empty(r, g, dtype=torch.int64, device=device)
            self._ended = torch.empty(r, g, dtype=torch.bool, device=device)
            self._last = torch.empty(r, g, dtype=torch.int64, device=device)
            self._last_bins = torch.empty(r, g, len(self._heads), dtype=torch.int64, device=device)
            self._drawn = torch.empty(r, 1, dtype=torch.int64, device=device)
        else:
            self._cache.replace(torch.arange(r, device=device), padded_prompts(prompts, self.prompt_tokens))
            if self._cache.decoder is not None:
                self._cache.decoder.refresh()
        self._starts.copy_(torch.arange(r * g, device=device).view(r, g) * (self._most + 1))
        self._ended.fill_(False)
        self._drawn.zero_()
        self._last.copy_(prompts.last_tokens[:, None].expand(r, g))
        self._last_bins.fill_(NO_BIN)  # a prompt ends in a word
        grammar = self._policy.processor.token_grammar() if self._sampling.grammar else None
        self._walk = GrammarWalk(grammar, r * g, self._most, device)
        self._allow()
        self._steps, self._begun = 0, [0] * r
        self.running = True

    def _note_routes(self, entering: EncodedPrompts) -> None:
        """Keep which experts the next groups' prompts went to, real tokens alone."""
        if entering.routes is None or not self._sampling.routing_replay:
            return
        if self._routes is None:
            places = self._num_groups * self._group_size * (self._most + 1)
            self._routes = entering.routes.new_zeros(places, *entering.routes.shape[2:])
        by_prompt = zip(entering.routes.cpu().numpy(), entering.mask.cpu().numpy(), strict=True)
        self._prompt_routes += [routes[real] for routes, real in by_prompt]

    @property
    def prompt_tokens(self) -> int:
        """P: prompts may be shorter."""
        assert self._cache is not None
        return int(self._cache.prompts.mask.shape[1])

    def token(self) -> None:
        """One more token of every answer, on the device alone; those of finished ones are never looked at."""
        assert self._cache is not None
        temperature = self._sampling.temperature or 1.0
        bins = self._last_bins if self._heads else None
        logprobs = self._policy.decode(self._cache, self._last, temperature, self.allowed, bins)
        now = (self._starts + self._drawn).view(-1)
        chosen = _choose(logprobs, self._draws[0].take(now), self._sampling.temperature == 0)
        self._tokens.put_(now, chosen)
        if self._routes is not None:
            routes = self._policy.routes()
            assert routes is not None, "the prompts had some"
            self._routes.index_copy_(0, now, routes)
        found = logprobs.gather(1, chosen[:, None])[:, 0]
        self._logprobs.put_(now, found + self._choose_bins(chosen, now) if self._heads else found)
        self._last.copy_(chosen.view_as(self._last))
        self._drawn.add_(1).clamp_(max=self._most)
        ends = (self._last[..., None] == self._ends).any(-1)
        self._ended.logical_or_(ends).logical_or_(self._drawn == self._most)

    def _choose_bins(self, chosen: Tensor, now: Tensor) -> Tensor:
        """[R * G] what the log-probabilities of bins add, each head choosing where its token was."""
        assert self._cache is not None
        more, greedy = torch.zeros_like(now, dtype=torch.float32), self._sampling.temperature == 0
        of_heads = self._policy.bin_logprobs(self._cache, self._sampling.temperature or 1.0)
        for head, (known, logprobs) in enumerate(zip(self._heads, of_heads, strict=True)):
            bins, called = _choose(logprobs, self._draws[1 + head].take(now), greedy), chosen == known.token
            more += torch.where(called, logprobs.gather(1, bins[:, None])[:, 0], 0.0)
            bins = torch.where(called, bins, NO_BIN)
            self._bins[head].put_(now, bins.to(torch.int16))
            self._last_bins[..., head].copy_(bins.view_as(self._last))
        return more

    def follow(self) -> None:
        """Behind a token: let the grammar take it."""
        self._steps += 1
        self._walk.advance(self._last.view(-1))
        self._allow()

    def _allow(self) -> None:
        allowed = self._walk.allowed()
        if allowed is not None and self._same_calls and self.allowed is not None:
            self.allowed.copy_(allowed)
        else:
            self.allowed = allowed

    def is_due(self, look_every: int) -> bool:
        """Whether it is time to look who has ended: every so many tokens, and where a group has had its last one."""
        return self._steps % look_every == 0 or self._steps - self._most in self._begun

    def settle(self) -> None:
        """Let groups that are done make room for the next ones, or finished answers leave."""
        running = (~self._ended).sum(1).tolist()
        waiting = self._num_groups - self._next_group
        done = [place for place, num in enumerate(running) if not num]
        if waiting and done:
            self._enter(done[:waiting])
        elif not waiting:
            self.running = any(running)
            places = len(running) - len(done), max(running)
            worth = places[0] * places[1] <= _WORTH_LEAVING * self._ended.numel()
            if self.running and worth and not self._same_calls:
                self._leave([place for place, num in enumerate(running) if num], places[1])

    def _enter(self, chosen: list[int]) -> None:
        """Put the next groups at `chosen` places."""
        assert self._cache is not None
        places = torch.tensor(chosen, device=self._policy.device)
        first, size = self._next_group, self._group_size
        self._next_group += len(places)
        entering = self._policy.encode(self._rows.groups(first, self._next_group))
        self._note_routes(entering)
        self._cache.replace(places, padded_prompts(entering, self.prompt_tokens))
        answers = torch.arange(first * size, self._next_group * size, device=places.device)
        self._starts[places] = answers.view(-1, size) * (self._most + 1)
        self._last[places] = entering.last_tokens[:, None].expand(-1, size)
        self._last_bins[places] = NO_BIN
        self._ended[places] = False
        self._drawn[places] = 0
        for place in chosen:
            self._begun[place] = self._steps
        self._walk.restart((places[:, None] * size + torch.arange(size, device=places.device)).view(-1))
        self._allow()

    def _leave(self, chosen: list[int], size: int) -> None:
        """Keep the groups at `chosen` places, with `size` answers of each, the finished ones leaving first."""
        assert self._cache is not None
        places = torch.tensor(chosen, device=self._policy.device)
        order = self._ended[places].to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        self._cache.keep(places, order)
        self._walk.keep((places[:, None] * self._ended.shape[1] + order).view(-1))
        self._starts, self._ended, self._last = (
            part[places].gather(1, order) for part in (self._starts, self._ended, self._last)
        )
        self._last_bins = self._last_bins[places[:, None], order]
        self._drawn, self._begun = self._drawn[places], [self._begun[place] for place in chosen]
        self._allow()

    def responses(self) -> list[Response]:
        """All answers, in order, each to the first token that ends it."""
        tokens, logprobs = self._tokens[:, :-1].cpu().numpy(), self._logprobs[:, :-1].cpu().numpy()
        known = self._ends.tolist()
        ends = np.isin(tokens, known)
        lengths = np.where(ends.any(1), ends.argmax(1) + 1, tokens.shape[1])
        bins = self._bins[..., :-1].permute(1, 2, 0).cpu().numpy() if self._heads else None
        routes = None if self._routes is None else self._routes.unflatten(0, (len(tokens), -1)).cpu().numpy()
        return [
            Response(
                tokens[k, :length].copy(),
                logprobs[k, :length].copy(),
                "stop" if tokens[k, length - 1] in known else "length",
                None if bins is None else bins[k, :length].copy(),
                None if routes is None else self._routes_of(k, routes[k, :length].copy()),
            )
            for k, length in enumerate(lengths)
        ]

    def _routes_of(self, answer: int, own: NDArray[np.int16]) -> Routes:
        return Routes(self._prompt_routes[answer // self._group_size], own)


def _choose(logprobs: Tensor, draws: Tensor, greedy: bool) -> Tensor:
    """One token [N] from log-probabilities [N, V]: the likeliest, or by inverse transform of draws [N] in [0, 1)."""
    if greedy:
        return logprobs.argmax(-1)
    # Summed in float64: in a vocabulary of 150,000 the last tokens would else be reached too seldom.
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
