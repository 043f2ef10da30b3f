"""What a mask decoder is taught by: cross-entropy of pixels, Dice, and the error of the IoU that it foretells. Pure
functions over K masks [K, S, S] on one grid.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from envs.ranges import at_least, check_ranges


@dataclass(frozen=True)
class MaskLosses:
    """How much each part weighs, in nats of a token."""

    bce: Annotated[float, at_least(0)] = 5.0
    """Weight of the mean binary cross-entropy of the pixels."""
    dice: Annotated[float, at_least(0)] = 2.0
    """Weight of 1 less the soft Dice score (arXiv 1606.04797)."""
    iou: Annotated[float, at_least(0)] = 0.5
    """Weight of the squared error of the foretold IoU."""

    def __post_init__(self) -> None:
        check_ranges(self, "policy.losses")

    def of(self, passes: Tensor, foretold: Tensor, truths: Tensor) -> Tensor:
        """[K] losses: those of masks as means over passes.

        passes: [P, K, S, S] logits; foretold: [K] the IoU of the last of them; truths: [K, S, S] shares of each cell
        that the true masks cover, 0 to 1.
        """
        masks = torch.stack([self.bce * bce(logits, truths) + self.dice * dice(logits, truths) for logits in passes])
        found = iou(passes[-1].detach(), truths)
        return masks.mean(0) + self.iou * (foretold.float() - found) ** 2


def bce(logits: Tensor, truths: Tensor) -> Tensor:
    """[K] mean binary cross-entropy over cells."""
    each = functional.binary_cross_entropy_with_logits(logits.float(), truths.float(), reduction="none")
    return each.flatten(1).mean(1)


def dice(logits: Tensor, truths: Tensor) -> Tensor:
    """[K] 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p the shares that logits mean."""
    shares, truths = logits.float().sigmoid().flatten(1), truths.float().flatten(1)
    return 1 - (2 * (shares * truths).sum(1) + 1) / (shares.sum(1) + truths.sum(1) + 1)


def iou(logits: Tensor, truths: Tensor) -> Tensor:
    """[K] IoU of the masks cut at a logit of 0 with the truths cut at one half; 1 where both are empty."""
    drawn, true = logits.flatten(1) > 0, truths.flatten(1) >= 0.5
    union = (drawn | true).sum(1)
    return torch.where(union > 0, (drawn & true).sum(1) / union.clamp(min=1), 1.0)
