"""What codecs of paths inside a box share: the grid of boxes, the instances of a text, and places as answers.

The box first settles which object is meant, and a box-relative grid gives more precision per token than points of the
whole image. How a path is written and read says each codec: path_tokens.py and svg_path.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from envs.codecs._numerals import Bounds
from envs.codecs._places import CORNERS, answer_of_places, grid_places
from envs.geometry import grid_rings
from envs.geometry.grid_rings import GridRing
from envs.polygons import Answer, AnswerStatus, Box, Instance, Ring, px_from_grid
from envs.ranges import at_least, between, check_ranges

EMPTY_WORD, RING_WORD, INSTANCE_WORD = "none", "M", ";"
MAX_DIGITS = 6


@dataclass(frozen=True)
class BoxedCodec:
    """Settings of a codec of paths inside a box."""

    box_bins: Annotated[int, between(1, 10**MAX_DIGITS - 1)] = 64
    """Steps of the box grid over the image, so a box number is 0..box_bins."""
    path_bins: Annotated[int, between(1, 10**MAX_DIGITS - 1)] = 32
    """Steps of the path grid over the box, so a path number is 0..path_bins."""
    max_rings: Annotated[int, at_least(1)] = 8
    """Most rings of the whole answer; more reads as out of range."""
    max_vertices: Annotated[int, at_least(3, ", so that there is room for a triangle.")] = 64
    """Most vertices of the whole answer; more reads as out of range."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        check_ranges(self)

    def box_text(self, text: str) -> str:
        """The box that a text begins with; the empty answer as it is."""
        return " ".join(text.split()[:4])

    def box_around(self, vertices_px: Ring, height: int, width: int) -> tuple[int, int, int, int]:
        """The smallest box of the grid that holds the vertices, at least one step wide and high."""
        scale = np.array([self.box_bins / width, self.box_bins / height])
        # A hair's tolerance, so that a box that lies on the grid up to rounding errors keeps its place.
        low = np.floor(vertices_px.min(axis=0) * scale + 1e-9).clip(0, self.box_bins - 1).astype(int)
        high = np.ceil(vertices_px.max(axis=0) * scale - 1e-9).clip(low + 1, self.box_bins).astype(int)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def box_px(self, box: Sequence[int], height: int, width: int) -> Box:
        """A box of the grid in pixels."""
        corners = px_from_grid(np.array(box).reshape(2, 2), self.box_bins, (0.0, 0.0, float(width), float(height)))
        return float(corners[0, 0]), float(corners[0, 1]), float(corners[1, 0]), float(corners[1, 1])

    def stand_in(self, rings: Sequence[Ring], box_px: Box, num_vertices: int, size: tuple[int, int]) -> GridRing:
        """The nearest shape that can be said of rings px too thin for the path's grid: their box, or half of it.

        num_vertices: as many may be written; size: height and width of the image.
        """
        bins = self.path_bins
        boxes = grid_rings.stand_ins(np.array([(0, 0), (bins, 0), (bins, bins), (0, bins)]), num_vertices)
        read_px = [px_from_grid(box, bins, box_px) for box in boxes]
        return boxes[grid_rings.nearest(rings, read_px, *size)]

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """What `text` says about a height x width image; any str reads as some status, none raises.

        truncated: the length limit cut the text, so it is not an answer even where it happens to parse.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = self.split_words(text)
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        instances: list[Instance] = []
        num_vertices = 0
        for part in split(words, INSTANCE_WORD):
            read = self.read_instance(part, height, width)
            if isinstance(read, AnswerStatus):
                return Answer(read)
            instances.append(read[0])
            num_vertices += read[1]
        num_rings = sum(len(instance.ring_offsets) - 1 for instance in instances)
        if num_rings > self.max_rings or num_vertices > self.max_vertices:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        return Answer(AnswerStatus.OK, tuple(instances))

    def split_words(self, text: str) -> list[str]:
        """The words of a text."""
        return text.split()

    def read_instance(self, words: list[str], height: int, width: int) -> tuple[Instance, int] | AnswerStatus:
        """The instance that words between separators say, and how many vertices it was written with; or why not."""
        raise NotImplementedError

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px on the grid of boxes: "x y" for a point, "x0 y0 x1 y1" for a box, " ; " between them.

        Raises ValueError for more than max_rings.
        """
        if len(places) > self.max_rings:
            raise ValueError(f"{len(places)} places exceed the codec's max_rings {self.max_rings}; raise it.")
        written = [self.place_numbers(place, height, width) for place in places]
        return f" {INSTANCE_WORD} ".join(" ".join(map(str, numbers)) for numbers in written) or EMPTY_WORD

    def beyond(self, numbers: Sequence[int]) -> bool:
        """Whether a number of a point or box is none of the grid."""
        return max(numbers) > self.box_bins

    def place_numbers(self, place: Ring, height: int, width: int) -> list[int]:
        """The numbers of a place px."""
        (found,) = grid_places([place], np.full(2, self.box_bins), (height, width))
        return [int(number) for number in found.ravel()]

    def place_px(self, numbers: Sequence[int], height: int, width: int) -> Ring:
        """The place px that numbers of the grid say."""
        corners = np.array(numbers).reshape(-1, 2)
        return px_from_grid(corners, self.box_bins, (0.0, 0.0, float(width), float(height)))

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises."""
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = text.split()
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        parts = [numbers_of(part) or [] for part in split(words, INSTANCE_WORD)]
        if any(len(part) != 2 * CORNERS[asked] for part in parts):
            return Answer(AnswerStatus.UNPARSABLE)
        if any(map(self.beyond, parts)) or len(parts) > self.max_rings:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        return answer_of_places([self.place_px(part, height, width) for part in parts])


def split(words: list[str], separator: str) -> list[list[str]]:
    """Words between separators; always one part more than there are separators."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def numbers_of(words: list[str]) -> list[int] | None:
    """The words as whole numbers of at most six ASCII digits, or None; longer ones are no numbers of any grid."""
    if not all(word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS for word in words):
        return None
    return [int(word) for word in words]


def box_bounds(box: tuple[int | None, ...], bins: int) -> Bounds | None:
    """Bounds of the next number of a box while it is written: near sides leave room for the far ones, 0..bins.

    None where its near side is left out.
    """
    if len(box) < 2:
        return Bounds(0, bins - 1)
    near = box[len(box) - 2]
    return None if near is None else Bounds(near + 1, bins)


def condensed_box(box: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The sides of a box while it is written without those that no later one is compared with."""
    # A side is compared with the one two numbers before it.
    return tuple(side if len(box) - k == 2 else None for k, side in enumerate(box))
