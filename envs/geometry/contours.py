"""From masks to rings: canonical order, and simplification to a budget of vertices or of IoU.

All rings are in pixels, traced along pixel edges (envs/geometry/raster.py): mask -> rings_from_mask -> fill gives the
mask back exactly. Canonical order is that of the tracer: outer rings clockwise on screen, holes the other way, each
from its topmost, then leftmost vertex, rings by first vertex. Simplification keeps that order.
"""

import numpy as np
from numpy.typing import NDArray

from envs.geometry.masks import reaches_iou
from envs.geometry.raster import fill, importance, trace
from envs.polygons import Ring, flatten_rings, signed_area_px, split_rings


def rings_from_mask(mask: NDArray[np.bool_]) -> list[Ring]:
    """Exact rings [N, 2] px of a bool mask [H, W], in canonical order; [] for an empty mask."""
    return split_rings(*trace(np.ascontiguousarray(mask, np.bool_)))


def mask_from_rings(rings: list[Ring], height: int, width: int) -> NDArray[np.bool_]:
    """Mask [height, width] of rings [N, 2] px, filled together by non-zero winding."""
    return fill(*flatten_rings(rings), height, width)


def canonical_start(ring: Ring) -> Ring:
    """A ring [N, 2], rotated to begin at its topmost, then leftmost vertex."""
    return np.roll(ring, -int(np.lexsort((ring[:, 0], ring[:, 1]))[0]), axis=0)


def simplify(rings: list[Ring], num_vertices: int) -> list[Ring]:
    """At most `num_vertices` vertices over all rings, dropped by Visvalingam and Whyatt's triangle areas.

    Every ring keeps three or more; the rest of the budget is shared by perimeter. Raises ValueError where three a
    ring do not fit.
    """
    if 3 * len(rings) > num_vertices:
        raise ValueError(
            f"num_vertices is {num_vertices}, but {len(rings)} rings need 3 each; keep fewer rings or raise the "
            f"budget to {3 * len(rings)}."
        )
    perimeters = [np.abs(np.diff(ring, axis=0, append=ring[:1])).sum() for ring in rings]
    spare = num_vertices - 3 * len(rings)
    budgets = [3 + int(spare * length / sum(perimeters)) for length in perimeters]
    if rings:
        budgets[int(np.argmax(perimeters))] += num_vertices - sum(budgets)
    return [
        canonical_start(ring[importance(np.ascontiguousarray(ring, np.float64)) <= budget])
        for ring, budget in zip(rings, budgets, strict=True)
    ]


def largest_rings(rings: list[Ring], max_rings: int, min_share: float) -> list[Ring]:
    """The `max_rings` rings of largest area, in their old order, less those under `min_share` of the largest."""
    areas = [abs(signed_area_px(ring)) for ring in rings]
    kept = sorted(sorted(range(len(rings)), key=lambda k: -areas[k])[:max_rings])
    return [rings[k] for k in kept if areas[k] >= min_share * max(areas)]


def outline(mask: NDArray[np.bool_], max_vertices: int, max_rings: int = 4, min_share: float = 0.02) -> list[Ring]:
    """Rings of `mask` [H, W] within a budget: largest rings first, holes included, then simplified to
    `max_vertices`."""
    return simplify(largest_rings(rings_from_mask(mask), max_rings, min_share), max_vertices)


def outline_to_iou(mask: NDArray[np.bool_], min_iou: float, max_vertices: int = 1024) -> list[Ring]:
    """The outline of `mask` within the smallest budget of vertices whose filled IoU is `min_iou` or more.

    Where even `max_vertices` do not reach it, the outline at `max_vertices`. Specks under 0.1 % of the largest ring go.
    """
    rings = largest_rings(rings_from_mask(mask), max_vertices // 3, 0.001)
    # One budget after the other: a vertex more may lower the IoU, so bisection would miss the smallest.
    for num_vertices in range(3 * len(rings), max_vertices):
        simplified = simplify(rings, num_vertices)
        filled = mask_from_rings(simplified, *mask.shape)
        if reaches_iou(filled, mask, min_iou) or sum(map(len, simplified)) == sum(map(len, rings)):
            return simplified
    return simplify(rings, max_vertices)
