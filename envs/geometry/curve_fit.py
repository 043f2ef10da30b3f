"""Outlines written as few lines and Bézier curves: the path that is worth its points.

Joints are chosen among the outline's vertices by dynamic programming, as potrace chooses the corners of its polygons
(Selinger 2003): from joint to joint goes a line (1 point), a quadratic (2) or a cubic curve (3), and the way round is
taken that costs least, each point a price and each segment the area between it and the outline. Curves are fitted by
least squares with their ends fixed and their parameters improved by Newton's step (Schneider 1990, Graphics Gems).
Inner control points are free within the outline's box, with no common tangent where two curves meet, since a mask does
not show it. A corner that no curve follows is a joint by itself. Last, all points are moved to where the squares of
the distances are least, joints too: a path whose joints lie on the outline cuts its bends.
"""

from collections.abc import Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.geometry.contours import canonical_start, simplify
from envs.geometry.curves import Path, Segment, lines, num_points, signed_area
from envs.geometry.raster import importance
from envs.polygons import Ring, signed_area_px

MAX_JOINTS = 128
"""Vertices of a ring at which segments may meet, the most important ones."""
_STEP_PX = 1.0
"""Points by which a fit is judged are no further apart, but on long rings."""
_LONG_PX = 3.0
"""An edge of this length is one of the shape; a shorter one may be a stair of its pixels."""
_JOINTS_A_POINT = 4
"""Joints to choose from for each point that may be written."""
_NARROWED = 12
"""Bisections of the price of a point, after it was doubled until the points sufficed."""
_PATIENCE = 3
"""So many joints in a row beside whose segments more lies than the ring's area over the most points: no later joint is
then tried from there."""
_MOST_STEPS = 400
"""Points by which a ring is judged, beside its joints; they are further apart where it is long."""
_FIRM = 1e-3
"""Directions in which an outline's points say less of a path's are left as they are, as a share of the clearest."""
_KEPT_AREA = 0.5
"""A path of less than this share of its ring's area stands for nothing; a polygon is written."""


Parameters = NDArray[np.float64]


class Span(NamedTuple):
    """A segment of a way round an outline: from one of its points to a later one, and its degree."""

    begin: int
    end: int
    degree: int


def fitted_within(rings: list[Ring], least_share: float, max_points: int, degree: int = 3) -> list[Path]:
    """Paths of rings [N, 2] px that take at most `max_points` together, of segments up to a degree: 1 is lines alone.

    A point is written where it brings the paths nearer to the rings by `least_share` of their area or more; where there
    are more such points than may be written, those that bring most. Nearness is to the rings with their pixel stairs
    made slopes (`smoothed`). Directions are the rings', and each path begins by its ring's topmost, then leftmost
    vertex. A path that would lose half of its area is a polygon. Raises ValueError where three points a ring do not
    fit.
    """
    if 3 * len(rings) > max_points:
        raise ValueError(
            f"max_points is {max_points}, but {len(rings)} rings need 3 each; keep fewer rings or raise it to "
            f"{3 * len(rings)}."
        )
    outlines = [_Outline(np.asarray(ring, np.float64), max_points, degree) for ring in rings]
    area_px = sum(abs(signed_area_px(ring)) for ring in rings)
    price = max(1e-6, least_share * area_px)
    found, too_low = _affordable(outlines, price, max_points), 0.0
    while found is None:
        if price > area_px:  # of a ring without area, say, nothing is worth a point
            return [lines(ring) for ring in simplify(rings, max_points)]
        price, too_low = 2 * price, price
        found = _affordable(outlines, price, max_points)
    for _ in range(_NARROWED if too_low else 0):
        middle = (too_low * price) ** 0.5
        tried = _affordable(outlines, middle, max_points)
        if tried is None:
            too_low = middle
        else:
            found, price = tried, middle
    if too_low:
        found = _with_spare(outlines, found, too_low, max_points)
    return [outline.path(way) for outline, way in zip(outlines, found, strict=True)]


def _affordable(outlines: list["_Outline"], price: float, max_points: int) -> list[list[Span]] | None:
    """The ways round outlines at a price px^2 a point; None where they take more points than there may be."""
    ways = [outline.way(price) for outline in outlines]
    return ways if sum(map(_num_points, ways)) <= max_points else None


