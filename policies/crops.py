"""Where a refiner looks: grown boxes, maps cut to them, and crops pasted back.

Frames: boxes are (x0, y0, x1, y1) in continuous image pixels. A crop is R x R cells over its box, each with its value
at its centre. Letters: B masks, K channels, H W image pixels, h w cells of a map over the whole image, R crop cells.
"""

import torch
from torch import Tensor


def grown_boxes_px(masks: Tensor, growth: float, min_side_px: float) -> Tensor:
    """Boxes [B, 4] float around bool masks [B, H, W], grown by `growth` sides on every side and clipped to the image.

    Each holds a square of min_side_px about the mask's middle, pushed into the image. An empty mask gets all the image.
    """
    spans = []
    for occupied in (masks.any(dim=1), masks.any(dim=2)):
        length = occupied.shape[1]
        flags = occupied.to(torch.uint8)
        low, high = flags.argmax(dim=1).float(), length - flags.flip(1).argmax(dim=1).float()
        half = min(min_side_px, length) / 2
        middle = ((low + high) / 2).clamp(half, length - half)
        margin = growth * (high - low)
        start = torch.minimum(low - margin, middle - half).clamp(min=0)
        end = torch.maximum(high + margin, middle + half).clamp(max=length)
        spans.append((start, end))
    (x0, x1), (y0, y1) = spans
    return torch.stack([x0, y0, x1, y1], dim=1)


def resampling_weights(
    start: Tensor, length: Tensor, num_out: int, num_in: int, filled: Tensor | None = None
) -> Tensor:
    """Weights [B, num_out, num_in] that read num_out equal cells over a stretch of a line of num_in unit cells.

    start, length: [B] of the stretch, in input cells. Linear between cell centres, the outermost value beyond them.
    Where output cells are larger the triangle is as wide as one, so that nothing between is lost. Rows sum to 1.
    filled: [B] how many cells of each line hold something, from the first on; None: all.
    """
    ends = start.new_full(start.shape, num_in) if filled is None else filled.to(start.dtype)
    step = (length / num_out)[:, None]
    centres = start[:, None] + (torch.arange(num_out, device=start.device) + 0.5) * step
    centres = centres.clamp(min=0.5).minimum(ends[:, None] - 0.5)
    cells = torch.arange(num_in, device=start.device) + 0.5
    distance = (centres[:, :, None] - cells).abs()
    weights = (1 - distance / step.clamp(min=1)[:, :, None]).clamp(min=0) * (cells < ends[:, None])[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def cut(maps: Tensor, boxes_px: Tensor, height: int, width: int, size: int) -> Tensor:
    """Maps [B, K, h, w] that span an image of height x width px, resampled to boxes [B, 4]: [B, K, size, size]."""
    rows, columns = maps.shape[2:]
    x0, y0, x1, y1 = boxes_px.unbind(1)
    across = resampling_weights(x0 * columns / width, (x1 - x0) * columns / width, size, columns)
    down = resampling_weights(y0 * rows / height, (y1 - y0) * rows / height, size, rows)
    return down[:, None] @ maps @ across[:, None].transpose(2, 3)


def cut_filled(maps: Tensor, filled: Tensor, boxes_px: Tensor, size: int) -> Tensor:
    """Maps [B, K, h, w] resampled to boxes [B, 4] in their own cells: [B, K, size, size].

    filled: [B, 2] rows and columns of each map that hold something, from the first on; the rest is padding.
    """
    rows, columns = maps.shape[2:]
    x0, y0, x1, y1 = boxes_px.unbind(1)
    across = resampling_weights(x0, x1 - x0, size, columns, filled[:, 1])
    down = resampling_weights(y0, y1 - y0, size, rows, filled[:, 0])
    return down[:, None] @ maps @ across[:, None].transpose(2, 3)


def paste(logits: Tensor, boxes_px: Tensor, height: int, width: int) -> Tensor:
    """Masks [B, height, width] bool: crop logits [B, R, R] resampled to the image's pixels, True where above 0.

    Pixels whose centre is outside the box [B, 4] are False.
    """
    cells = logits.shape[1]
    x0, y0, x1, y1 = boxes_px.unbind(1)
    across = resampling_weights(-x0 * cells / (x1 - x0), width * cells / (x1 - x0), width, cells)
    down = resampling_weights(-y0 * cells / (y1 - y0), height * cells / (y1 - y0), height, cells)
    x = torch.arange(width, device=logits.device) + 0.5
    y = torch.arange(height, device=logits.device) + 0.5
    inside_x = (x >= x0[:, None]) & (x < x1[:, None])
    inside_y = (y >= y0[:, None]) & (y < y1[:, None])
    return (down @ logits @ across.transpose(1, 2) > 0) & inside_y[:, :, None] & inside_x[:, None, :]


def resized(maps: Tensor, size: int) -> Tensor:
    """Maps [B, K, h, w] resampled to [B, K, size, size]; as they are where they have that size already."""
    rows, columns = maps.shape[2:]
    if rows == columns == size:
        return maps
    whole = torch.tensor([[0.0, 0.0, columns, rows]], device=maps.device).expand(len(maps), 4)
    return cut(maps, whole, rows, columns, size)
