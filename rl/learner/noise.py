"""How much of a gradient is signal: the cosine between the gradients of mini-batches, from sketches of a few numbers.

Gradients of two independent mini-batches of B groups have, in the mean, the inner product |G|^2 and the square
|G|^2 + tr(S) / B, G being the true gradient and S the covariance of one group's. So their cosine c estimates
|G|^2 / (|G|^2 + tr(S) / B), and B (1 / c - 1) the simple noise scale tr(S) / |G|^2 of McCandlish et al. 2018
(arXiv 1812.06162, appendix A), in groups: a batch of so many has as much noise as signal.
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


def noise_scale(cosine: float, groups: float) -> float:
    """Groups at which a gradient is half noise, from the mean cosine of gradients of so many each; inf for none."""
    return groups * (1 / cosine - 1) if cosine > 0 else float("inf")