def _with_spare(
    outlines: Sequence["_Outline"], ways: Sequence[list[Span]], price: float, max_points: int
) -> list[list[Span]]:
    """Ways of which the first few are those at a price too low for all: equal outlines change at one price."""
    taken, spare = list(ways), max_points - sum(map(_num_points, ways))
    for k, outline in enumerate(outlines):
        more = outline.way(price)
        if _num_points(more) - _num_points(taken[k]) <= spare:
            spare -= _num_points(more) - _num_points(taken[k])
            taken[k] = more
    return taken


def _num_points(way: Sequence[Span]) -> int:
    """Points that say a way round: the line that closes it is not said, and what has no area becomes a triangle."""
    return max(3, 1 + sum(span.degree for span in way) - (way[-1].degree == 1))


class _Outline:
    """A ring with its pixel stairs made slopes, as points close to each other; some of them may be joints."""

    def __init__(self, ring: Ring, max_points: int, degree: int) -> None:
        self._ring = ring
        vertices = canonical_start(smoothed(ring))
        joints = importance(np.ascontiguousarray(vertices, np.float64)) <= min(MAX_JOINTS, _JOINTS_A_POINT * max_points)
        joints[0] = True
        self._points, self._joints = _sampled(vertices, joints)
        self._box = np.stack([ring.min(axis=0), ring.max(axis=0)])
        """Control points stay within it, as those of a path inside a box must."""
        most = abs(signed_area_px(ring)) / max_points
        self._beside = _areas_beside(self._points, self._joints, self._box, degree, most)

    def way(self, price: float) -> list[Span]:
        """The way round that costs least, a point being worth `price` square pixels."""
        before, degrees = _cheapest(self._beside, price)
        spans: list[Span] = []
        end = len(self._joints) - 1
        while end:
            begin = int(before[end])
            spans.append(Span(int(self._joints[begin]), int(self._joints[end]), int(degrees[end])))
            end = begin
        return spans[::-1]

    def path(self, way: Sequence[Span]) -> Path:
        """The path of a way round, its points moved to where they serve best."""
        fits = [_fit(self._points[span.begin : span.end + 1], span.degree, self._box) for span in way]
        path = self._settled(way, [control for control, _, _ in fits], [t for _, t, _ in fits])
        if signed_area(path) * np.sign(signed_area_px(self._ring)) < _KEPT_AREA * abs(signed_area_px(self._ring)):
            return lines(simplify([self._ring], max(3, num_points(path)))[0])
        return path

    def _settled(self, way: Sequence[Span], controls: Sequence[Segment], parameters: Sequence[Parameters]) -> Path:
        """All points of a path, joints too, moved to where the squares of its distances are least.

        A polygon whose joints lie on the outline cuts every bend. parameters: of the outline's points in each span.
        """
        firsts = np.cumsum([0, *(span.degree for span in way)])
        held = np.concatenate([control[:-1] for control in controls])
        system = np.zeros((len(self._points), len(held)))
        for first, span, t in zip(firsts, way, parameters, strict=False):
            for k in range(span.degree + 1):
                weights = comb(span.degree, k) * t**k * (1 - t) ** (span.degree - k)
                system[span.begin : span.end + 1, (first + k) % len(held)] = weights
        moves = np.linalg.lstsq(system, self._points - system @ held, rcond=_FIRM)[0]
        moved = (held + moves).clip(*self._box)
        places = [(first + np.arange(span.degree + 1)) % len(held) for first, span in zip(firsts, way, strict=False)]
        return [moved[place] for place in places]


def _sampled(vertices: Ring, joints: NDArray[np.bool_]) -> tuple[Ring, NDArray[np.int64]]:
    """Points [P, 2] along a ring, the first one again at the end, and the places [J] of joints [N] among them."""
    closed = np.concatenate([vertices, vertices[:1]])
    passed = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    num = int(np.ceil(passed[-1] / max(_STEP_PX, passed[-1] / _MOST_STEPS)))
    held = passed[np.append(joints, True)]
    at = np.unique(np.concatenate([held, np.linspace(0.0, passed[-1], num + 1)]))
    points = np.stack([np.interp(at, passed, closed[:, axis]) for axis in range(2)], axis=1)
    return points, np.searchsorted(at, held)


