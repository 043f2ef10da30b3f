"""Codec: points as JSON-like text, the form of SimpleSeg (arXiv 2601.19228), in the numbers that a model knows.

    answer   = "[]" | instance (";" instance)*
    instance = "[" ring ("," ring)* "]"
    ring     = "[" point ("," point)* "]"
    point    = "[" number "," number "]"           x, then y, as JSON writes numbers

So one instance is what SimpleSeg writes for a mask, a list of polygons in three levels of brackets, and several are
such lists one after the other: [[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]; [[[0.7, 0.2], [0.9, 0.2], [0.9, 0.6]]]. White
space between the signs is free. Direction says outer ring or hole, as everywhere; SimpleSeg itself writes no holes.

Departure from SimpleSeg: its reader looks for anything bracketed like a polygon, wherever it stands, and unites what
it finds, so a model is paid for an outline amid stray brackets and prose, and never learns to write one clean answer.
Here the whole text is the answer or it is unparsable; with `reading: lenient` also what released models write around
it (envs/codecs/_lenient.py): one list with at most a sentence about it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from envs.codecs._coordinates import COORDINATES, Coordinates, ShownSize, shown_as_it_is
from envs.codecs._lenient import bare_answer
from envs.codecs._numerals import UnitNumerals, WholeNumerals
from envs.codecs._point_text_grammar import SIGNS, PointTextGrammar
from envs.geometry import grid_rings
from envs.polygons import (
    Answer,
    AnswerStatus,
    Ring,
    instance_from_rings,
    px_from_unit,
    signed_area_px,
    split_rings,
    unit_from_px,
)
from envs.ranges import at_least, between, check_ranges, one_of

EMPTY_TEXT = "[]"
_SPACE = " \t\r\n"
_EMPTY = re.compile(rf"\[[{_SPACE}]*\]")
_TOKEN = re.compile(rf"[{_SPACE}]*([\[\],;]|[-+.0-9eE]+)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_NUMBER_BEGUN = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*|(?:\.[0-9]+)?[eE][-+]?[0-9]*)?)?")


@dataclass(frozen=True)
class Codec:
    """Settings of the point-text form."""

    decimals: Annotated[int, between(1, 5, advice=" (3 is a thousandth of the image's side).")] = 3
    """Digits after the point of fractions: they are written on a grid of 10**decimals steps over the image."""
    max_rings: Annotated[int, at_least(1)] = 16
    """Most rings of the whole answer; more reads as out of range."""
    max_vertices: Annotated[int, at_least(3, ", so that there is room for a triangle.")] = 512
    """Most vertices of the whole answer; more reads as out of range."""
    max_characters: Annotated[int, at_least(len(EMPTY_TEXT))] = 16384
    """Most characters of the whole text; a longer one reads as out of range, unread."""

    coordinates: Annotated[str, one_of(*COORDINATES)] = "family"
    """Numbers that places are written in: `unit` 0..1, `thousandths` 0..1000 of each side, `resized_px` pixels of what
    the model sees of the image, or `family`, as the released models of the policy's family write them."""
    reading: Annotated[str, one_of("strict", "lenient")] = "strict"
    """What is read: `strict` the bare answer alone; `lenient` also what released models write around it: one sentence,
    a full stop, a fence of code, a list of two levels."""
    shown_size: ShownSize | None = field(default=None, init=False, repr=False, compare=False)
    """Size of what the policy sees of an image; None without a policy, for images that are not resized."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        check_ranges(self)

    def seen_by(self, coordinates: str, shown_size: ShownSize) -> "Codec":
        """The codec of a policy: coordinates, of its family, take the place of "family"; shown_size: what it sees."""
        bound = replace(self, coordinates=coordinates if self.coordinates == "family" else self.coordinates)
        object.__setattr__(bound, "shown_size", shown_size)
        return bound

    @property
    def _numbers(self) -> Coordinates:
        kind = "unit" if self.coordinates == "family" else self.coordinates
        return Coordinates(kind, self.decimals, self.shown_size or shown_as_it_is)

    @property
    def signs(self) -> list[str]:
        """Pieces that make up every text of `encode` in fractions or whole numbers, digits first."""
        brackets = ["[[[", "]]]", "], [", "]], [[", "]]]; [[[", EMPTY_TEXT]
        return [*"0123456789", "0.", ".", ", ", *brackets, "[", "]", ",", ";", "-"]

    def grammar(self) -> PointTextGrammar:
        """Automaton of the texts that read as valid within these limits; of the ways to write them, see its file.

        Raises ValueError for pixels of the resized image, whose numbers end elsewhere in every photo.
        """
        kind = self._numbers.kind
        if kind == "resized_px":
            raise ValueError(
                "codec.coordinates is resized_px (as set, or as the policy's family has it), and a grammar cannot know "
                "where the numbers of each photo end; set codec.coordinates to unit or thousandths, or "
                "sampling.grammar to false."
            )
        numerals = UnitNumerals(self.decimals) if kind == "unit" else WholeNumerals(1000)
        return PointTextGrammar(numerals, self.max_rings, self.max_vertices, self.max_characters)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        Vertices go to the nearest point of the grid; what then is worth writing, says envs/geometry/grid_rings.py. An
        instance of which none is becomes the cells of the grid around it, a triangle half of them. So what fills a
        pixel reads back as `ok`, and fills one. Raises ValueError where a limit is exceeded: simplify first
        (envs/geometry/contours.py).
        """
        num_rings = sum(map(len, instances))
        num_vertices = sum(len(ring) for rings in instances for ring in rings)
        drawn = [rings for rings in instances if any(map(len, rings))]
        text = "; ".join(self._encode_instance(rings, height, width) for rings in drawn) or EMPTY_TEXT
        if num_rings > self.max_rings or num_vertices > self.max_vertices or len(text) > self.max_characters:
            raise ValueError(
                f"{num_rings} rings with {num_vertices} vertices in {len(text)} characters exceed the codec's "
                f"max_rings {self.max_rings}, max_vertices {self.max_vertices} or max_characters "
                f"{self.max_characters}; simplify the outline or raise the limits."
            )
        return text

    def _encode_instance(self, rings: Sequence[Ring], height: int, width: int) -> str:
        extent_px, numbers = (0.0, 0.0, float(width), float(height)), self._numbers
        steps = numbers.steps(height, width)
        rounded = [grid_rings.rounded(ring, steps, extent_px) for ring in rings]
        read_px = [px_from_unit(ring / steps, height, width) for ring in rounded]
        written = [rounded[k] for k in grid_rings.worth_writing(rings, read_px, height, width)]
        if not written:
            vertices = np.concatenate(rings)
            cells = _cells_around(unit_from_px(vertices, height, width) * steps, steps)
            boxes = grid_rings.stand_ins(cells, len(vertices))
            read_px = [px_from_unit(box / steps, height, width) for box in boxes]
            written = [boxes[grid_rings.nearest(rings, read_px, height, width)]]
        return "[" + ", ".join(_ring_text(ring, numbers) for ring in written) + "]"

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """What `text` says about a height x width image; any str reads as some status, none raises.

        truncated: the length limit cut the text, so it is not an answer even where it happens to parse. A text that is
        the beginning of an answer reads as truncated without it too. Coordinates are taken as they are, digits beyond
        the grid's included; a ring of less than a quarter of a grid cell, by its signed area, is degenerate.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if len(text) > self.max_characters:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        if self.reading == "strict":
            return self._read_bare(text.strip(_SPACE), height, width)
        inner = bare_answer(text)
        answer = self._read_bare(inner.strip(_SPACE), height, width)
        return answer if inner == text else replace(answer, bare=_keeps_to_grammar(text.strip(_SPACE)))

    def _read_bare(self, text: str, height: int, width: int) -> Answer:
        if _EMPTY.fullmatch(text):
            return Answer(AnswerStatus.EMPTY)
        draft = _scan(text)
        if isinstance(draft, AnswerStatus):
            return Answer(draft)
        points_unit = self._numbers.unit(np.array(draft.numbers, np.float64).reshape(-1, 2), height, width)
        inside = bool(((points_unit >= 0) & (points_unit <= 1)).all())
        if not inside or len(points_unit) > self.max_vertices or len(draft.ring_ends) - 1 > self.max_rings:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        offsets = np.array(draft.ring_ends, np.int64)
        cell = 1 / self._numbers.steps(height, width).prod()
        if any(abs(signed_area_px(ring)) < 0.25 * cell for ring in split_rings(points_unit, offsets)):
            return Answer(AnswerStatus.DEGENERATE)
        rings_px = split_rings(px_from_unit(points_unit, height, width), offsets)
        bounds = zip(draft.instance_ends[:-1], draft.instance_ends[1:], strict=True)
        return Answer(AnswerStatus.OK, tuple(instance_from_rings(rings_px[first:end]) for first, end in bounds))


@dataclass(frozen=True)
class _Draft:
    """A text that keeps to the grammar, its numbers still unchecked."""

    numbers: list[float]
    """x, y, x, y, ... of all points."""
    ring_ends: list[int]
    """0, then the number of points up to the end of each ring."""
    instance_ends: list[int]
    """0, then the number of rings up to the end of each instance."""


def _keeps_to_grammar(text: str) -> bool:
    return _EMPTY.fullmatch(text) is not None or isinstance(_scan(text), _Draft)


def _scan(text: str) -> _Draft | AnswerStatus:
    """Read `text` sign by sign, once: a draft, or why it is none (truncated: an answer has begun; else unparsable)."""
    numbers: list[float] = []
    ring_ends, instance_ends = [0], [0]
    state, position = "nothing", 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return AnswerStatus.UNPARSABLE
        position, sign = match.end(), match[1]
        following = SIGNS.get((state, sign if sign in "[],;" else "n"))
        if following is None:
            return AnswerStatus.UNPARSABLE
        if following in ("x", "y"):
            if not _NUMBER.fullmatch(sign):
                cut = position == len(text) and _NUMBER_BEGUN.fullmatch(sign)
                return AnswerStatus.TRUNCATED if cut else AnswerStatus.UNPARSABLE
            numbers.append(float(sign))
        elif following == "ring":
            ring_ends.append(len(numbers) // 2)
        elif following == "instance":
            instance_ends.append(len(ring_ends) - 1)
        state = following
    if state == "instance":
        return _Draft(numbers, ring_ends, instance_ends)
    return AnswerStatus.TRUNCATED if text else AnswerStatus.UNPARSABLE


def _ring_text(grid: NDArray[np.int64], numbers: Coordinates) -> str:
    return "[" + ", ".join(f"[{numbers.text(x)}, {numbers.text(y)}]" for x, y in grid.tolist()) + "]"


def _cells_around(vertices_grid: Ring, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The clockwise box [4, 2] of whole grid cells around vertices [N, 2], in grid steps of which there are [2]."""
    low = np.floor(vertices_grid.min(axis=0) + 1e-9).clip(0, steps - 1).astype(np.int64)
    high = np.ceil(vertices_grid.max(axis=0) - 1e-9).clip(low + 1, steps).astype(np.int64)
    return np.array([low, (high[0], low[1]), high, (low[0], high[1])])
