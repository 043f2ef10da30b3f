"""Codec: a box, then an SVG path of lines and curves on an integer grid inside it, one word per number.

    answer   = "none" | instance (" ; " instance)*
    instance = x0 y0 x1 y1 outline+                box on the image's grid, 0..box_bins; or its centre and its sizes
    outline  = "M" x y segment* "Z"                on the box's grid, 0..path_bins
    segment  = "L" x y | "Q" x1 y1 x y | "C" x1 y1 x2 y2 x y, and all of them, M too, in small letters: relative

After Moondream Segmentation (arXiv 2604.02593), whose grid has 960 steps. A curve says in three points what takes a
polygon six or more. Direction says outer outline or hole, as everywhere; areas are those of the curves themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from envs.codecs import _centre_box
from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, MAX_DIGITS, RING_WORD, BoxedCodec, numbers_of
from envs.codecs._svg_path_grammar import CLOSE_WORD, DEGREES, SvgPathGrammar
from envs.codecs._svg_words import read_path, words_of
from envs.geometry import grid_rings
from envs.geometry.curve_fit import fitted_within
from envs.geometry.curves import Path, flattened, lines, num_points, signed_area
from envs.polygons import (
    AnswerStatus,
    Box,
    Instance,
    Ring,
    grid_from_px,
    instance_from_rings,
    px_from_grid,
    signed_area_px,
)
from envs.ranges import at_least, between, one_of

_LETTERS = {degree: letter for letter, degree in DEGREES.items()}


@dataclass(frozen=True)
class Codec(BoxedCodec):
    """Settings of the form of SVG paths."""

    path_bins: Annotated[int, between(1, 10**MAX_DIGITS - 1)] = 960
    """Steps of the path grid over the box, so a path number is 0..path_bins."""
    boxes: Annotated[str, one_of("corners", "centre")] = "corners"
    """How a box is said: by two `corners`, or by its `centre` and its sizes, these by their logarithm, as models with
    heads for coordinates and sizes say it (envs/codecs/_centre_box.py). Points and boxes in questions likewise."""
    size_bins: Annotated[int | None, between(1, 10**MAX_DIGITS - 1)] = None
    """Steps of the sizes of boxes by their centre, so that such a number is 0..size_bins; null: as box_bins."""
    max_vertices: Annotated[int, at_least(3, ", so that there is room for a triangle.")] = 64
    """Most points of the whole answer, those that bend curves included; more reads as out of range. What is written
    keeps to it."""
    least_share: Annotated[float, between(0, 1)] = 0.002
    """A point is written where it brings the outline nearer to the given one by this share of its area or more."""
    curves: bool = True
    """Whether curves are written; without, the same choice of points makes polygons. Both are read."""
    flatten_px: Annotated[float, at_least(0.01)] = 0.1
    """How far the polygon that a curve is read as may stray from it; pixels of the image."""
    reading: Annotated[str, one_of("strict", "lenient")] = "strict"
    """What is read: `strict` what the grammar has, relative forms besides; `lenient` also commas, missing spaces,
    fractions (but of the box's numbers), numbers left over, outlines without Z, the commands H, V, S and T, and points
    up to a box's size outside the box."""
    fits_traced: ClassVar[bool] = True
    """Outlines are taken as they were traced."""

    @property
    def words(self) -> list[str]:
        """Every word that is written, numbers first and in order."""
        numbers = [str(k) for k in range(max(self.box_bins, self.path_bins, self.size_bins or 0) + 1)]
        return [*numbers, RING_WORD, *DEGREES, CLOSE_WORD, INSTANCE_WORD, EMPTY_WORD]

    def grammar(self) -> SvgPathGrammar:
        """Automaton of texts in absolute form that read as valid within these limits."""
        sizes = None if self.boxes == "corners" else self.size_steps
        return SvgPathGrammar(self.box_bins, self.path_bins, self.max_rings, self.max_vertices, sizes)

    @property
    def size_steps(self) -> int:
        """Steps of the sizes of boxes by their centre."""
        return self.box_bins if self.size_bins is None else self.size_bins

    def _centre_steps(self) -> _centre_box.Steps:
        return self.box_bins, self.size_steps

    def box_around(self, vertices_px: Ring, height: int, width: int) -> tuple[int, int, int, int]:
        """The smallest box that can be said of those that hold the vertices."""
        if self.boxes == "centre":
            return _centre_box.box_around(vertices_px, self._centre_steps(), height, width)
        return super().box_around(vertices_px, height, width)

    def box_px(self, box: Sequence[int], height: int, width: int) -> Box:
        """The box that four numbers say, pixels."""
        if self.boxes == "centre":
            return _centre_box.box_px(box, self._centre_steps(), height, width)
        return super().box_px(box, height, width)

    def place_numbers(self, place: Ring, height: int, width: int) -> list[int]:
        """The numbers of a point or box px."""
        if self.boxes == "centre":
            return _centre_box.place_numbers(place, self._centre_steps(), height, width)
        return super().place_numbers(place, height, width)

    def place_px(self, numbers: Sequence[int], height: int, width: int) -> Ring:
        """The point or box px that numbers say."""
        if self.boxes == "centre":
            return _centre_box.place_px(numbers, self._centre_steps(), height, width)
        return super().place_px(numbers, height, width)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        Give outlines as they were traced: lines and curves are fitted to them here (envs/geometry/curve_fit.py), as
        closely as `least_share` and `max_vertices` say. Points go to the nearest of the box's grid; what then is worth
        writing, says envs/geometry/grid_rings.py. An instance of which none is becomes its box, a triangle half of it.
        So what fills a pixel reads back as `ok`, and fills one. Raises ValueError for more than max_rings, or more than
        max_vertices hold.
        """
        shown = [[ring for ring in rings if len(ring)] for rings in instances if any(map(len, rings))]
        num_rings = sum(map(len, shown))
        if num_rings > self.max_rings or 3 * num_rings > self.max_vertices:
            raise ValueError(
                f"{num_rings} rings exceed the codec's max_rings {self.max_rings} or, of three points or more each, "
                f"max_vertices {self.max_vertices}; keep fewer rings or raise the limits."
            )
        with_area = [np.asarray(ring, np.float64) for rings in shown for ring in rings if signed_area_px(ring)]
        fitted = iter(fitted_within(with_area, self.least_share, self.max_vertices, 3 if self.curves else 1))
        paths = [[next(fitted) if signed_area_px(ring) else [] for ring in rings] for rings in shown]
        texts = [self._instance_text(*pair, height, width) for pair in zip(shown, paths, strict=True)]
        return f" {INSTANCE_WORD} ".join(texts) or EMPTY_WORD

    def _instance_text(self, rings: Sequence[Ring], paths: Sequence[Path], height: int, width: int) -> str:
        box_grid = self.box_around(np.concatenate(rings), height, width)
        box_px = self.box_px(box_grid, height, width)
        rounded = [self._rounded(path, box_px) for path in paths]
        read_px = [self._ring_px(path, box_px) for path in rounded]
        written = [rounded[k] for k in grid_rings.worth_writing(rings, read_px, height, width)]
        if not written:
            box = self.stand_in(rings, box_px, max(3, sum(map(num_points, paths))), (height, width))
            written = [lines(np.asarray(box, np.float64))]
        return " ".join([*map(str, box_grid), *map(_path_text, written)])

    def _rounded(self, path: Path, box_px: Box) -> Path:
        """A path px on the box's grid, segments that lost their length left out; [] where it lost its area."""
        grid = [np.asarray(grid_from_px(segment, self.path_bins, box_px), np.float64) for segment in path]
        grid = [segment for segment in grid if (segment != segment[0]).any()]
        return grid if signed_area(grid) else []

    def _ring_px(self, path: Path, box_px: Box) -> Ring:
        """The ring px that a path of the box's grid is read as."""
        return flattened([px_from_grid(segment, self.path_bins, box_px) for segment in path], self.flatten_px)

    def beyond(self, numbers: Sequence[int]) -> bool:
        """Whether a number of a point or box is none of its grid."""
        of_sizes = self.box_bins if self.boxes == "corners" else self.size_steps
        return max(numbers[:2]) > self.box_bins or max(numbers[2:], default=0) > of_sizes

    def split_words(self, text: str) -> list[str]:
        """The words of a text, between spaces; where reading is lenient, wherever one ends."""
        return words_of(text) if self.reading == "lenient" else text.split()

    def read_instance(self, words: list[str], height: int, width: int) -> tuple[Instance, int] | AnswerStatus:
        """The instance that words between separators say, and how many points it was written with; or why not."""
        box, lenient = numbers_of(words[:4]), self.reading == "lenient"
        read = read_path(words[4:], lenient, self.max_vertices)
        if box is None or len(box) < 4:
            return AnswerStatus.UNPARSABLE
        if isinstance(read, AnswerStatus):
            return read
        outlines, num = read
        points = np.concatenate([segment for path in outlines for segment in path] or [np.zeros((1, 2))])
        room = self.path_bins if lenient else 0
        if self.beyond(box) or points.min() < -room or points.max() > self.path_bins + room:
            return AnswerStatus.OUT_OF_RANGE
        flat = [signed_area(path) == 0 for path in outlines]
        turned = self.boxes == "corners" and (box[2] <= box[0] or box[3] <= box[1])
        if turned or all(flat) or (any(flat) and not lenient):
            return AnswerStatus.DEGENERATE
        box_px = self.box_px(box, height, width)
        rings_px = [self._ring_px(path, box_px) for path, lost in zip(outlines, flat, strict=True) if not lost]
        return instance_from_rings(rings_px, box_px), num


def _path_text(path: Path) -> str:
    """Words of a path on the grid; a letter only where it changes, and no line that Z draws."""
    said = path[:-1] if len(path[-1]) == 2 and np.array_equal(path[-1][-1], path[0][0]) else path
    words = [RING_WORD, *_numbers(path[0][:1])]
    letter = "L"
    for segment in said:
        own = _LETTERS[len(segment) - 1]
        if own != letter:
            words.append(own)
        letter = own
        words += _numbers(segment[1:])
    return " ".join([*words, CLOSE_WORD])


def _numbers(points: Ring) -> list[str]:
    return [str(int(number)) for number in points.ravel()]
