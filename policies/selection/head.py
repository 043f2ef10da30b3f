"""What a language model needs to choose among masks: a token for each, and where it writes nothing, a classifier.

After RAS (arXiv 2506.05342), whose code is not public: features inside of a mask and a code of its place through a
projector of two layers, a learned prefix before the candidates and another before each mask that a question refers to,
a linear classifier on hidden states.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.selection.regions import CODE_WIDTH


class MaskTokens(nn.Module):
    """What makes a token of a mask: projector, and a prefix that stands before the first."""

    def __init__(self, features: int, width: int, encoders: Sequence[int] = ()) -> None:
        """features: channels of the tower's output; width: of the language model; encoders: channels of further
        encoders, each with a norm of its own, since they are of different sizes."""
        super().__init__()
        self.norm = nn.LayerNorm(features + CODE_WIDTH + 1)
        self.norms = nn.ModuleList(map(nn.LayerNorm, encoders))
        self.first = nn.Linear(features + CODE_WIDTH + 1 + sum(encoders), width)
        self.second = nn.Linear(width, width)
        self.prefix = nn.Embedding(1, width)  # a module, by whose calls ZeRO-3 fetches its weight

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
            for norm in (self.norm, *self.norms):
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)

    def tokens(self, regions: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """[N, width] embeddings of regions [N, features + W + 1] (regions.py), and of what further encoders say of
        them, [N, channels] each."""
        like = self.first.weight.dtype
        told = [norm(each.to(like)) for norm, each in zip((self.norm, *self.norms), (regions, *others), strict=True)]
        made: Tensor = self.second(nn.functional.gelu(self.first(torch.cat(told, dim=-1))))
        return made

    def opening(self) -> Tensor:
        """[width] embedding of the prefix."""
        found: Tensor = self.prefix(torch.zeros(1, dtype=torch.int64, device=self.prefix.weight.device))[0]
        return found


def mask_features(config: Any) -> int:
    """Channels of what the tower of a model tells of a mask, by the model's config: of Qwen's families what its merger
    makes, else a patch's state."""
    vision = config.vision_config
    return int(vision.to_dict().get("out_hidden_size") or vision.hidden_size)


class SelectionHead(MaskTokens):
    """Projector, prefixes of candidates and of references, and classifier."""

    def __init__(self, features: int, width: int, encoders: Sequence[int] = ()) -> None:
        """As MaskTokens."""
        super().__init__(features, width, encoders)
        self.reference_prefix = nn.Embedding(1, width)
        self.classifier = nn.Linear(width, 1)

    def begin(self, seed: int, spread: float) -> None:
        """As MaskTokens; nobody is chosen or left out beforehand."""
        super().begin(seed, spread)
        draws = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            nn.init.normal_(self.reference_prefix.weight, std=spread, generator=draws)
            self.classifier.weight.zero_()
            self.classifier.bias.zero_()

    def openings(self) -> tuple[Tensor, Tensor]:
        """[width] embeddings of the prefixes of candidates and of references."""
        zero = torch.zeros(1, dtype=torch.int64, device=self.prefix.weight.device)
        reference = self.reference_prefix(zero)[0]
        # Where no question refers to a mask the second has a gradient too, of 0: ranks wait for that of every weight.
        return self.opening() + 0.0 * reference, reference

    def logits(self, states: Tensor) -> Tensor:
        """[...] float32: how much likelier in than out, of states [..., width]."""
        found: Tensor = self.classifier(states)[..., 0]
        return found.float()
