"""A ring while it is being written, on an integer grid: which vertices may still give it an area.

A closed ring's area is linear in its last vertex, so at most one number is ever wrong for the last x or the last y.
"""

from typing import NamedTuple

from envs.codecs._numerals import Bounds, Numerals

NOTHING_FITS = Bounds(1, 0)


class OpenRing(NamedTuple):
    """A ring without its end."""

    num: int = 0
    """Vertices so far; 3 stands for 3 or more."""
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)
    doubled: int = 0
    """Sum of the cross products along the ring, without the edge that closes it: that edge added, twice its area."""

    def add(self, x: int, y: int) -> "OpenRing":
        """The ring with one more vertex."""
        if not self.num:
            return OpenRing(1, (x, y), (x, y))
        return OpenRing(min(3, self.num + 1), self.first, (x, y), self.doubled + self.last[0] * y - self.last[1] * x)

    @property
    def needed(self) -> int:
        """The fewest further vertices with which it has three and an area: 0 to 3."""
        if not self.num:
            return 3
        closed = self.doubled + self.last[0] * self.first[1] - self.last[1] * self.first[0]
        if self.num == 3 and closed:
            return 0
        return 1 if self.first != self.last else 2

    def x_bounds(self, after: int, bins: int) -> Bounds:
        """What the next vertex's x may be, 0..bins, where `after` vertices may follow it."""
        if after >= 2 or (after == 1 and self.num):
            return Bounds(0, bins)
        dx, dy = self.first[0] - self.last[0], self.first[1] - self.last[1]
        if self.num < 2 or not (dx or dy or self.doubled):
            return NOTHING_FITS
        return Bounds(0, bins, None if dx or not dy else _whole(-self.doubled, dy, bins))

    def y_bounds(self, x: int, after: int, bins: int) -> Bounds:
        """What the next vertex's y may be, 0..bins, its x being `x`, where `after` vertices may follow it."""
        if after >= 2:
            return Bounds(0, bins)
        if not self.num:
            return NOTHING_FITS
        if after == 1:
            lost = x == self.first[0] and self.add(*self.first).needed > 1
            return Bounds(0, bins, self.first[1] if lost else None)
        dx, dy = self.first[0] - self.last[0], self.first[1] - self.last[1]
        if self.num < 2 or (not dx and self.doubled + x * dy == 0):
            return NOTHING_FITS
        return Bounds(0, bins, _whole(self.doubled + x * dy, dx, bins) if dx else None)


def _whole(numerator: int, denominator: int, bins: int) -> int | None:
    """The quotient where it is a whole number of 0..bins."""
    quotient, rest = divmod(numerator, denominator)
    return quotient if not rest and 0 <= quotient <= bins else None


def closing_numbers(ring: OpenRing, x: int | None, word: str | None, numerals: Numerals) -> list[str]:
    """Texts of the fewest numbers x, y, x, y ... that give the ring three vertices and an area.

    x: that of a vertex begun, None before it. word: what is written of the next number, which the first text goes on;
    None where no number needs to follow.
    """
    bins = numerals.bins
    if x is not None:
        num = next(k for k in (1, 2, 3) if numerals.fits(word or "", ring.y_bounds(x, k - 1, bins)))
    elif word is not None:
        num = next(k for k in (1, 2, 3) if numerals.fits(word, ring.x_bounds(k - 1, bins)))
    else:
        num = ring.needed
    texts: list[str] = []
    word = word or ""
    for after in reversed(range(num)):
        if x is None:
            texts.append(numerals.rest(word, ring.x_bounds(after, bins)))
            x, word = numerals.value(word + texts[-1]), ""
        texts.append(numerals.rest(word, ring.y_bounds(x, after, bins)))
        ring, x, word = ring.add(x, numerals.value(word + texts[-1])), None, ""
    return texts
