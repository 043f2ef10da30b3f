"""Candidate masks as a model is shown them: shares of a grid over the image, and what of its features lies inside.

Letters: B rows, N candidates, S cells of a side of the grid that masks are held on, h w cells of a tower's features, C
channels of it, W numbers of the code of places.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from envs.example import Question

CELLS = 64
"""S."""
CODE_WIDTH = 32
"""W; a multiple of 4."""


@dataclass(frozen=True)
class Regions:
    """The candidates of B questions, padded to as many as the most have."""

    shares: Tensor
    """[B, N, S, S] float16: how much of each cell of a grid over the image a candidate covers, 0 to 1."""
    mask: Tensor
    """[B, N] bool, True on candidates that there are."""
    behind: Tensor | None = None
    """[B, 1 + N] int64: how many tokens of its prompt stand behind that of the prefix and of each candidate; None where
    these stand behind the prompt."""
    views: tuple[Tensor, ...] = ()
    """[B, 3, H, W] float32 each: the images as further encoders are shown them (encoders.py)."""
    sides: Tensor | None = None
    """[B, 2] int64 height and width of the images, pixels; None where nobody asks."""

    def to(self, device: torch.device) -> "Regions":
        """The same, held by another device."""
        return self._with(lambda part: part.to(device))

    def chosen(self, rows: Any) -> "Regions":
        """Those of some rows, by a slice or by indices."""
        return self._with(lambda part: part[rows])

    def _with(self, of: Callable[[Tensor], Tensor]) -> "Regions":
        behind, sides = (None if part is None else of(part) for part in (self.behind, self.sides))
        return Regions(of(self.shares), of(self.mask), behind, tuple(map(of, self.views)), sides)


def pools_of(questions: Sequence[Question]) -> list[NDArray[np.bool_]]:
    """[N, H, W] candidates of each question; ValueError for one without any."""
    for question in questions:
        if question.candidates is None or not len(question.candidates):
            raise ValueError(
                f"the question {question.prompt.told!r} has no candidates to choose from; set env.candidates of "
                "composed scenes, or give shards that hold some."
            )
    return [each.candidates for each in questions if each.candidates is not None]


@dataclass(frozen=True)
class References:
    """The masks that B questions refer to, padded to as many as the most do."""

    regions: Regions
    """[B, R] of them, in the order of the words between them."""
    ends: Tensor
    """[B, R] int64: tokens of the prompt from the prefix of each, which its own token follows, to the prompt's end;
    counted from there, since prompts are padded on the left."""

    def to(self, device: torch.device) -> "References":
        """The same, held by another device."""
        return References(self.regions.to(device), self.ends.to(device))

    def chosen(self, rows: Any) -> "References":
        """Those of some rows, by a slice or by indices."""
        return References(self.regions.chosen(rows), self.ends[rows])

    def placed(self, prompts: Tensor, prefix: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings [B, P, width] of prompts, a prefix [width] and the tokens [B, R, width] of references in them."""
        rows, which = self.regions.mask.nonzero(as_tuple=True)
        first = prompts.shape[1] - self.ends[rows, which]
        placed = prompts.index_put((rows, first), prefix.to(prompts.dtype).expand(len(rows), -1))
        return placed.index_put((rows, first + 1), tokens[rows, which].to(prompts.dtype))


def regions_of(candidates: list[NDArray[np.bool_]]) -> Regions:
    """Regions of B arrays [N, H, W], whose sizes may differ, and of which some may be without a mask."""
    most = max(len(each) for each in candidates)
    shares = torch.zeros(len(candidates), most, CELLS, CELLS, dtype=torch.float16)
    mask = torch.zeros(len(candidates), most, dtype=torch.bool)
    # Questions about one image are often given the very same candidates.
    held: dict[int, Tensor] = {}
    for b, each in enumerate(candidates):
        if not len(each):
            continue
        if id(each) not in held:
            held[id(each)] = covered(each)
        shares[b, : len(each)] = held[id(each)]
        mask[b, : len(each)] = True
    return Regions(shares, mask, sides=torch.tensor([each.shape[1:] for each in candidates]))


def covered(masks: NDArray[np.bool_], cells: int = CELLS) -> Tensor:
    """[N, S, S] float16: the exact share of each cell that masks [N, H, W] cover, so that none is too small to be
    seen; cells: S."""
    rows, columns = (_overlaps(size, cells) for size in masks.shape[1:])
    found = rows @ torch.from_numpy(masks).to(torch.float32) @ columns.t()
    # Half precision would round the least of shares to 0.
    return torch.where(found > 0, found.clamp(min=2e-7), found).to(torch.float16)


def _overlaps(size: int, cells: int) -> Tensor:
    """[S, size] share of each of S cells that each of `size` pixels of a side takes."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * size / cells
    pixels = torch.arange(size, dtype=torch.float64)
    low, high = torch.maximum(edges[:-1, None], pixels), torch.minimum(edges[1:, None], pixels + 1)
    return ((high - low).clamp(min=0) * cells / size).to(torch.float32)


def within(shares: Tensor, cells: tuple[int, int], rows: tuple[float, float], columns: tuple[float, float]) -> Tensor:
    """[N, h, w] float32: how much of each of h x w cells masks cover whose shares [N, S, S] span a part of them.

    rows, columns: where the part begins, and how long it is, in 0..1 of the whole.
    """
    high, wide = (
        _overlaps_of_part(shares.shape[1], count, *part).to(shares.device)
        for count, part in zip(cells, (rows, columns), strict=True)
    )
    return high @ shares.float() @ wide.t()


def _overlaps_of_part(size: int, cells: int, begin: float, length: float) -> Tensor:
    """[cells, size] share of each cell of a side that each of `size` equal pieces of a part of it takes."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    pieces = begin + length * torch.arange(size + 1, dtype=torch.float64) / size
    low, high = torch.maximum(edges[:-1, None], pieces[:-1]), torch.minimum(edges[1:, None], pieces[1:])
    return ((high - low).clamp(min=0) * cells).to(torch.float32)


def inside(shares: Tensor, features: Tensor) -> Tensor:
    """[N, C + W + 1]: the mean of features [C, h, w] inside of masks given by shares [N, S, S], that of the code of
    places, and the logarithm of the mask's share of the image.

    A mask without a pixel has the means of the whole image.
    """
    code = place_code(features.shape[1], features.shape[2]).to(features.device)
    means, area = averaged(shares, torch.cat([features.float(), code]))
    return torch.cat([means, (area + 1e-6).log()], dim=1)


def averaged(shares: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C] means of features [C, h, w] inside of masks, and [N, 1] the masks' shares of the image; as `inside`."""
    weights = functional.interpolate(shares[:, None].float(), features.shape[1:], mode="area")[:, 0].flatten(1)
    area = weights.mean(1, keepdim=True)
    weights = torch.where(area > 0, weights, 1.0)
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ features.flatten(1).float().t(), area


def place_code(height: int, width: int) -> Tensor:
    """[W, h, w] sines and cosines of each cell's centre, y in one half and x in the other, waves from the image's side
    to a sixteenth of it (2-D, after arXiv 1706.03762)."""
    waves = 2 * math.pi * 16 ** torch.linspace(0, 1, CODE_WIDTH // 4)
    halves = []
    for size, other in ((height, width), (width, height)):
        angles = waves[:, None] * ((torch.arange(size) + 0.5) / size)
        halves.append(torch.cat([angles.sin(), angles.cos()])[:, :, None].expand(-1, -1, other))
    return torch.cat([halves[0], halves[1].transpose(1, 2)])
