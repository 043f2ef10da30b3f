"""What codecs of points as numbers in text share: limits, numbers, rounding to a grid, and what a text's numbers draw.

How a text is made of them, and taken apart again, says each codec: point_text.py and json_objects.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray

from envs.codecs._coordinates import COORDINATES, Coordinates, ShownSize, shown_as_it_is
from envs.codecs._numerals import UnitNumerals, WholeNumerals
from envs.codecs._places import answer_of_places, grid_places, places_of
from envs.geometry import grid_rings
from envs.geometry.grid_rings import GridRing
from envs.polygons import (
    Answer,
    AnswerStatus,
    Box,
    Instance,
    Ring,
    flatten_rings,
    px_from_unit,
    signed_area_px,
    split_rings,
    unit_from_px,
)
from envs.ranges import at_least, between, check_ranges, one_of

EMPTY_TEXT = "[]"
SPACE = " \t\r\n"
"""White space that is free between signs."""
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
"""A number as JSON writes it."""
NUMBER_BEGUN = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*|(?:\.[0-9]+)?[eE][-+]?[0-9]*)?)?")
"""The beginning of one, a whole one included."""


@dataclass
class Draft:
    """A text that keeps to a codec's grammar, its numbers still unchecked."""

    numbers: list[float] = field(default_factory=list)
    """x, y, x, y, ... of all points."""
    ring_ends: list[int] = field(default_factory=lambda: [0])
    """0, then the number of points up to the end of each ring."""
    instance_ends: list[int] = field(default_factory=lambda: [0])
    """0, then the number of rings up to the end of each instance."""
    boxes: dict[int, list[float]] = field(default_factory=dict)
    """x0, y0, x1, y1 of an instance's box, by the instance's place, where the text has one."""
    labels: dict[int, str] = field(default_factory=dict)
    """What an instance is called, by its place, where the text says so."""


