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

import numpy as np

from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, RING_WORD, BoxedCodec, numbers_of, split
from envs.codecs._path_tokens_grammar import PathTokensGrammar
from envs.codecs.base import TextPlace
from envs.geometry import grid_rings
from envs.polygons import AnswerStatus, Instance, Ring, instance_from_rings, px_from_grid, signed_area_px


@dataclass(frozen=True)
class Codec(BoxedCodec):
    """Settings of the path-token form."""

    @property
    def words(self) -> list[str]:
        """Every word of the grammar, numbers first and in order."""
        return [str(k) for k in range(max(self.box_bins, self.path_bins) + 1)] + [RING_WORD, INSTANCE_WORD, EMPTY_WORD]

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
        box_grid = self.box_around(vertices, height, width)
        box_px = self.box_px(box_grid, height, width)
        rounded = [grid_rings.rounded(ring, bins, box_px) for ring in rings]
        read_px = [px_from_grid(ring, bins, box_px) for ring in rounded]
        written = [rounded[k] for k in grid_rings.worth_writing(rings, read_px, height, width)]
        if not written:
            written = [self.stand_in(rings, box_px, len(vertices), (height, width))]
        ring_texts = [" ".join(map(str, ring.ravel().tolist())) for ring in written]
        return " ".join(map(str, box_grid)) + " " + f" {RING_WORD} ".join(ring_texts)

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

    def read_instance(self, words: list[str], height: int, width: int) -> tuple[Instance, int] | AnswerStatus:
        """The instance that words between separators say, and its vertices; or why not."""
        ring_words = split(words[4:], RING_WORD)
        numbers = [numbers_of(part) for part in (words[:4], *ring_words)]
        if any(part is None or len(part) % 2 for part in numbers) or len(words) < 4:
            return AnswerStatus.UNPARSABLE
        box, *rings = [np.array(part, np.int64) for part in numbers]
        if box.max() > self.box_bins or any((ring > self.path_bins).any() for ring in rings):
            return AnswerStatus.OUT_OF_RANGE
        rings = [ring.reshape(-1, 2) for ring in rings]
        if box[2] <= box[0] or box[3] <= box[1] or any(len(ring) < 3 or signed_area_px(ring) == 0 for ring in rings):
            return AnswerStatus.DEGENERATE
        box_px = self.box_px(box.tolist(), height, width)
        rings_px = [px_from_grid(ring, self.path_bins, box_px) for ring in rings]
        return instance_from_rings(rings_px, box_px), sum(map(len, rings))
