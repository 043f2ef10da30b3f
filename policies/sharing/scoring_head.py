"""The head of a language model, and what its logits say of chosen tokens, as one module that is called once a pass.

[tokens, vocabulary] is the largest array of a long batch: 16,000 tokens of a vocabulary of 150,000 are 9 GiB in
float32, and autograd would keep several of that size. So logits are made a chunk of tokens at a time inside one module,
by one call of it. Where weights are shared out among ranks (ZeRO-3) they are gathered once a call, forward and
backward, and every rank makes the same calls whatever it has to score.

The derivative is written out, for autograd would keep each chunk. With logits z, a temperature t, what can be chosen A
and weights w that add up to 1 over the vocabulary, a token's score is

    s = sum_v w_v log p_v,  p = softmax(z / t over A),  ds / dz_v = (w_v - p_v) / t

w is 1 at the target, but in supervised stages that count a number's neighbours too. Where the model caps its logits
(Gemma 2), z = c tanh(y / c) of the head's own y, and ds / dy = ds / dz (1 - (z / c)^2).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from policies.grammar import TokenGrammar
from policies.sharing.capped import capped
from policies.sharing.token_rows import TokenRows


@dataclass(frozen=True)
class Neighbours:
    """A few tokens whose log-probabilities are averaged in place of the target's own."""

    tokens: Tensor
    """[N] int64, each once."""
    weights: Tensor
    """[S, N] float, rows that add up to 1; rows of 0 where the target alone counts."""


