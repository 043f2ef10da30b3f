"""Masks as vector paths: simplified under a floor on their IoU, written as SVG, and filled again by the same rule.

SVG fills by non-zero winding in the continuous pixel frame of envs/geometry/raster.py, so that one path is the same
shape in a browser and here; a browser shades the pixels along its edges, and half shaded stands for in. Edges are
straight.
"""

from collections.abc import Sequence
from html import escape
from math import ceil

import numpy as np
from numpy.typing import NDArray

from envs.geometry.contours import canonical_start, mask_from_rings, rings_from_mask, simplify
from envs.geometry.masks import iou
from envs.polygons import Ring


def svg_path(rings: Sequence[Ring]) -> str:
    """Rings as the `d` attribute of an SVG path, "M1 2L3 4L5 6Z" a ring; every number reads back to the last bit."""
    return "".join(
        "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in np.asarray(ring, np.float64)) + "Z" for ring in rings
    )


def _number(value: float) -> str:
    return np.format_float_positional(value, trim="-")


_DECIMALS = 3
"""Decimals of a pixel that a path's numbers are rounded to, far below what can be seen."""


def check_floor(min_iou: float) -> None:
    """Raise ValueError where `min_iou` is no IoU that a path can be held to."""
    if not 0 < min_iou <= 1:
        raise ValueError(f"the least IoU of the path is {min_iou}; set it above 0 and to 1 at most, such as 0.995.")


def bevelled(ring: Ring) -> Ring:
    """A pixel-edge ring [N, 2] px with each corner cut off, from half a pixel before it to half a pixel behind it.

    Stairs become slopes, and the fill stays the same to the pixel: what is cut off holds no pixel's centre.
    """
    to_last, to_next = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
    around = np.stack([ring + np.sign(to_last) / 2, ring + np.sign(to_next) / 2], axis=1).reshape(-1, 2)
    return canonical_start(around[(around != np.roll(around, 1, axis=0)).any(axis=1)])


def simplified_rings(mask: NDArray[np.bool_], min_iou: float) -> list[Ring]:
    """Rings [N, 2] px of few vertices whose fill has an IoU of `min_iou` or more with `mask` [H, W]; [] where empty.

    Traced along pixel edges, bevelled, every part and hole kept, then simplified to a budget of vertices that bisection
    finds: about the smallest. With a `min_iou` of 1 the fill is `mask` to the pixel. ValueError as of `check_floor`.
    """
    check_floor(min_iou)
    rings = [bevelled(ring) for ring in rings_from_mask(mask)]
    lengths = [float(np.abs(np.diff(ring, axis=0, append=ring[:1])).sum()) for ring in rings]
    # `simplify` shares the budget by length, and a bevelled ring has at most a vertex a pixel of its length: with this
    # budget all vertices stay.
    enough, too_few = 4 * len(rings) + ceil(sum(lengths)), 3 * len(rings) - 1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if iou(mask_from_rings(simplify(rings, middle), *mask.shape), mask) >= min_iou:
            enough = middle
        else:
            too_few = middle
    return simplify(rings, enough)


def rounded_rings(rings: Sequence[Ring]) -> list[Ring]:
    """Rings [N, 2] px to a thousandth of a pixel, as they are written."""
    return [np.asarray(np.round(ring, _DECIMALS) + 0.0, np.float64) for ring in rings]  # + 0.0: no "-0"


def path_svg(rings: Sequence[Ring], height: int, width: int, title: str) -> str:
    """An SVG document of one path over an image of height x width pixels, one unit a pixel, filled in black.

    Rings [N, 2] px, outer ones clockwise on screen and holes the other way; without any, no path. title: what a screen
    reader says and a pointer shows.
    """
    path = f'<path d="{svg_path(rings)}" fill-rule="nonzero"/>\n' if rings else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<title>{escape(title)}</title>\n{path}</svg>\n"
    )
