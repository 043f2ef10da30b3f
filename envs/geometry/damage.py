"""True masks damaged on purpose, as a poor outline might be: synthetic coarse masks beside those that a policy drew.

Pure functions of a mask, a strength in 0..1 and a random generator; sizes are relative to the object, so that small and
large ones suffer alike. Nothing leaves the image; a mask may vanish, which is for the caller to see.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from envs.geometry.contours import mask_from_rings, outline, rings_from_mask
from envs.polygons import Ring

DAMAGES = ("dilate", "erode", "drop_vertices", "shift", "box_jitter")
"""Kinds of damage."""

_EDGE_SHARE = 0.25
"""How far an edge moves at strength 1: this share of the box's side, or of the square root of the area."""
_OUTLINE_VERTICES = 64
_DROPPED_SHARE = 0.9
"""Vertices that are dropped at strength 1."""


def damaged(mask: NDArray[np.bool_], kind: str, strength: float, rng: Generator) -> NDArray[np.bool_]:
    """A bool mask [H, W], not empty, with one of DAMAGES done to it.

    strength: 0 leaves it as it is, or nearly, 1 is the worst. Raises ValueError for another kind.
    """
    if kind == "dilate":
        return dilated(mask, _reach_px(mask, strength))
    if kind == "erode":
        return ~dilated(~mask, _reach_px(mask, strength))
    if kind == "drop_vertices":
        return with_vertices_dropped(mask, _DROPPED_SHARE * strength, rng)
    if kind == "shift":
        angle = rng.uniform(0, 2 * np.pi)
        return with_box_edges_moved(mask, strength * _EDGE_SHARE * np.tile([np.cos(angle), np.sin(angle)], 2))
    if kind == "box_jitter":
        return with_box_edges_moved(mask, strength * _EDGE_SHARE * rng.uniform(-1, 1, 4))
    raise ValueError(f"damage {kind!r} is unknown; choose of {', '.join(DAMAGES)}.")


def dilated(mask: NDArray[np.bool_], reach_px: float) -> NDArray[np.bool_]:
    """Pixels of bool `mask` [H, W] and those whose centre is within `reach_px` of the centre of one of them."""
    if not mask.any():
        return mask.copy()
    return np.asarray(distance_transform_edt(~mask) <= reach_px)


def with_vertices_dropped(mask: NDArray[np.bool_], share: float, rng: Generator) -> NDArray[np.bool_]:
    """The outline of `mask` [H, W] in at most 64 vertices, less a random share of them; three a ring stay."""
    rings = [_thinned(ring, share, rng) for ring in outline(mask, _OUTLINE_VERTICES)]
    return mask_from_rings(rings, *mask.shape)


def _thinned(ring: Ring, share: float, rng: Generator) -> Ring:
    num = max(3, round(len(ring) * (1 - share)))
    return ring[np.sort(rng.permutation(len(ring))[:num])]


def with_box_edges_moved(mask: NDArray[np.bool_], moves: NDArray[np.float64]) -> NDArray[np.bool_]:
    """`mask` [H, W] stretched with its tight box, whose edges x0, y0, x1, y1 move by `moves` [4] sides of the box."""
    rings = rings_from_mask(mask)
    corners = np.concatenate(rings)
    low, high = corners.min(axis=0), corners.max(axis=0)
    side = high - low
    new_low, new_high = low + moves[:2] * side, high + moves[2:] * side
    moved = [new_low + (ring - low) / side * (new_high - new_low) for ring in rings]
    return mask_from_rings(moved, *mask.shape)


def _reach_px(mask: NDArray[np.bool_], strength: float) -> float:
    return strength * _EDGE_SHARE * float(np.sqrt(mask.sum()))