@dataclass(frozen=True)
class PointCodec:
    """Settings of a codec of points as numbers in text."""

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
    a full stop, a fence of code, and what else the codec's own file names."""
    shown_size: ShownSize | None = field(default=None, init=False, repr=False, compare=False)
    """Size of what the policy sees of an image; None without a policy, for images that are not resized."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        check_ranges(self)

    def seen_by(self, coordinates: str, shown_size: ShownSize) -> Self:
        """The codec of a policy: coordinates, of its family, take the place of "family"; shown_size: what it sees."""
        bound = replace(self, coordinates=coordinates if self.coordinates == "family" else self.coordinates)
        object.__setattr__(bound, "shown_size", shown_size)
        return bound

    @property
    def numbers(self) -> Coordinates:
        """The numbers that places are written in."""
        kind = "unit" if self.coordinates == "family" else self.coordinates
        return Coordinates(kind, self.decimals, self.shown_size or shown_as_it_is)

    @property
    def numerals(self) -> UnitNumerals | WholeNumerals:
        """How the numbers are written, a character at a time, for a grammar.

        Raises ValueError for pixels of the resized image, whose numbers end elsewhere in every photo.
        """
        kind = self.numbers.kind
        if kind == "resized_px":
            raise ValueError(
                "codec.coordinates is resized_px (as set, or as the policy's family has it), and a grammar cannot know "
                "where the numbers of each photo end; set codec.coordinates to unit or thousandths, or "
                "sampling.grammar to false."
            )
        return UnitNumerals(self.decimals) if kind == "unit" else WholeNumerals(1000)

    def written(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> list[list[GridRing]]:
        """The rings [N, 2] of the grid that are written of each instance, those left out that have no vertex.

        Vertices go to the nearest point of the grid; what then is worth writing, says envs/geometry/grid_rings.py. An
        instance of which none is becomes the cells of the grid around it, a triangle half of them. So what fills a
        pixel reads back as `ok`, and fills one. instances: rings [N, 2] in pixels, in canonical order.
        """
        return [self._written(rings, height, width) for rings in instances if any(map(len, rings))]

    def _written(self, rings: Sequence[Ring], height: int, width: int) -> list[GridRing]:
        extent_px = (0.0, 0.0, float(width), float(height))
        steps = self.numbers.steps(height, width)
        rounded = [grid_rings.rounded(ring, steps, extent_px) for ring in rings]
        read_px = [px_from_unit(ring / steps, height, width) for ring in rounded]
        written = [rounded[k] for k in grid_rings.worth_writing(rings, read_px, height, width)]
        if not written:
            vertices = np.concatenate(rings)
            cells = _cells_around(unit_from_px(vertices, height, width) * steps, steps)
            boxes = grid_rings.stand_ins(cells, len(vertices))
            read_px = [px_from_unit(box / steps, height, width) for box in boxes]
            written = [boxes[grid_rings.nearest(rings, read_px, height, width)]]
        return written

    def ring_text(self, ring: GridRing) -> str:
        """A ring of the grid as a list of points, [[x, y], [x, y], ...]."""
        number = self.numbers.text
        return "[" + ", ".join(f"[{number(x)}, {number(y)}]" for x, y in ring.tolist()) + "]"

    def refuse_beyond_limits(self, instances: Sequence[Sequence[Ring]], text: str) -> None:
        """Raise ValueError where instances, or the text that says them, exceed a limit."""
        num_rings = sum(map(len, instances))
        num_vertices = sum(len(ring) for rings in instances for ring in rings)
        if num_rings > self.max_rings or num_vertices > self.max_vertices or len(text) > self.max_characters:
            raise ValueError(
                f"{num_rings} rings with {num_vertices} vertices in {len(text)} characters exceed the codec's "
                f"max_rings {self.max_rings}, max_vertices {self.max_vertices} or max_characters "
                f"{self.max_characters}; simplify the outline or raise the limits."
            )

    def place_numbers(self, places: Sequence[Ring], height: int, width: int) -> list[str]:
        """The numbers of each place px as a list in text: "[x, y]" of a point, "[x0, y0, x1, y1]" of a box.

        Raises ValueError for more places than max_rings.
        """
        if len(places) > self.max_rings:
            raise ValueError(f"{len(places)} places exceed the codec's max_rings {self.max_rings}; raise it.")
        number, steps = self.numbers.text, self.numbers.steps(height, width)
        written = grid_places(places, steps, (height, width))
        return [f"[{', '.join(map(number, place.ravel().tolist()))}]" for place in written]

    def places_answer(self, numbers: Sequence[float], corners: int, height: int, width: int) -> Answer:
        """The answer that says places of `corners` points each, x, y, x, y, ..., in the codec's numbers."""
        points_unit = self.numbers.unit(np.array(numbers, np.float64).reshape(-1, 2), height, width)
        inside = bool(((points_unit >= 0) & (points_unit <= 1)).all())
        if not inside or len(points_unit) > corners * self.max_rings:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        return answer_of_places(places_of(px_from_unit(points_unit, height, width), corners))

    def answer(self, draft: Draft, height: int, width: int) -> Answer:
        """What a draft of one instance or more says about a height x width image.

        Coordinates are taken as they are, digits beyond the grid's included. Out of range is a number outside the image
        or a limit that is exceeded; degenerate a ring of less than a quarter of a grid cell, by its signed area, or a
        box without width or height.
        """
        numbers = self.numbers
        points_unit = numbers.unit(np.array(draft.numbers, np.float64).reshape(-1, 2), height, width)
        corners_unit = numbers.unit(np.array([*draft.boxes.values()], np.float64).reshape(-1, 2), height, width)
        inside = all(bool(((places >= 0) & (places <= 1)).all()) for places in (points_unit, corners_unit))
        if not inside or len(points_unit) > self.max_vertices or len(draft.ring_ends) - 1 > self.max_rings:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        offsets = np.array(draft.ring_ends, np.int64)
        cell = 1 / numbers.steps(height, width).prod()
        flat = bool((corners_unit[1::2] <= corners_unit[::2]).any())
        if flat or any(abs(signed_area_px(ring)) < 0.25 * cell for ring in split_rings(points_unit, offsets)):
            return Answer(AnswerStatus.DEGENERATE)
        rings_px = split_rings(px_from_unit(points_unit, height, width), offsets)
        corners_px = px_from_unit(corners_unit, height, width).reshape(-1, 4)
        boxes_px = {k: _box(sides) for k, sides in zip(draft.boxes, corners_px, strict=True)}
        bounds = zip(draft.instance_ends[:-1], draft.instance_ends[1:], strict=True)
        instances = [
            Instance(*flatten_rings(rings_px[first:end]), boxes_px.get(k), draft.labels.get(k))
            for k, (first, end) in enumerate(bounds)
        ]
        return Answer(AnswerStatus.OK, tuple(instances))


def _box(sides: NDArray[np.float64]) -> Box:
    x0, y0, x1, y1 = sides.tolist()
    return x0, y0, x1, y1


def _cells_around(vertices_grid: Ring, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The clockwise box [4, 2] of whole grid cells around vertices [N, 2], in grid steps of which there are [2]."""
    low = np.floor(vertices_grid.min(axis=0) + 1e-9).clip(0, steps - 1).astype(np.int64)
    high = np.ceil(vertices_grid.max(axis=0) - 1e-9).clip(low + 1, steps).astype(np.int64)
    return np.array([low, (high[0], low[1]), high, (low[0], high[1])])