def smoothed(ring: Ring) -> Ring:
    """A ring [N, 2] px whose pixel stairs are slopes: both corners of a stair cut, half a pixel to either side.

    A stair is a short edge at whose ends the ring turns different ways; the end of a bar turns the same way twice. What
    is cut off holds no pixel's centre. A ring with a slope of its own, as annotators draw them, stays as it is.
    """
    to_last, to_next = np.roll(ring, 1, axis=0) - ring, np.roll(ring, -1, axis=0) - ring
    if not (to_next == 0).any(axis=1).all():
        return ring
    turns = np.sign(to_last[:, 0] * to_next[:, 1] - to_last[:, 1] * to_next[:, 0])
    stair = (np.abs(to_next).sum(axis=1) < _LONG_PX) & (turns != np.roll(turns, -1))
    cut = np.where(stair | np.roll(stair, 1), 0.5, 0.0)[:, None]
    around = np.stack([ring + cut * np.sign(to_last), ring + cut * np.sign(to_next)], axis=1).reshape(-1, 2)
    return around[(around != np.roll(around, 1, axis=0)).any(axis=1)]


@njit(cache=True, nogil=True)
def _areas_beside(points: Any, joints: Any, box: Any, highest: int, most: float) -> Any:
    """[J, J, 3] square pixels beside the line, quadratic and cubic curve from one joint to a later one; inf elsewhere.

    points: [P, 2], the last the first again; joints: places [J] in it, the first and the last point among them;
    highest: degree; most: where more lies beside all that are tried, later joints are not.
    """
    num = len(joints)
    beside = np.full((num, num, 3), np.inf)
    for begin in range(num - 1):
        failed = 0
        for end in range(begin + 1, num):
            span = points[joints[begin] : joints[end] + 1]
            beside[begin, end, 0] = least = _area_beside_line(span)
            for degree in range(2, highest + 1 if len(span) > 3 else 2):
                beside[begin, end, degree - 1] = _fit(span, degree, box)[2]
                least = min(least, beside[begin, end, degree - 1])
            failed = failed + 1 if least > most else 0
            if failed >= _PATIENCE:
                break
    return beside


@njit(cache=True, nogil=True)
def _cheapest(beside: Any, price: float) -> Any:
    """The way round that costs least: for each joint [J] the one before it, and the degree of what leads there.

    beside: as of `_areas_beside`; price: of a point, square pixels.
    """
    num = len(beside)
    cost = np.full(num, np.inf)
    before, degrees = np.zeros(num, np.int64), np.zeros(num, np.int64)
    cost[0] = 0.0
    for end in range(1, num):
        for begin in range(end):
            for degree in range(1, 4):
                paid = cost[begin] + degree * price + beside[begin, end, degree - 1]
                if paid < cost[end]:
                    cost[end], before[end], degrees[end] = paid, begin, degree
    return before, degrees


@njit(cache=True, nogil=True)
def _area_beside_line(span: Any) -> float:
    """Square pixels between points [N, 2] and the line from the first to the last: distances times steps."""
    ax, ay = span[0, 0], span[0, 1]
    dx, dy = span[-1, 0] - ax, span[-1, 1] - ay
    length = dx * dx + dy * dy
    area = 0.0
    for k in range(1, len(span) - 1):
        px, py = span[k, 0] - ax, span[k, 1] - ay
        share = 0.0 if length == 0 else min(1.0, max(0.0, (px * dx + py * dy) / length))
        area += np.hypot(px - share * dx, py - share * dy) * _step(span, k)
    return area


@njit(cache=True, nogil=True)
def _step(span: Any, k: int) -> float:
    """Length of the way that point k stands for: half of that to either neighbour."""
    before = np.hypot(span[k, 0] - span[k - 1, 0], span[k, 1] - span[k - 1, 1])
    return (before + np.hypot(span[k + 1, 0] - span[k, 0], span[k + 1, 1] - span[k, 1])) / 2


