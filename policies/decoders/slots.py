"""Where answers ask for masks, and the masks that a decoder drew.

Letters: B rows, G answers, T places of an answer, M masks of an answer at most, N true masks of a row at most, S cells
of a side of the grid that these are held on, K masks of one answer, h w cells of what is drawn.
"""

from collections.abc import Callable, Sequence
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
    """[B, N, S, S] float16: how much of each cell of a grid over the image each true mask of a row covers; None where
    no truth is known."""
    partners: Tensor | None = None
    """[B, G, M] int64: which true mask of its row each mask is taught to be, -1 for none; None where no truth is
    known."""

    @property
    def exists(self) -> Tensor:
        """[B, G, M] bool: which masks there are."""
        return self.places >= 0

    @property
    def taught(self) -> Tensor:
        """[B, G, M] bool: which of them have a true one to be compared with."""
        return torch.zeros_like(self.exists) if self.partners is None else self.exists & (self.partners >= 0)

    def to(self, device: torch.device) -> "MaskSlots":
        """The same slots, held by another device."""
        return self._with(lambda part: part.to(device))

    def chosen(self, rows: Any) -> "MaskSlots":
        """The slots of some rows, by a slice or by indices."""
        return self._with(lambda part: part[rows])

    def _with(self, of: Callable[[Tensor], Tensor]) -> "MaskSlots":
        truths = None if self.truths is None else of(self.truths)
        return MaskSlots(of(self.places), of(self.boxes), truths, None if self.partners is None else of(self.partners))


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


def with_truths(
    slots: MaskSlots, truths: Sequence[Tensor], partners: Sequence[Sequence[Sequence[int]]], cells: int
) -> MaskSlots:
    """The slots with what is true of them.

    truths: [B] shares [up to N, cells, cells] of the true masks of each row; partners: [B][up to G][K] which of them
    each mask of an answer is taught to be, -1 for none.
    """
    held = torch.zeros(len(truths), max([1, *map(len, truths)]), cells, cells, dtype=torch.float16)
    which = torch.full_like(slots.places, -1)
    for row, (shares, answers) in enumerate(zip(truths, partners, strict=True)):
        held[row, : len(shares)] = shares
        for number, answer in enumerate(answers):
            which[row, number, : len(answer)] = torch.tensor(answer, dtype=torch.int64)
    return MaskSlots(slots.places, slots.boxes, held, which)
