"""What is learned of the embeddings of a few tokens beside adapters, which leave a vocabulary as it is.

Tokens that a tokenizer lacked take rows of the embedding that nobody has trained, often all alike; adapters alone would
never tell them apart. So a row of each is learned as what is added to it: 0 at first, in the embedding and in the head,
once for both where they are one matrix. Merged, it is part of these matrices (policies/lora.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROWS = "token_rows"
"""What a model calls them, by which they travel with adapters."""


class TokenRows(nn.Module):
    """What is added to the rows of some tokens."""

    tokens: Tensor
    """[K] int64 ids, each once."""

    def __init__(self, tokens: Sequence[int], embedding: Tensor, tied: bool) -> None:
        """tokens: ids; embedding: [V, width] of the model, whose device and format they have; tied: whether it is the
        head too."""
        super().__init__()
        made: dict[str, Any] = {"device": embedding.device, "dtype": embedding.dtype}
        self.embedding = nn.Embedding(len(tokens), embedding.shape[1], **made)  # modules, by whose calls ZeRO-3 fetches
        self.head = self.embedding if tied else nn.Embedding(len(tokens), embedding.shape[1], **made)
        nn.init.zeros_(self.embedding.weight)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("tokens", torch.tensor(list(tokens)), persistent=False)

    def added(self, ids: Tensor) -> Tensor:
        """[..., width] what is added to the embeddings of ids [...]."""
        hits = ids[..., None] == self.tokens
        rows: Tensor = self.embedding(hits.int().argmax(-1))
        return rows * hits.any(-1, keepdim=True).to(rows.dtype)

    def in_head(self) -> Tensor:
        """[K, width] what is added to the rows of the head."""
        found: Tensor = self.head(torch.arange(len(self.tokens), device=self.tokens.device))
        return found


def learn_rows(model: Any, tokens: Sequence[int]) -> None:
    """Let rows of `tokens` be learned beside the adapters of a model whose head is a ScoringHead, in place.

    Raises ValueError where an adapter stands around the head, which then has no rows of its own to add to.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # takes seconds, and only a run with adapters needs it

    embedding, head = model.get_input_embeddings(), model.lm_head
    if isinstance(head, BaseTunerLayer):
        raise ValueError(
            "learner.lora.targets names lm_head, and the rows of the tokens that ask for masks learn there by "
            "themselves; leave lm_head out."
        )
    rows = TokenRows(tokens, embedding.weight, tied=head.weight is embedding.weight)
    model.token_rows = rows
    embedding.register_forward_hook(lambda _module, inputs, found: found + rows.added(inputs[0]))
    head.rows = (rows,)
