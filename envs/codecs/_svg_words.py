"""The words of an SVG path read as outlines: commands with their numbers, relative forms made absolute.

    M x y     begin an outline; further points are lines        L x y             lines
    C x1 y1 x2 y2 x y   cubic curves                            Q x1 y1 x y       quadratic curves
    Z         close it                                          small letters     from where the pen is

Read as the standard has it (SVG 2, section 9.3): a command may be left out where it repeats itself, and relative
numbers of a curve all count from its beginning. What released models may write besides, lenient reading takes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.codecs._boxed_codec import MAX_DIGITS
from envs.geometry.curves import Path
from envs.polygons import AnswerStatus

Point = NDArray[np.float64]
_POINTS = {"M": 1, "L": 1, "Q": 2, "C": 3, "Z": 0}
"""Points that one use of a command takes."""
_LENIENT_NUMBERS = {"H": 1, "V": 1, "T": 2, "S": 4}
"""Numbers of the commands that lenient reading takes besides: lines along an axis, and smooth curves."""
_FARTHEST = 10.0 ** (MAX_DIGITS + 1)
"""A number beyond is read as this one: outside of every grid, and still a number when others are added to it."""
_NUMBER = re.compile(rf"-?[0-9]{{1,{MAX_DIGITS}}}")
_TOKEN = re.compile(r"[A-Za-z;]+|[-+]?\s*(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\S")
"""What lenient reading takes for a word: letters, or a number, its sign apart or not."""


@dataclass
class _Pen:
    """Where the path has got to, and the outlines that it has drawn."""

    outlines: list[Path] = field(default_factory=list)
    at: Point = field(default_factory=lambda: np.zeros(2))
    start: Point = field(default_factory=lambda: np.zeros(2))
    drawn: int = 0
    """Points of the last segment, for smooth curves: they go on from one of their own kind."""
    num_points: int = 0
    down: bool = False
    """Whether an outline is open."""

    def move(self, to: Point) -> None:
        """Begin an outline."""
        self.outlines.append([])
        self.at = self.start = to
        self.num_points += 1
        self.drawn, self.down = 0, True

    def close(self) -> None:
        """End the outline where it began."""
        self.at, self.drawn, self.down = self.start, 0, False

    def draw(self, points: Sequence[Point]) -> None:
        """Add a segment from here over control points to the last of them."""
        self.outlines[-1].append(np.array([self.at, *points], np.float64))
        self.at = points[-1]
        self.num_points += len(points)
        self.drawn = len(points)

    def smooth(self, degree: int) -> Point:
        """The first control point of a smooth curve: the last one mirrored, behind a curve of its degree; else here."""
        return 2 * self.at - self.outlines[-1][-1][-2] if self.drawn == degree else self.at


def words_of(text: str) -> list[str]:
    """The words of a path that may be written without spaces, such as "M0 0l10-5z"; a letter is a word of its own."""
    words: list[str] = []
    for found in _TOKEN.findall(text.replace(",", " ")):
        words += [found] if found == "none" or not found[0].isalpha() else list(found)
    return ["".join(word.split()) for word in words]


def read_path(words: Sequence[str], lenient: bool, most: int) -> tuple[list[Path], int] | AnswerStatus:
    """The outlines that words draw, in the path's own units, and the points that said them; or `unparsable`, or
    `out_of_range` for more than `most` points.

    Strict: whole numbers, a minus sign apart or not, each command with all of its points, each outline closed by Z and
    begun by M. Lenient, as Moondream's own reader is known to be: the first command must be there, numbers of a command
    are taken by as many as it needs and those left over dropped, outlines close by themselves, H, V, S and T are read.
    Behind Z no more than one number is left over: more would be another box.
    """
    pen = _Pen()
    for letter, numbers in _commands(words, lenient):
        if not _taken(pen, letter, numbers, lenient):
            return AnswerStatus.UNPARSABLE
        if pen.num_points > most:
            return AnswerStatus.OUT_OF_RANGE
    if not pen.outlines or (pen.down and not lenient):
        return AnswerStatus.UNPARSABLE
    return pen.outlines, pen.num_points


def _taken(pen: _Pen, letter: str, numbers: list[float], lenient: bool) -> bool:
    """Do what one command says; False where it may not stand here, is none, or has not the numbers that it needs."""
    command = letter.upper()
    if command == "Z":
        pen.close()
        return bool(pen.outlines) and len(numbers) <= lenient
    if command == "M":
        return (lenient or not pen.down) and _drawn(pen, letter, numbers, lenient)
    if not pen.down:  # goes on from where the last outline began
        if not (lenient and pen.outlines):
            return False
        pen.move(pen.at)
    return _drawn(pen, letter, numbers, lenient)


def _commands(words: Sequence[str], lenient: bool) -> Iterator[tuple[str, list[float]]]:
    """Each command with the numbers behind it; "?" stands for what is none."""
    letter, numbers, sign = "", [], 1.0
    for word in [*words, ""]:
        number = None if not word or word == "-" else _number(word, lenient)
        if number is not None:
            if sign < 0 and word[0] in "+-":
                yield "?", []  # two signs
            numbers.append(sign * number)
            sign = 1.0
            continue
        if sign < 0 or (word == "-" and not letter):
            yield "?", []  # a sign without a number
        if word == "-":
            sign = -1.0
            continue
        if letter or numbers:
            yield letter or "?", numbers
        letter, numbers = word, []


def _number(word: str, lenient: bool) -> float | None:
    if word.isascii() and _NUMBER.fullmatch(word):
        return float(word)
    if not lenient or not word.isascii() or len(word) > 4 * MAX_DIGITS or word[0].isalpha():
        return None
    try:
        return max(-_FARTHEST, min(_FARTHEST, float(word)))
    except ValueError:
        return None


def _drawn(pen: _Pen, letter: str, numbers: list[float], lenient: bool) -> bool:
    """Draw the segments of one command; False where it is none, or where its numbers do not suffice."""
    command, relative = letter.upper(), letter.islower()
    each = 2 * _POINTS[command] if command in _POINTS else _LENIENT_NUMBERS.get(command, 0) if lenient else 0
    if not each:
        return False
    if not lenient and (not numbers or len(numbers) % each):
        return False
    for k in range(0, len(numbers) - each + 1, each):
        _segment(pen, "L" if command == "M" and k else command, numbers[k : k + each], relative)
    return True


def _segment(pen: _Pen, command: str, numbers: list[float], relative: bool) -> None:
    origin = pen.at if relative else np.zeros(2)
    if command in ("H", "V"):
        to = pen.at.copy()
        axis = int(command == "V")
        to[axis] = numbers[0] + origin[axis]
        pen.draw([to])
        return
    points = [origin + point for point in np.array(numbers, np.float64).reshape(-1, 2)]
    if command in ("S", "T"):
        points.insert(0, pen.smooth(len(points) + 1))
    if command == "M":
        pen.move(points[0])
    else:
        pen.draw(points)