@njit(cache=True, nogil=True)
def _fit(span: Any, degree: int, box: Any) -> Any:
    """Of a segment from the first to the last of points [N, 2]: control points [degree + 1, 2], the points' parameters
    [N], and the area beside it.

    Parameters are the share of the way along the points, then improved by Newton's step.
    """
    t = np.zeros(len(span))
    for k in range(1, len(span)):
        t[k] = t[k - 1] + np.hypot(span[k, 0] - span[k - 1, 0], span[k, 1] - span[k - 1, 1])
    t /= t[-1]
    if degree == 1:
        ends = np.empty((2, 2))
        ends[0], ends[1] = span[0], span[-1]
        return ends, t, _area_beside_line(span)
    control = _least_squares(span, t, degree, box)
    _improve(span, t, control)
    control = _least_squares(span, t, degree, box)
    area = 0.0
    for k in range(1, len(span) - 1):
        x, y = _at(control, t[k])
        area += np.hypot(x - span[k, 0], y - span[k, 1]) * _step(span, k)
    return control, t, area


@njit(cache=True, nogil=True)
def _least_squares(span: Any, t: Any, degree: int, box: Any) -> Any:
    """Control points [degree + 1, 2] nearest to points [N, 2] at parameters [N], kept within a box [2, 2]."""
    control = np.empty((degree + 1, 2))
    control[0], control[degree] = span[0], span[-1]
    aa, ab, bb = 1e-12, 0.0, 1e-12
    a, b = np.zeros(2), np.zeros(2)
    for k in range(1, len(span) - 1):
        s, r = t[k], 1 - t[k]
        if degree == 2:
            first, second, rest = 2 * r * s, 0.0, span[k] - r * r * span[0] - s * s * span[-1]
        else:
            first, second = 3 * r * r * s, 3 * r * s * s
            rest = span[k] - r * r * r * span[0] - s * s * s * span[-1]
        aa, ab, bb = aa + first * first, ab + first * second, bb + second * second
        a, b = a + first * rest, b + second * rest
    for axis in range(2):
        low, high = box[0, axis], box[1, axis]
        if degree == 2:
            control[1, axis] = min(high, max(low, a[axis] / aa))
            continue
        determinant = aa * bb - ab * ab
        one, two = (a[axis] * bb - b[axis] * ab) / determinant, (b[axis] * aa - a[axis] * ab) / determinant
        if one < low or one > high:  # the other is then the best beside it
            one = min(high, max(low, one))
            two = (b[axis] - ab * one) / bb
        elif two < low or two > high:
            two = min(high, max(low, two))
            one = (a[axis] - ab * two) / aa
        control[1, axis], control[2, axis] = min(high, max(low, one)), min(high, max(low, two))
    return control


@njit(cache=True, nogil=True)
def _at(control: Any, t: float) -> Any:
    """Point of a quadratic or cubic curve at a parameter of 0..1."""
    r = 1 - t
    if len(control) == 3:
        weights = (r * r, 2 * r * t, t * t, 0.0)
    else:
        weights = (r * r * r, 3 * r * r * t, 3 * r * t * t, t * t * t)
    x, y = 0.0, 0.0
    for k in range(len(control)):
        x, y = x + weights[k] * control[k, 0], y + weights[k] * control[k, 1]
    return x, y


@njit(cache=True, nogil=True)
def _improve(span: Any, t: Any, control: Any) -> None:
    """Move each parameter by a Newton step towards the foot of its point on the curve."""
    degree = len(control) - 1
    first = degree * (control[1:] - control[:-1])
    second = (degree - 1) * (first[1:] - first[:-1])
    for k in range(1, len(span) - 1):
        s, r = t[k], 1 - t[k]
        x, y = _at(control, s)
        if degree == 2:
            dx, dy = r * first[0, 0] + s * first[1, 0], r * first[0, 1] + s * first[1, 1]
            ddx, ddy = second[0, 0], second[0, 1]
        else:
            u, v, w = r * r, 2 * r * s, s * s
            dx = u * first[0, 0] + v * first[1, 0] + w * first[2, 0]
            dy = u * first[0, 1] + v * first[1, 1] + w * first[2, 1]
            ddx, ddy = r * second[0, 0] + s * second[1, 0], r * second[0, 1] + s * second[1, 1]
        ex, ey = x - span[k, 0], y - span[k, 1]
        slope = dx * dx + dy * dy + ex * ddx + ey * ddy
        if slope > 0:
            t[k] = min(1.0, max(0.0, s - (ex * dx + ey * dy) / slope))
