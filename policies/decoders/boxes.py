"""Boxes as a mask decoder sees them: numbers in waves, and a soft window on the image. Pure tensor functions.

After Qwen3-VL-Seg (arXiv 2605.07141). Boxes are (x0, y0, x1, y1) in 0..1 of the image. Letters: K boxes, F frequencies,
h w cells of a map.
"""

import math

import torch
from torch import Tensor

GROWN = 0.15
"""By how much a window is wider and higher than its box, of the box's own sides."""
SLOPE = 20.0
"""Of the window's edges: steps of a logistic function over the whole image."""
_LEAST_SIDE = 1e-4


def box_code(boxes: Tensor, frequencies: int) -> Tensor:
    """[..., 8 F] sines and cosines of a box's upper left corner and of its sides' logarithms; boxes: [..., 4].

    g(x0) | g(y0) | g(0.2 log w + 0.5) | g(0.2 log h + 0.5), g a Fourier code of F waves: from half a wave to sixty-four
    over the image.
    """
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    width, height = ((far - near).clamp(min=_LEAST_SIDE) for far, near in ((x1, x0), (y1, y0)))
    numbers = torch.stack([x0, y0, 0.2 * width.log() + 0.5, 0.2 * height.log() + 0.5], dim=-1)
    waves = math.pi * 2 ** torch.linspace(0, 7, frequencies, device=boxes.device)
    angles = numbers[..., None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def window(boxes: Tensor, height: int, width: int) -> Tensor:
    """[K, height, width] soft windows on a map over the image: near 1 inside of boxes [K, 4], near 0 outside.

    Each is the product of four logistic functions of the distance to a side of the box, grown by GROWN.
    """
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    grown_x, grown_y = GROWN / 2 * (x1 - x0), GROWN / 2 * (y1 - y0)
    columns = _between(x0 - grown_x, x1 + grown_x, width)
    rows = _between(y0 - grown_y, y1 + grown_y, height)
    return rows[:, :, None] * columns[:, None, :]


def _between(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """[K, cells] how much the centre of each cell of a side lies between low and high [K]."""
    centres = (torch.arange(cells, device=low.device) + 0.5) / cells
    inside = torch.sigmoid(SLOPE * (centres - low[:, None])) * torch.sigmoid(SLOPE * (high[:, None] - centres))
    return inside


def joint_window(windows: Tensor, exists: Tensor) -> Tensor:
    """[A, h, w] the maximum over the boxes of each answer that exist; of none, 1 everywhere.

    windows: [A, M, h, w]; exists: [A, M] bool.
    """
    held = windows.masked_fill(~exists[..., None, None], 0.0).amax(dim=1)
    return torch.where(exists.any(1)[:, None, None], held, 1.0)
