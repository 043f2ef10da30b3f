"""Bézier curves: the area that they enclose, and flattened to polygons within a tolerance.

A segment is its control points [K, 2]: two of a line, three of a quadratic, four of a cubic curve; it begins at the
first and ends at the last. A path is a closed outline of segments, each of which begins where the one before it ended;
where the last one does not end where the first began, a straight line closes it. All lie within the hull of their
control points.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Ring

Segment = NDArray[np.float64]
Path = list[Segment]
_FEWEST = 4
"""Steps of any curve, so that one alone, closed by a line, is a ring."""


def lines(ring: Ring) -> Path:
    """The path along a ring [N, 2], a line to each vertex but the first."""
    return [np.asarray(ring[k : k + 2], np.float64) for k in range(len(ring) - 1)]


def num_points(path: Path) -> int:
    """Points that say a path: where it begins, and of each segment all but the first. A line that closes it is not
    said."""
    closing = bool(path) and len(path[-1]) == 2 and np.array_equal(path[-1][-1], path[0][0])
    return bool(path) + sum(len(segment) - 1 for segment in path) - closing


def area_under(segment: Segment) -> float:
    """Thirty times the integral of x dy - y dx along a segment: twice the area between it and the origin.

    Whole control points give a whole number, so that areas of nothing are 0 exactly (below 2^53).
    """
    if len(segment) == 2:
        return 30 * _cross(segment, 0, 1)
    if len(segment) == 3:
        return 10 * (2 * _cross(segment, 0, 1) + _cross(segment, 0, 2) + 2 * _cross(segment, 1, 2))
    near = 6 * _cross(segment, 0, 1) + 3 * _cross(segment, 0, 2) + _cross(segment, 0, 3)
    return 3 * (near + 3 * _cross(segment, 1, 2) + 3 * _cross(segment, 1, 3) + 6 * _cross(segment, 2, 3))


def signed_area(path: Path) -> float:
    """Area of a closed path, positive where it runs clockwise on screen; 0 without a segment."""
    if not path:
        return 0.0
    closing = np.stack([path[-1][-1], path[0][0]])
    return sum(map(area_under, [*path, closing])) / 60


def flattened(path: Path, tolerance: float) -> Ring:
    """The ring [N, 2] of a path whose edges lie within `tolerance` of it; vertices of a path of lines stay as they are.

    A curve becomes so many equal steps of its parameter m that |f''| / (8 m^2) is at most the tolerance, the bound on
    what a chord is off.
    """
    if not path:
        return np.zeros((0, 2))
    ring = np.concatenate([path[0][:1], *(_steps(segment, tolerance) for segment in path)])
    return ring[:-1] if len(ring) > 1 and np.array_equal(ring[0], ring[-1]) else ring


def point_at(segment: Segment, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [M, 2] of a segment at parameters [M] of 0..1, by de Casteljau's rule."""
    points = [np.broadcast_to(point, (len(t), 2)) for point in segment]
    while len(points) > 1:
        points = [a + (b - a) * t[:, None] for a, b in pairwise(points)]
    return points[0]


def _steps(segment: Segment, tolerance: float) -> NDArray[np.float64]:
    """Points of a segment behind its first, the last of them its end."""
    if len(segment) == 2:
        return segment[1:]
    degree = len(segment) - 1
    second = np.hypot(*np.diff(segment, 2, axis=0).T).max()
    num = max(_FEWEST, ceil(sqrt(degree * (degree - 1) * second / (8 * tolerance))))
    points = point_at(segment, np.arange(1, num + 1) / num)
    points[-1] = segment[-1]
    return points


def _cross(points: Sequence[NDArray[np.float64]] | Segment, a: int, b: int) -> float:
    return float(points[a][0] * points[b][1] - points[a][1] * points[b][0])
