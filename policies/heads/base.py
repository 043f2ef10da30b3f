"""What goes into and comes out of a refiner's network, and what a network must do to be one.

Letters: B masks, M masks that a pass offers, K passes, H W image pixels, f feature cells of a crop's side, R its cells.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class RefinerCrops:
    """What the network sees of B masks: everything cut to the grown box."""

    images: Tensor
    """[B, 3, R, R] float in -1..1."""
    final: Tensor
    """[B, C, f, f] float, f as the head's feature_cells says."""
    early: Tensor
    """[B, E, f, f] float."""


@dataclass(frozen=True)
class RefinerPass:
    """What one pass says about B masks: M candidates, and how good each of them and the mask it was given are."""

    logits: Tensor
    """[B, M, R, R] float over the crop; above 0 is inside."""
    predicted_iou: Tensor
    """[B, M] float in 0..1, raw: the overlap with the true mask that this pass expects of each candidate."""
    input_iou: Tensor
    """[B] float in 0..1, raw: the overlap that it expects of the mask it was given, as drawn at 0.5."""

    def best(self) -> Tensor:
        """[B] int64: which candidate has the highest predicted IoU, the first of equals."""
        return self.predicted_iou.argmax(dim=1)

    @property
    def best_logits(self) -> Tensor:
        """[B, R, R] logits of the best candidate."""
        return self.logits[torch.arange(len(self.logits), device=self.logits.device), self.best()]

    @property
    def best_iou(self) -> Tensor:
        """[B] predicted IoU of the best candidate, raw."""
        return self.predicted_iou.amax(dim=1)


@dataclass(frozen=True)
class Unrolled:
    """All K passes over B coarse masks, whether or not the stop rule would have run them."""

    masks: Tensor
    """[K + 1, B, H, W] bool; [0] is the coarse mask as it came, [k] what pass k draws."""
    predicted_iou: Tensor
    """[K + 1, B] float in 0..1, calibrated; 0 where the coarse mask was empty."""
    raw_iou: Tensor
    """[K + 1, B] float in 0..1, before calibration; 0 where the coarse mask was empty."""


@dataclass(frozen=True)
class RefinedMasks:
    """Fine masks of B coarse ones, in the image's pixels."""

    masks: Tensor
    """[B, H, W] bool. Of a pass: nothing outside the grown box. Nothing at all where the coarse mask was empty."""
    predicted_iou: Tensor
    """[B] float in 0..1, calibrated, of the mask returned; 0 where the coarse mask was empty."""
    coarse_iou: Tensor
    """[B] float in 0..1, calibrated, of the coarse mask; 0 where it was empty."""
    passes: Tensor
    """[B] int64: how many passes were run, 0 where the coarse mask was empty."""
    taken: Tensor
    """[B] int64: which pass is returned; 0: the coarse mask as it came."""


class HeadContract(Protocol):
    """The network of one pass: an nn.Module called Head in a file of this folder.

    Its constructor gets crop_px, final_channels and early_channels from the refiner; its other parameters are its
    settings. Untrained it should return about the mask that it was given.
    """

    num_masks: int
    """M."""

    def feature_cells(self, crop_px: int) -> int:
        """f that crops of crop_px cells a side must bring; ValueError where the head can't take that size."""
        ...

    def context(self, crops: RefinerCrops) -> Tensor:
        """What all passes over some crops share: [B, ...], B first, so that masks which stopped can be left out."""
        ...

    def __call__(self, images: Tensor, context: Tensor, masks: Tensor) -> RefinerPass:
        """One pass over images [B, 3, R, R] in -1..1 and soft masks [B, R, R] in 0..1."""
        ...


def expected_iou(logits: Tensor, drawn: Tensor) -> Tensor:
    """[B, M] overlap of masks `drawn` to expect if each cell were true with its own probability; without gradient.

    logits: [B, M, R, R], of the probabilities; drawn: bool [B, M, R, R] (or M = 1 for all of them).
    """
    soft, cells = logits.detach().sigmoid(), drawn.float()
    return (soft * cells).sum(dim=(2, 3)) / (torch.maximum(soft, cells).sum(dim=(2, 3)) + 1e-6)


def foretold(prior: Tensor, correction: Tensor) -> Tensor:
    """IoU in 0..1 from what the probabilities let expect and a learned correction in logits; 0 leaves it at `prior`.

    The prior is kept within 0.01..0.99, so that a correction can always move it.
    """
    return (prior.logit(eps=0.01) + correction).sigmoid()
