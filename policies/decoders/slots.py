"""Where answers ask for masks, and the masks that a decoder drew.

Letters: B rows, G answers, T places of an answer, M masks of an answer at most, S cells of a side of the grid that true
masks are held on, K masks of one answer, h w cells of what is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from envs.polygons import Box


@dataclass(frozen=True)
class DrawnMasks:
    """What a decoder drew for one answer."""

    logits: NDArray[np.float16]
    """[K, h, w] over the image, in the order of the answer's boxes; a mask is where they are above 0."""
    scores: NDArray[np.float32]
    """[K] IoU with the truth that the decoder foretold, 0..1."""
    passes: NDArray[np.float16] | None = None
    """[P, K, h, w] logits of the passes before the last, where they were asked for."""

    def masks(self, height: int, width: int) -> NDArray[np.bool_]:
        """[K, height, width] the masks at an image's own size, bilinear between cells."""
        if not len(self.logits):
            return np.zeros((0, height, width), np.bool_)
        held = torch.from_numpy(self.logits.astype(np.float32))[None]
        full = functional.interpolate(held, (height, width), mode="bilinear", align_corners=False)[0]
        return np.asarray(full.numpy() > 0)


@dataclass(frozen=True)
class MaskSlots:
    """The places of B rows' answers whose states a decoder draws masks of."""

    places: Tensor
    """[B, G, M] int64: place in its answer's T of each mask token, -1 where there is none."""
    boxes: Tensor
    """[B, G, M, 4] float32: (x0, y0, x1, y1) of its box, 0..1 of the image; the whole image where there is none."""
    truths: Tensor | None = None
    """[B, G, M, S, S] float16: how much of each cell of a grid over the image the true mask covers; None where it is
    not known."""

    @property
    def exists(self) -> Tensor:
        """[B, G, M] bool."""
        return self.places >= 0

    def to(self, device: torch.device) -> "MaskSlots":
        """The same, held by another device."""
        truths = None if self.truths is None else self.truths.to(device)
        return MaskSlots(self.places.to(device), self.boxes.to(device), truths)

    def chosen(self, rows: Any) -> "MaskSlots":
        """Those of some rows, by a slice or by indices."""
        return MaskSlots(self.places[rows], self.boxes[rows], None if self.truths is None else self.truths[rows])


def slots_of(asks: Tensor, boxes: Sequence[Sequence[Sequence[Box]]]) -> MaskSlots:
    """The slots of answers whose boxes are known.

    asks: [B, G, T] bool, the mask tokens; boxes: [B][up to G][K] in 0..1. An answer with another number of boxes than
    of mask tokens asks for nothing.
    """
    b, g, _ = asks.shape
    most = max([1, *(len(answer) for row in boxes for answer in row)])
    places = torch.full((b, g, most), -1, dtype=torch.int64)
    held = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(b, g, most, 1)
    for row, answers in enumerate(boxes):
        for number, answer in enumerate(answers):
            found = asks[row, number].nonzero()[:, 0]
            if answer and len(found) == len(answer):
                places[row, number, : len(found)] = found
                held[row, number, : len(found)] = torch.tensor(answer, dtype=torch.float32)
    return MaskSlots(places, held)


def with_truths(slots: MaskSlots, truths: Sequence[Sequence[Tensor]], cells: int) -> MaskSlots:
    """The slots with what is true of them: [B][up to G] shares [K, cells, cells]."""
    held = torch.zeros(*slots.places.shape, cells, cells, dtype=torch.float16)
    for row, answers in enumerate(truths):
        for number, shares in enumerate(answers):
            held[row, number, : len(shares)] = shares
    return MaskSlots(slots.places, slots.boxes, held)
