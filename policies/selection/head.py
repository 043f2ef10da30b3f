"""What a language model needs to choose among masks: a token for each, and a classifier on what it makes of it.

After RAS (arXiv 2506.05342), whose code is not public: features inside of a mask and a code of its place through a
projector of two layers, a learned prefix before the candidates and another before each mask that a question refers to,
a linear classifier on hidden states.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from policies.selection.regions import CODE_WIDTH

_LATER = {"reference_prefix.weight"}
"""What heads saved by earlier versions lack."""


class SelectionHead(nn.Module):
    """Projector, prefixes and classifier."""

    def __init__(self, features: int, width: int) -> None:
        """features: channels of the tower's output; width: of the language model."""
        super().__init__()
        self.norm = nn.LayerNorm(features + CODE_WIDTH + 1)
        self.first, self.second = nn.Linear(features + CODE_WIDTH + 1, width), nn.Linear(width, width)
        # Modules, by whose calls ZeRO-3 fetches their weights.
        self.prefix, self.reference_prefix = nn.Embedding(1, width), nn.Embedding(1, width)
        self.classifier = nn.Linear(width, 1)

    def begin(self, seed: int, spread: float) -> None:
        """First weights, the same wherever they are drawn; spread: of the language model's embeddings, so that new
        tokens are as large as old ones."""
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.first, self.second):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=draws)
                layer.bias.zero_()
            self.second.weight.mul_(spread)
            nn.init.normal_(self.prefix.weight, std=spread, generator=draws)
            nn.init.normal_(self.reference_prefix.weight, std=spread, generator=draws)
            # Nobody is chosen or left out beforehand.
            self.classifier.weight.zero_()
            self.classifier.bias.zero_()
            self.norm.weight.fill_(1.0)
            self.norm.bias.zero_()

    def tokens(self, regions: Tensor) -> Tensor:
        """[N, width] embeddings of regions [N, features + W + 1] (regions.py)."""
        like = self.first.weight.dtype
        made: Tensor = self.second(nn.functional.gelu(self.first(self.norm(regions.to(like)))))
        return made

    def take(self, held: Mapping[str, Tensor]) -> None:
        """Take over weights by name; where an earlier version saved no prefix of references, ours stays as it begins.

        Raises ValueError for weights of other names or shapes.
        """
        own = self.state_dict()
        wrong = sorted((own.keys() - _LATER) ^ (held.keys() - _LATER))
        wrong += [name for name in own.keys() & held.keys() if own[name].shape != held[name].shape]
        if wrong:
            raise ValueError(
                f"what chooses among masks has no {wrong[0]} as this model wants it; give the file that goes with the "
                "model, or remove it to begin with new weights."
            )
        self.load_state_dict(dict(held), strict=False)

    def openings(self) -> tuple[Tensor, Tensor]:
        """[width] embeddings of the prefixes of candidates and of references."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.prefix.weight.device)
        prefix, reference = self.prefix(zero)[0], self.reference_prefix(zero)[0]
        # Where no question refers to a mask the second has a gradient too, of 0: ranks wait for that of every weight.
        return prefix + 0.0 * reference, reference

    def logits(self, states: Tensor) -> Tensor:
        """[...] float32: how much likelier in than out, of states [..., width]."""
        found: Tensor = self.classifier(states)[..., 0]
        return found.float()
