"""An outline of lines and curves while it is being written, on an integer grid: which points may still give it an area.

Thirty times the doubled area under a line, a quadratic and a cubic curve is a whole number of whole control points
(envs/geometry/curves.py), and linear in the last of them, so that again at most one number is ever wrong for the last
x or the last y.
"""

from typing import NamedTuple

from envs.codecs._numerals import Bounds
from envs.codecs._open_ring import NOTHING_FITS

Point = tuple[int, int]
_SCALE = 30
"""The least common multiple of what the areas under quadratic and cubic curves are divided by, 3 and 10."""


class OpenPath(NamedTuple):
    """A path without its end: whole segments, and of one begun the control points so far."""

    begun: bool = False
    """Whether its first point is there."""
    first: Point = (0, 0)
    last: Point = (0, 0)
    """End of the last whole segment."""
    doubled: int = 0
    """Thirty times the sum of the segments' doubled areas, without the line that closes the path."""
    degree: int = 1
    """Of the segment that comes: 1 a line, 2 a quadratic, 3 a cubic curve."""
    control: tuple[Point, ...] = ()
    """Its control points so far, without its first."""

    def add(self, x: int, y: int) -> "OpenPath":
        """The path with one more point."""
        point = (x, y)
        if not self.begun:
            return OpenPath(True, point, point)
        if len(self.control) < self.degree - 1:
            return self._replace(control=(*self.control, point))
        constant, (wx, wy) = self._linear()
        # Without the closing line, which `_linear` counts.
        closing = _SCALE * _cross(point, self.first)
        return self._replace(last=point, doubled=constant + wx * y - wy * x - closing, control=())

    @property
    def closed(self) -> int:
        """Sixty times the area of the path, closed by a line; of whole segments alone."""
        return self.doubled + _SCALE * _cross(self.last, self.first)

    @property
    def needed(self) -> int:
        """The fewest further points with which the segment begun is whole and the path has an area."""
        if not self.begun:
            return 3
        left = self.degree - len(self.control) if self.control else 0
        if not left:
            return 0 if self.closed else 1 if self.last != self.first else 2
        # A free last point gives an area, but where none of its places does.
        return left + 1 if left == 1 and self._linear() == (0, (0, 0)) else left

    def x_bounds(self, after: int, bins: int) -> Bounds:
        """What the next point's x may be, 0..bins, where `after` points may follow it."""
        spare = self._spare(after)
        if spare < 0:
            return NOTHING_FITS
        if spare or self._left:
            return Bounds(0, bins)
        constant, (wx, wy) = self._linear()
        if wx or (not wy and constant):
            return Bounds(0, bins)
        return Bounds(0, bins, _whole(constant, wy, bins)) if wy else NOTHING_FITS

    def y_bounds(self, x: int, after: int, bins: int) -> Bounds:
        """What the next point's y may be, 0..bins, its x being `x`, where `after` points may follow it."""
        spare = self._spare(after)
        if spare < 0:
            return NOTHING_FITS
        if spare >= 2 or (self._left and (spare or self._left > 1)):
            return Bounds(0, bins)
        if self._left:
            hopeless = self._hopeless_control()
            return Bounds(0, bins, hopeless[1] if hopeless is not None and hopeless[0] == x else None)
        constant, (wx, wy) = self._linear()
        if spare:  # a line more gives an area, but from where the path began
            lost = x == self.first[0] and not constant + wx * self.first[1] - wy * x
            return Bounds(0, bins, self.first[1] if lost else None)
        if not wx:
            return Bounds(0, bins) if constant - wy * x else NOTHING_FITS
        return Bounds(0, bins, _whole(wy * x - constant, wx, bins))

    @property
    def _left(self) -> int:
        """Points of the segment begun, or of the one that comes, behind the next one."""
        return self.degree - len(self.control) - 1 if self.begun else 0

    def _spare(self, after: int) -> int:
        """Of `after` points, those behind the segment of the next one; two lines are needed behind the first point."""
        return after - self._left if self.begun else after if after >= 2 else -1

    def _linear(self) -> tuple[int, Point]:
        """(c, w): sixty times the closed area is c + w x P, P the last point of the segment begun, its others given.

        x is the cross product w_x P_y - w_y P_x.
        """
        p, f = self.last, self.first
        weights, constant = [(_SCALE, p)], 0
        if self.degree == 2:
            (a,) = self.control
            weights, constant = [(10, p), (20, a)], 20 * _cross(p, a)
        elif self.degree == 3:
            a, b = self.control
            weights = [(3, p), (9, a), (18, b)]
            constant = 18 * _cross(p, a) + 9 * _cross(p, b) + 9 * _cross(a, b)
        weights.append((-_SCALE, f))
        w = sum(k * point[0] for k, point in weights), sum(k * point[1] for k, point in weights)
        return self.doubled + constant, w

    def _hopeless_control(self) -> Point | None:
        """The last control point with which no end of the segment gives an area; None where every one leaves some."""
        p, f = self.last, self.first
        if self.degree == 2:
            weight, known = 20, [(10, p), (-_SCALE, f)]
        else:
            weight, known = 18, [(3, p), (9, self.control[0]), (-_SCALE, f)]
        x, rest_x = divmod(-sum(k * point[0] for k, point in known), weight)
        y, rest_y = divmod(-sum(k * point[1] for k, point in known), weight)
        if rest_x or rest_y:
            return None
        tried = self._replace(control=(*self.control, (x, y)))
        return (x, y) if tried._linear() == (0, (0, 0)) else None


def _cross(a: Point, b: Point) -> int:
    return a[0] * b[1] - a[1] * b[0]


def _whole(numerator: int, denominator: int, bins: int) -> int | None:
    """The quotient where it is a whole number of 0..bins."""
    quotient, rest = divmod(numerator, denominator)
    return quotient if not rest and 0 <= quotient <= bins else None
