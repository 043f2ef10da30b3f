"""Codec: a box, then a path on an integer grid inside it, one word (one token of a fitting tokenizer) per number.

    answer   = "none" | instance (" ; " instance)*
    instance = x0 y0 x1 y1 ring ("M" ring)*        box on the image's grid, 0..box_bins
    ring     = x y x y x y ...                     three or more points on the box's grid, 0..path_bins

After Moondream Segmentation (arXiv 2604.02593): the box first settles which object is meant, and a box-relative grid
gives
more precision per token than points of the whole image. Direction says outer ring or hole, as everywhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from envs.codecs._path_tokens_grammar import EMPTY_WORD, INSTANCE_WORD, RING_WORD, PathTokensGrammar
from envs.codecs._places import CORNERS, answer_of_places, grid_places, places_of
from envs.codecs.base import TextPlace
from envs.geometry import grid_rings
from envs.polygons import Answer, AnswerStatus, Box, Instance, Ring, instance_from_rings, px_from_grid, signed_area_px
from envs.ranges import at_least, between, check_ranges

_MAX_DIGITS = 6


@dataclass(frozen=True)
class Codec:
    """Settings of the path-token form."""

    box_bins: Annotated[int, between(1, 10**_MAX_DIGITS - 1)] = 64
    """Steps of the box grid over the image, so a box number is 0..box_bins."""
    path_bins: Annotated[int, between(1, 10**_MAX_DIGITS - 1)] = 32
    """Steps of the path grid over the box, so a path number is 0..path_bins."""
    max_rings: Annotated[int, at_least(1)] = 8
    """Most rings of the whole answer; more reads as out of range."""
    max_vertices: Annotated[int, at_least(3, ", so that there is room for a triangle.")] = 64
    """Most vertices of the whole answer; more reads as out of range."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        check_ranges(self)

    @property
    def words(self) -> list[str]:
        """Every word of the grammar, numbers first and in order."""
        return [str(k) for k in range(max(self.box_bins, self.path_bins) + 1)] + [RING_WORD, INSTANCE_WORD, EMPTY_WORD]

    def box_text(self, text: str) -> str:
        """The box that a text begins with; the empty answer as it is."""
        return " ".join(text.split()[:4])

    def grammar(self) -> PathTokensGrammar:
        """Automaton of the texts that read as valid within these limits."""
        return PathTokensGrammar(self.box_bins, self.path_bins, self.max_rings, self.max_vertices)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        Vertices go to the nearest point of the box's grid; what then is worth writing, says
        envs/geometry/grid_rings.py. An instance of which none is becomes its box, a triangle half of it. So what fills
        a pixel reads back as `ok`, and fills one. Raises ValueError where the limits on rings or vertices are exceeded:
        simplify first (envs/geometry/contours.py).
        """
        num_rings = sum(map(len, instances))
        num_vertices = sum(len(ring) for rings in instances for ring in rings)
        if num_rings > self.max_rings or num_vertices > self.max_vertices:
            raise ValueError(
                f"{num_rings} rings with {num_vertices} vertices exceed the codec's max_rings {self.max_rings} and "
                f"max_vertices {self.max_vertices}; simplify the outline or raise the limits."
            )
        texts = [self._encode_instance(rings, height, width) for rings in instances if any(map(len, rings))]
        return f" {INSTANCE_WORD} ".join(texts) or EMPTY_WORD

    def _encode_instance(self, rings: Sequence[Ring], height: int, width: int) -> str:
        vertices, bins = np.concatenate(rings), self.path_bins
        box_grid = self._box_around(vertices, height, width)
        box_px = self._box_px(box_grid, height, width)
        rounded = [grid_rings.rounded(ring, bins, box_px) for ring in rings]
        read_px = [px_from_grid(ring, bins, box_px) for ring in rounded]
        written = [rounded[k] for k in grid_rings.worth_writing(rings, read_px, height, width)]
        if not written:  # too thin for the grid: the box itself is the nearest shape that can be said
            boxes = grid_rings.stand_ins(np.array([(0, 0), (bins, 0), (bins, bins), (0, bins)]), len(vertices))
            read_px = [px_from_grid(box, bins, box_px) for box in boxes]
            written = [boxes[grid_rings.nearest(rings, read_px, height, width)]]
        ring_texts = [" ".join(map(str, ring.ravel().tolist())) for ring in written]
        return " ".join(map(str, box_grid)) + " " + f" {RING_WORD} ".join(ring_texts)

    def _box_around(self, vertices_px: Ring, height: int, width: int) -> tuple[int, int, int, int]:
        """The smallest box of the grid that holds the vertices, at least one step wide and high."""
        scale = np.array([self.box_bins / width, self.box_bins / height])
        # A hair's tolerance, so that a box that lies on the grid up to rounding errors keeps its place.
        low = np.floor(vertices_px.min(axis=0) * scale + 1e-9).clip(0, self.box_bins - 1).astype(int)
        high = np.ceil(vertices_px.max(axis=0) * scale - 1e-9).clip(low + 1, self.box_bins).astype(int)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _box_px(self, box: Sequence[int], height: int, width: int) -> Box:
        """A box of the grid in pixels."""
        corners = px_from_grid(np.array(box).reshape(2, 2), self.box_bins, (0.0, 0.0, float(width), float(height)))
        return float(corners[0, 0]), float(corners[0, 1]), float(corners[1, 0]), float(corners[1, 1])

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """What `text` says about a height x width image; any str reads as some status, none raises.

        truncated: the length limit cut the text, so it is not an answer even where it happens to parse.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = text.split()
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        instances: list[Instance] = []
        for part in _split(words, INSTANCE_WORD):
            read = self._read_instance(part, height, width)
            if isinstance(read, AnswerStatus):
                return Answer(read)
            instances.append(read)
        num_rings = sum(len(instance.ring_offsets) - 1 for instance in instances)
        num_vertices = sum(len(instance.vertices_px) for instance in instances)
        if num_rings > self.max_rings or num_vertices > self.max_vertices:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        return Answer(AnswerStatus.OK, tuple(instances))

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each box and each vertex of a text that reads as `ok`."""
        places: list[TextPlace] = []
        instance, vertices, numbers = 0, 0, list[re.Match[str]]()
        for word in re.finditer(r"\S+", text):
            if word[0] == INSTANCE_WORD:
                instance, numbers = instance + 1, []
            elif word[0] != RING_WORD:
                numbers.append(word)
                if len(numbers) == 4:
                    places.append(TextPlace(numbers[0].start(), word.end(), instance, None))
                elif len(numbers) > 4 and len(numbers) % 2 == 0:
                    places.append(TextPlace(numbers[-2].start(), word.end(), instance, vertices))
                    vertices += 1
        return places

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px on the grid of boxes: "x y" for a point, "x0 y0 x1 y1" for a box, " ; " between them.

        Raises ValueError for more than max_rings.
        """
        if len(places) > self.max_rings:
            raise ValueError(f"{len(places)} places exceed the codec's max_rings {self.max_rings}; raise it.")
        written = grid_places(places, np.full(2, self.box_bins), (height, width))
        return f" {INSTANCE_WORD} ".join(" ".join(map(str, place.ravel().tolist())) for place in written) or EMPTY_WORD

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises."""
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = text.split()
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        parts, corners = [_numbers(part) for part in _split(words, INSTANCE_WORD)], CORNERS[asked]
        if any(part is None or len(part) != 2 * corners for part in parts):
            return Answer(AnswerStatus.UNPARSABLE)
        numbers = np.array(parts, np.int64).reshape(-1, 2)
        if numbers.max() > self.box_bins or len(parts) > self.max_rings:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        extent_px = (0.0, 0.0, float(width), float(height))
        return answer_of_places(places_of(px_from_grid(numbers, self.box_bins, extent_px), corners))

    def _read_instance(self, words: list[str], height: int, width: int) -> Instance | AnswerStatus:
        ring_words = _split(words[4:], RING_WORD)
        numbers = [_numbers(part) for part in (words[:4], *ring_words)]
        if any(part is None or len(part) % 2 for part in numbers) or len(words) < 4:
            return AnswerStatus.UNPARSABLE
        box, *rings = [np.array(part, np.int64) for part in numbers]
        if box.max() > self.box_bins or any((ring > self.path_bins).any() for ring in rings):
            return AnswerStatus.OUT_OF_RANGE
        rings = [ring.reshape(-1, 2) for ring in rings]
        if box[2] <= box[0] or box[3] <= box[1] or any(len(ring) < 3 or signed_area_px(ring) == 0 for ring in rings):
            return AnswerStatus.DEGENERATE
        box_px = self._box_px(box.tolist(), height, width)
        return instance_from_rings([px_from_grid(ring, self.path_bins, box_px) for ring in rings], box_px)


def _split(words: list[str], separator: str) -> list[list[str]]:
    """Words between separators; always one part more than there are separators."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _numbers(words: list[str]) -> list[int] | None:
    """The words as whole numbers of at most six ASCII digits, or None; longer ones are no numbers of any grid."""
    if not all(word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS for word in words):
        return None
    return [int(word) for word in words]
