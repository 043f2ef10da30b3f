"""How much of a gradient is signal, and whether updates overshoot: cosines of gradients, from sketches of them.

Gradients of two independent halves of a mini-batch, B groups each, have in the mean the inner product |G|^2 and the
square |G|^2 + tr(S) / B, G being the true gradient and S the covariance of one group's. So their cosine c estimates
|G|^2 / (|G|^2 + tr(S) / B), and B (1 / c - 1) the simple noise scale tr(S) / |G|^2 of McCandlish et al. 2018
(arXiv 1812.06162, appendix A), in groups: a batch of so many has as much noise as signal.

Between the gradients of two mini-batches lies an update. Were it small, their cosine would be c of whole mini-batches;
where it is well below 0, the second takes back what the first did: the update was too long.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SKETCH = 1 << 16
"""Numbers of a sketch; a cosine is then right to about 1 / 256."""


def sketch(gradients: Sequence[Tensor], seed: int) -> Tensor:
    """[SKETCH] float32 random projection of gradients, joined end to end, that keeps inner products on average.

    A count sketch (Charikar et al. 2002): rows of SKETCH numbers are rolled and signed at random, and added up. The
    same seed, the same projection.
    """
    rng = np.random.default_rng(seed)
    total = torch.zeros(SKETCH, device=gradients[0].device)
    for gradient in gradients:
        flat = gradient.detach().flatten()
        for first in range(0, len(flat), SKETCH):
            row = flat[first : first + SKETCH].float()
            shift, sign = int(rng.integers(SKETCH)), float(rng.choice((-1.0, 1.0)))
            head = min(len(row), SKETCH - shift)
            total[shift : shift + head].add_(row[:head], alpha=sign)
            total[: len(row) - head].add_(row[head:], alpha=sign)
    return total


class GradientSketches:
    """Sketches of the gradients of a step: of the halves of its mini-batches, and of these themselves.

    For gradients that are whole on every rank; all ranks call it alike.
    """

    def __init__(self, step: int, ranks: int) -> None:
        self._step, self._ranks = step, ranks
        self._halves: list[list[Tensor]] = []
        self._first_half: Tensor | None = None
        self._whole: list[Tensor] = []

    def half(self, gradients: Sequence[Tensor]) -> None:
        """What was added up in the first half of a mini-batch's passes, on this rank alone."""
        self._first_half = sketch(gradients, self._step)

    def minibatch(self, gradients: Sequence[Tensor]) -> None:
        """What was added up in all of them, mean over ranks."""
        whole = sketch(gradients, self._step)
        self._whole.append(whole)
        if self._first_half is not None:
            first = self._first_half
            if self._ranks > 1:
                torch.distributed.all_reduce(first)
            first = first / self._ranks
            self._halves.append([first, whole - first])
        self._first_half = None

    def stats(self) -> dict[str, float]:
        """gradient_cosine (of halves) and update_cosine (of mini-batches), as far as they are known."""
        of_halves = [cosine for pair in self._halves if (cosine := mean_cosine(pair)) is not None]
        between = mean_cosine(self._whole)
        found = {"gradient_cosine": float(np.mean(of_halves))} if of_halves else {}
        found |= {} if between is None else {"update_cosine": between}
        return {name: value for name, value in found.items() if np.isfinite(value)}


def mean_cosine(sketches: Sequence[Tensor]) -> float | None:
    """Mean inner product of two gradients over their mean square, in [-1, 1]; None of fewer than two, or of none but 0.

    sketches: of the gradients of mini-batches of one size.
    """
    if len(sketches) < 2:
        return None
    rows = torch.stack(list(sketches)).double()
    square = float(rows.square().sum()) / len(rows)
    whole = float(rows.sum(0).square().sum())
    inner = (whole - square * len(rows)) / (len(rows) * (len(rows) - 1))
    return inner / square if square > 0 else None
