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
it (envs/codecs/_lenient.py): one list with at most a sentence about it, or a list of two levels, which is one polygon.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from envs.codecs._lenient import bare_answer
from envs.codecs._places import CORNERS
from envs.codecs._point_codec import EMPTY_TEXT, NUMBER, NUMBER_BEGUN, SPACE, Draft, PointCodec
from envs.codecs._point_text_grammar import SIGNS, PointTextGrammar
from envs.codecs.base import TextPlace
from envs.polygons import Answer, AnswerStatus, Ring

_EMPTY = re.compile(rf"\[[{SPACE}]*\]")
_TOKEN = re.compile(rf"[{SPACE}]*([\[\],;]|[-+.0-9eE]+)")
_SPACED = rf"[{SPACE}]*{NUMBER.pattern}[{SPACE}]*"
_POINT = re.compile(rf"{_SPACED},{_SPACED}")
_PLACE = re.compile(rf"[{SPACE}]*\[({_SPACED}(?:,{_SPACED})*)\][{SPACE}]*")
"""A point or a box: a list of numbers alone."""


@dataclass(frozen=True)
class Codec(PointCodec):
    """Settings of the point-text form: those of PointCodec (envs/codecs/_point_codec.py)."""

    @property
    def signs(self) -> list[str]:
        """Pieces that make up every text of `encode` in fractions or whole numbers, digits first."""
        brackets = ["[[[", "]]]", "], [", "]], [[", "]]]; [[[", EMPTY_TEXT]
        return [*"0123456789", "0.", ".", ", ", *brackets, "[", "]", ",", ";", "-"]

    def grammar(self) -> PointTextGrammar:
        """Automaton of the texts that read as valid within these limits; of the ways to write them, see its file.

        Raises ValueError for pixels of the resized image, whose numbers end elsewhere in every photo.
        """
        return PointTextGrammar(self.numerals, self.max_rings, self.max_vertices, self.max_characters)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        Vertices go to the nearest point of the grid, and what fills a pixel reads back as `ok`, and fills one (see
        `written`). Raises ValueError where a limit is exceeded: simplify first (envs/geometry/contours.py).
        """
        texts = [", ".join(map(self.ring_text, rings)) for rings in self.written(instances, height, width)]
        text = "; ".join(f"[{rings}]" for rings in texts) or EMPTY_TEXT
        self.refuse_beyond_limits(instances, text)
        return text

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
            return self._read_bare(text.strip(SPACE), height, width)
        inner = bare_answer(text)
        answer = self._read_bare(inner.strip(SPACE), height, width)
        return answer if inner == text else replace(answer, bare=_keeps_to_grammar(text.strip(SPACE)))

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each vertex of a text that reads as `ok`."""
        pairs, instance, places = _POINT.finditer(text), 0, list[TextPlace]()
        for k, pair in enumerate(pairs):
            instance += text.count(";", places[-1].end if places else 0, pair.start())
            places.append(TextPlace(pair.start(), pair.end(), instance, k))
        return places

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px: "[x, y]" for a point, "[x0, y0, x1, y1]" for a box, "; " between them.

        Raises ValueError for more than max_rings.
        """
        return "; ".join(self.place_numbers(places, height, width)) or EMPTY_TEXT

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises."""
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if len(text) > self.max_characters:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        answer = self._read_bare_places(text.strip(SPACE), asked, height, width)
        if self.reading == "strict" or answer.status.valid:
            return answer
        inner = bare_answer(text).strip(SPACE)
        return replace(self._read_bare_places(inner, asked, height, width), bare=inner == text.strip(SPACE))

    def _read_bare_places(self, text: str, asked: str, height: int, width: int) -> Answer:
        if _EMPTY.fullmatch(text):
            return Answer(AnswerStatus.EMPTY)
        corners, numbers = CORNERS[asked], list[float]()
        for part in text.split(";"):
            found = _PLACE.fullmatch(part)
            words = found[1].split(",") if found else []
            if len(words) != 2 * corners:
                return Answer(AnswerStatus.UNPARSABLE)
            numbers += map(float, words)
        return self.places_answer(numbers, corners, height, width)

    def _read_bare(self, text: str, height: int, width: int) -> Answer:
        if _EMPTY.fullmatch(text):
            return Answer(AnswerStatus.EMPTY)
        draft = _scan(text)
        return Answer(draft) if isinstance(draft, AnswerStatus) else self.answer(draft, height, width)


def _keeps_to_grammar(text: str) -> bool:
    return _EMPTY.fullmatch(text) is not None or isinstance(_scan(text), Draft)


def _scan(text: str) -> Draft | AnswerStatus:
    """Read `text` sign by sign, once: a draft, or why it is none (truncated: an answer has begun; else unparsable)."""
    draft = Draft()
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
            if not NUMBER.fullmatch(sign):
                cut = position == len(text) and NUMBER_BEGUN.fullmatch(sign)
                return AnswerStatus.TRUNCATED if cut else AnswerStatus.UNPARSABLE
            draft.numbers.append(float(sign))
        elif following == "ring":
            draft.ring_ends.append(len(draft.numbers) // 2)
        elif following == "instance":
            draft.instance_ends.append(len(draft.ring_ends) - 1)
        state = following
    if state == "instance":
        return draft
    return AnswerStatus.TRUNCATED if text else AnswerStatus.UNPARSABLE
