"""Numbers of tokens that need the logits of a whole vocabulary, without all these logits at once.

[tokens, vocabulary] is the largest array of a long batch: 16,000 tokens of a vocabulary of 150,000 are 9 GiB in
float32, and autograd would keep several of that size. Tokens go through in chunks, and where there are several, the
backward pass computes each chunk again when it comes to it.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(score: Callable[[Tensor, slice], Tensor], states: Tensor, num_chunks: int) -> Tensor:
    """score(states[part], part) for consecutive parts of states [S, width], joined: [S].

    score gives one number per token, and must give it again when called again. What it keeps for the backward pass is
    kept of one chunk at a time, unless there is only one.
    """
    if num_chunks == 1:
        return score(states, slice(0, len(states)))
    edges = [len(states) * k // num_chunks for k in range(num_chunks + 1)]
    parts = [slice(*edge) for edge in pairwise(edges)]
    scores = [
        checkpoint(score, states[part], part, use_reentrant=False, preserve_rng_state=False)  # nothing random in it
        for part in parts
    ]
    return torch.cat(scores)


def num_chunks(tokens: int, vocabulary: int, most_bytes: int) -> int:
    """Chunks of `tokens` tokens, at least 1, whose float32 logits take at most most_bytes each (but one token)."""
    per_chunk = max(1, most_bytes // (4 * vocabulary))
    return max(1, -(-tokens // per_chunk))
