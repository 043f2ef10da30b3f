"""What a language model needs to choose among masks: a token for each, and a classifier on what it makes of it.

After RAS (arXiv 2506.05342), whose code is not public: features inside of a mask and a code of its place through a
projector of two layers, a learned prefix before the candidates, a linear classifier on hidden states.
"""

import torch
from torch import Tensor, nn

from policies.selection.regions import CODE_WIDTH


class SelectionHead(nn.Module):
    """Projector, prefix and classifier."""

    def __init__(self, features: int, width: int) -> None:
        """features: channels of the tower's output; width: of the language model."""
        super().__init__()
        self.norm = nn.LayerNorm(features + CODE_WIDTH + 1)
        self.first, self.second = nn.Linear(features + CODE_WIDTH + 1, width), nn.Linear(width, width)
        self.prefix = nn.Embedding(1, width)  # a module, by whose calls ZeRO-3 fetches its weight
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

    def opening(self) -> Tensor:
        """[width] embedding of the prefix."""
        found: Tensor = self.prefix(torch.zeros(1, dtype=torch.int64, device=self.prefix.weight.device))[0]
        return found

    def logits(self, states: Tensor) -> Tensor:
        """[...] float32: how much likelier in than out, of states [..., width]."""
        found: Tensor = self.classifier(states)[..., 0]
        return found.float()