@dataclass(frozen=True)
class Scoring:
    """What is asked of the logits of S tokens."""

    targets: Tensor
    """[S] int64: the tokens whose log-probability is wanted."""
    unsampled: Tensor
    """int64: tokens that cannot be chosen anywhere."""
    temperature: float = 1.0
    """Divides the logits."""
    logit_bytes: int = 2**28
    """Most bytes of logits, in float32, that are held at once; those of one token are held in any case."""
    allowed: "Allowed | None" = None
    """What a grammar lets be chosen; None for no grammar."""
    neighbours: Neighbours | None = None
    """None: targets alone."""
    cap: float | None = None
    """Soft cap of the logits (policies/sharing/capped.py); None for none."""

    def chunks(self, vocabulary: int) -> list[slice]:
        """Consecutive parts of the S tokens that are taken one after the other; none where S is 0."""
        num = num_chunks(len(self.targets), vocabulary, self.logit_bytes) if len(self.targets) else 0
        edges = [len(self.targets) * k // max(1, num) for k in range(num + 1)]
        return [slice(*edge) for edge in pairwise(edges)]


@dataclass(frozen=True)
class Allowed:
    """A grammar's masks, made when their tokens' turn comes."""

    grammar: TokenGrammar
    masks: Any
    """[S] int64 array: number of each token's mask."""

    def of(self, part: slice, device: torch.device) -> Tensor:
        """[s, V] bool of some of the tokens."""
        return self.grammar.allowed(self.masks[part]).to(device)


def num_chunks(tokens: int, vocabulary: int, most_bytes: int) -> int:
    """Chunks of `tokens` tokens, at least 1, whose float32 logits take at most most_bytes each (but one token)."""
    per_chunk = max(1, most_bytes // (4 * vocabulary))
    return max(1, -(-tokens // per_chunk))


class ScoringHead(nn.Linear):
    """A linear layer that also says how likely chosen tokens are.

    It takes a model's head's place under the same name and with the same parameter, so that whatever gathers, shards or
    ties that parameter goes on as before.
    """

    rows: tuple[TokenRows, ...] = ()
    """What is added to the weight's rows of a few tokens (policies/sharing/token_rows.py); no part of this module."""

    @classmethod
    def in_place_of(cls, head: nn.Linear) -> "ScoringHead":
        """One with the weight, and the bias where there is one, of `head` itself."""
        has_bias = head.bias is not None
        made = cls(head.in_features, head.out_features, bias=has_bias, device="meta", dtype=head.weight.dtype)
        made.weight, made.bias = head.weight, head.bias
        return made.train(head.training)

    def forward(self, input: Tensor, scoring: Scoring | None = None) -> Tensor:  # as in nn.Linear
        """Logits [..., V] of states [..., width]; with a scoring, of states [S, width] the scores [S], at least
        float32."""
        weight = self.weight
        for rows in self.rows:
            if scoring is None:
                own = nn.functional.linear(input, rows.in_head())
                return super().forward(input).index_add(-1, rows.tokens, own)
            weight = weight.index_add(0, rows.tokens, rows.in_head())
        if scoring is None:
            return super().forward(input)
        scored: Tensor = _Scores.apply(input, weight, self.bias, scoring)
        return scored


class _Scores(torch.autograd.Function):
    """Scores of states by the head's weight and bias, all with gradient; logits a chunk at a time in either
    direction."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> Tensor:
        scores = states.new_empty(len(states), dtype=_precise(states))
        normalisers = scores.new_empty(len(states), 2)
        chunks = scoring.chunks(len(weight))
        whole = scores.new_empty(0)
        for part in chunks:
            whole = scores.new_empty(0)  # what the last chunk took is free for the next
            whole = _logits(states[part], weight, bias, scoring, part)
            normalisers[part, 0] = whole.amax(1)
            whole.sub_(normalisers[part, :1])
            chosen = _weighed(whole, scoring, part)
            normalisers[part, 1] = whole.exp_().sum(1).log_()
            scores[part] = chosen - normalisers[part, 1]
        ctx.scoring, ctx.chunks = scoring, chunks
        # A single chunk is within its bytes, and kept; several are computed again, as are capped ones.
        kept = whole if len(chunks) == 1 and scoring.cap is None else scores.new_empty(0)
        ctx.save_for_backward(states, weight, normalisers, kept, *([] if bias is None else [bias]))
        return scores

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, slopes: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        states, weight, normalisers, kept, *biases = ctx.saved_tensors
        bias = biases[0] if biases else None
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = None if bias is None or not ctx.needs_input_grad[2] else torch.zeros_like(bias)
        slope, flat = kept, None
        for part in ctx.chunks:
            del slope
            sharp = slopes[part] / ctx.scoring.temperature
            of_sums = -(sharp * normalisers[part, 1].neg().exp())[:, None]
            if len(kept):
                slope = kept * of_sums
            else:
                slope = _logits(states[part], weight, bias, ctx.scoring, part)
                flat = _flattening(slope, ctx.scoring)
                slope.sub_(normalisers[part, :1]).exp_().mul_(of_sums)
            slope = _with_weights(slope, sharp, ctx.scoring, part)
            slope = (slope if flat is None else slope.mul_(flat)).to(states.dtype)
            if of_states is not None:
                torch.mm(slope, weight, out=of_states[part])
            if of_weight is not None:
                of_weight.addmm_(slope.t(), states[part])
            if of_bias is not None:
                of_bias += slope.sum(0)
        return of_states, of_weight, of_bias, None


def _precise(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring, part: slice) -> Tensor:
    """[s, V] over the temperature, minus infinity at what cannot be chosen; a new tensor."""
    made = torch.mm(states, weight.t()) if bias is None else torch.addmm(bias, states, weight.t())
    logits = made.to(_precise(states))
    if scoring.cap is not None:
        logits = capped(made, scoring.cap).to(logits.dtype)  # in the model's own format
    logits.index_fill_(1, scoring.unsampled, -torch.inf)
    if scoring.allowed is not None:
        logits.masked_fill_(~scoring.allowed.of(part, logits.device), -torch.inf)
    return logits if scoring.temperature == 1.0 else logits.div_(scoring.temperature)


def _flattening(logits: Tensor, scoring: Scoring) -> Tensor | None:
    """[s, V] derivative of the cap where it gave these logits over the temperature; None without a cap."""
    if scoring.cap is None:
        return None
    return 1 - (logits * (scoring.temperature / scoring.cap)).nan_to_num(neginf=0.0).square()


def _weighed(values: Tensor, scoring: Scoring, part: slice) -> Tensor:
    """[s] sum over the vocabulary of w times values [s, V]."""
    exact = values.gather(1, scoring.targets[part, None])[:, 0]
    if scoring.neighbours is None:
        return exact
    weights = scoring.neighbours.weights[part]
    near = (weights * values[:, scoring.neighbours.tokens]).masked_fill(weights == 0, 0.0).sum(1)
    return torch.where(weights.any(1), near, exact)


def _with_weights(slopes: Tensor, sharp: Tensor, scoring: Scoring, part: slice) -> Tensor:
    """`slopes` [s, V] with w times `sharp` [s] added, in place."""
    own = sharp
    if scoring.neighbours is not None:
        weights = scoring.neighbours.weights[part]
        slopes.index_add_(1, scoring.neighbours.tokens, weights.to(slopes.dtype) * sharp[:, None])
        own = torch.where(weights.any(1), 0.0, sharp)
    return slopes.scatter_add_(1, scoring.targets[part, None], own[:, None])


def scores(head: Any, states: Tensor, scoring: Scoring) -> Tensor:
    """Scores [S] of states [S, width] by a model's head, whatever it is.

    By a ScoringHead, its logits a chunk at a time. Adapters may have been put around it: it is then called once too,
    but for the logits of all tokens.
    """
    if isinstance(head, ScoringHead):
        return head(states, scoring=scoring)  # by keyword, since ZeRO-3 looks into positions for tensors
    return _of_logits(head(states), scoring)


def _of_logits(logits: Tensor, scoring: Scoring) -> Tensor:
    """Scores [S] of logits [S, V] that were computed elsewhere, by autograd."""
    whole = slice(0, len(logits))
    logits = logits if scoring.cap is None else capped(logits, scoring.cap)
    masked = logits.to(_precise(logits)).index_fill(-1, scoring.unsampled, -torch.inf)
    if scoring.allowed is not None:
        masked = masked.masked_fill(~scoring.allowed.of(whole, logits.device), -torch.inf)
    return _weighed(torch.log_softmax(masked / scoring.temperature, dim=-1), scoring, whole)
