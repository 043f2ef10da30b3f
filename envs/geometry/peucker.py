"""Rings simplified by Douglas and Peucker's rule (1973), as far as a share of their perimeter allows.

SimpleSeg makes its training outlines so, with a thousandth of the perimeter (arXiv 2601.19228). How many vertices are
left follows from the shape, not from a budget; a budget has `simplify` of envs/geometry/contours.py.
"""

import numpy as np
import shapely

from envs.geometry.contours import canonical_start
from envs.polygons import Ring


def douglas_peucker(ring: Ring, share: float) -> Ring:
    """A ring [N, 2] of which every dropped vertex lies within `share` of its perimeter from what is left.

    Three vertices or more are kept, from the topmost, then leftmost one on. The ring is cut there and at the vertex
    farthest from it, so that both stay.
    """
    tolerance = share * float(np.hypot(*np.diff(ring, axis=0, append=ring[:1]).T).sum())
    begun = canonical_start(ring)
    middle = int(np.hypot(*(begun - begun[0]).T).argmax())
    halves = [begun[: middle + 1], np.vstack([begun[middle:], begun[:1]])]
    first, second = (shapely.get_coordinates(shapely.simplify(shapely.linestrings(half), tolerance)) for half in halves)
    kept = np.vstack([first[:-1], second[:-1]])
    return kept if len(kept) >= 3 else _with_third(begun, kept)


def _with_third(ring: Ring, kept: Ring) -> Ring:
    """Two vertices of a ring and the one farthest from their line, in the order of the ring."""
    along = kept[1] - kept[0]
    apart = np.abs(along[0] * (ring[:, 1] - kept[0, 1]) - along[1] * (ring[:, 0] - kept[0, 0]))
    places = sorted({int(apart.argmax()), *(int((ring == point).all(axis=1).argmax()) for point in kept)})
    return ring[places]
