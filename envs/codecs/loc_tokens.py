"""Codec: tokens of places, `<loc0000>` to `<loc1023>`, as PaliGemma writes boxes; outlines in the same tokens.

    answer   = "" | instance (" ; " instance)*           "": nothing is there
    instance = box [" " ring ("," ring)*] [" " label]    without rings: the box itself
    box      = <loc y0> <loc x0> <loc y1> <loc x1>       in 1/1024 of the image's height and width
    ring     = <loc y> <loc x> ...                       three points or more, in 1/path_bins of the box

Between tokens stand no spaces, though they are read all the same. Rows come before columns. PaliGemma was taught boxes
so, and behind them codes `<seg000>` to `<seg127>` for a mask; what these mean is held by weights of their own and is
not known here: they are passed over, and the box is what is read. Outlines it has to be taught. The last place of an
image is 1023/1024 of it: what reaches further is said up to there. Facts: the model card and transformers' processor of
PaliGemma.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from envs.codecs import path_tokens
from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, RING_WORD, BoxedCodec
from envs.codecs.base import AnswerGrammar, TextPlace
from envs.polygons import Answer, AnswerStatus, Ring
from envs.ranges import between, one_of

_LAST = 1023
"""The last of the tokens of places."""
_TOKEN = re.compile(r"<loc([0-9]{4})>")
_PLACES = r"(?:\s*<loc[0-9]{4}>)"
_INSTANCE = re.compile(
    rf"(?P<box>{_PLACES}{{4}})(?:\s*<seg[0-9]{{3}}>)*(?P<rings>{_PLACES}+(?:\s*,{_PLACES}+)*)?(?P<label>(?:\s[^;<>]*)?)"
)
_PLACE = re.compile(rf"({_PLACES}{{2}}|{_PLACES}{{4}})(?:\s[^;<>]*)?")
_WHOLE = (0, 0, 1, 0, 1, 1, 0, 1)
"""Corners of a box, x and y in turn, as shares of its path grid."""


@dataclass(frozen=True)
class Codec(BoxedCodec):
    """Settings of the form of place tokens."""

    box_bins: Annotated[int, one_of(1024)] = 1024
    """Steps of a box over the image: those of PaliGemma, and no others."""
    path_bins: Annotated[int, between(1, _LAST)] = 255
    """Steps of the path grid over the box, so a path number is 0..path_bins."""
    outlines: bool = True
    """Whether `encode` writes outlines behind boxes; either is read."""

    @property
    def words(self) -> list[str]:
        """Every token of places."""
        return [f"<loc{number:04}>" for number in range(_LAST + 1)]

    def grammar(self) -> AnswerGrammar:
        """Raises NotImplementedError: there is none."""
        raise NotImplementedError("codec loc_tokens has no grammar; set sampling.grammar to false.")

    @property
    def _words_codec(self) -> "_Words":
        return _Words(self.box_bins, self.path_bins, self.max_rings, self.max_vertices)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        As path_tokens says it, in these tokens; ValueError beyond the limits.
        """
        if not self.outlines:
            return self._boxes(instances, height, width)
        words = self._words_codec.encode(instances, height, width).split()
        if words == [EMPTY_WORD]:
            return ""
        texts = [self._written(part) for part in " ".join(words).split(f" {INSTANCE_WORD} ")]
        return f" {INSTANCE_WORD} ".join(texts)

    def _boxes(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        drawn = [np.concatenate(rings) for rings in instances if any(map(len, rings))]
        if len(drawn) > self.max_rings:
            raise ValueError(f"{len(drawn)} boxes exceed the codec's max_rings {self.max_rings}; raise it.")
        boxes = [self._words_codec.box_around(vertices, height, width) for vertices in drawn]
        return f" {INSTANCE_WORD} ".join(map(_tokens, boxes))

    def _written(self, words: str) -> str:
        """One instance, of numbers x and y in turn."""
        box, *rings = [[int(word) for word in part.split()] for part in words.split(f" {RING_WORD} ")]
        rings = [box[4:], *rings]
        return f"{_tokens(box[:4])} " + ",".join(map(_tokens, rings))

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """What `text` says about a height x width image; any str reads as some status, none raises.

        truncated: the length limit cut the text, so it is not an answer even where it happens to parse.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if not text.strip():
            return Answer(AnswerStatus.EMPTY)
        found = [_INSTANCE.fullmatch(part.strip()) for part in text.split(INSTANCE_WORD)]
        words = [None if match is None else self._said(match) for match in found]
        if any(each is None for each in words):
            return Answer(AnswerStatus.UNPARSABLE)
        # The corners of a box alone are vertices that nobody wrote.
        bare = sum(4 for match in found if match and not match["rings"])
        codec = replace(self._words_codec, max_vertices=self.max_vertices + bare)
        answer = codec.read(f" {INSTANCE_WORD} ".join(filter(None, words)), height, width)
        labels = [match["label"].strip() or None for match in found if match]
        labelled = zip(answer.instances, labels, strict=answer.status is AnswerStatus.OK)
        return replace(answer, instances=tuple(replace(each, label=label) for each, label in labelled))

    def _said(self, match: re.Match[str]) -> str | None:
        """An instance in the words of path_tokens; None where a place lacks a half."""
        box = _numbers(match["box"])
        rings = [_numbers(ring) for ring in (match["rings"] or "").split(",") if ring]
        if not rings:
            rings = [[self.path_bins * share for share in _WHOLE]]
        if any(len(ring) % 2 for ring in rings):
            return None
        return " ".join(map(str, box)) + " " + f" {RING_WORD} ".join(" ".join(map(str, ring)) for ring in rings)

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each box and each vertex of a text that reads as `ok`."""
        places: list[TextPlace] = []
        vertices, start = 0, 0
        for number, part in enumerate(text.split(INSTANCE_WORD)):
            tokens = [(start + match.start(), start + match.end()) for match in _TOKEN.finditer(part)]
            if len(tokens) >= 4:
                places.append(TextPlace(tokens[0][0], tokens[3][1], number, None))
            for first, second in zip(tokens[4::2], tokens[5::2], strict=False):
                places.append(TextPlace(first[0], second[1], number, vertices))
                vertices += 1
            start += len(part) + len(INSTANCE_WORD)
        return places

    def box_text(self, text: str) -> str:
        """The box that a text begins with; the empty answer as it is."""
        return "".join(match[0] for match in list(_TOKEN.finditer(text))[:4])

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px, all points or all boxes; ValueError for more than max_rings."""
        said = self._words_codec.encode_places(places, height, width)
        if said == EMPTY_WORD:
            return ""
        parts = said.split(f" {INSTANCE_WORD} ")
        return f" {INSTANCE_WORD} ".join(_tokens([int(word) for word in part.split()]) for part in parts)

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises."""
        if not text.strip() and not truncated:
            return Answer(AnswerStatus.EMPTY)
        parts = [_PLACE.fullmatch(part.strip()) for part in text.split(INSTANCE_WORD)]
        if not all(parts):
            return Answer(AnswerStatus.TRUNCATED if truncated else AnswerStatus.UNPARSABLE)
        words = [" ".join(map(str, _numbers(match[1]))) for match in parts if match]
        return self._words_codec.read_places(f" {INSTANCE_WORD} ".join(words), asked, height, width, truncated)


@dataclass(frozen=True)
class _Words(path_tokens.Codec):
    """The same in numbers between spaces, columns first; no number above the last token's."""

    def box_around(self, vertices_px: Ring, height: int, width: int) -> tuple[int, int, int, int]:
        """The smallest box that can be said, up to the last place of the image."""
        x0, y0, x1, y1 = super().box_around(vertices_px, height, width)
        x1, y1 = min(x1, _LAST), min(y1, _LAST)
        return min(x0, x1 - 1), min(y0, y1 - 1), x1, y1

    def place_numbers(self, place: Ring, height: int, width: int) -> list[int]:
        """The numbers of a place px."""
        return [min(number, _LAST) for number in super().place_numbers(place, height, width)]


def _tokens(numbers: Sequence[int]) -> str:
    """Numbers x and y in turn as tokens, y first."""
    pairs = np.array(numbers).reshape(-1, 2)[:, ::-1]
    return "".join(f"<loc{number:04}>" for number in pairs.ravel())


def _numbers(tokens: str) -> list[int]:
    """Tokens, y first, as numbers x and y in turn; an odd number of them as they are."""
    found = [int(digits) for digits in _TOKEN.findall(tokens)]
    return found if len(found) % 2 else np.array(found, np.int64).reshape(-1, 2)[:, ::-1].ravel().tolist()
