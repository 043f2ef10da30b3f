"""Codec: boxes with a mark behind each, for which a decoder draws the mask; one word for each number.

    answer   = "none" | instance (" ; " instance)*
    instance = x0 y0 x1 y1 mark                     box on the image's grid, 0..box_bins

It is what policies with a decoder behind their boxes write (policies/families/box_decoder.py) where the tokenizer knows
words alone; json_masks.py is the released form. A text alone says boxes, and reads as their rectangles; the policy that
wrote it puts the masks in their place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, MAX_DIGITS, numbers_of, split
from envs.codecs._places import CORNERS, answer_of_places, grid_places
from envs.codecs.base import AnswerGrammar, TextPlace
from envs.polygons import Answer, AnswerStatus, Ring, px_from_grid
from envs.ranges import at_least, between, check_ranges

_BOX = re.compile(r"[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+")


@dataclass(frozen=True)
class Codec:
    """Settings of the form of boxes with marks."""

    box_bins: Annotated[int, between(1, 10**MAX_DIGITS - 1)] = 64
    """Steps of the box grid over the image, so a box number is 0..box_bins."""
    max_masks: Annotated[int, at_least(1)] = 8
    """Most boxes of an answer; more reads as out of range."""
    mask_token: str = "<|mask|>"
    """Word behind a box whose hidden state says what is to be drawn in it."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        check_ranges(self)
        word = self.mask_token
        if not word or word.split() != [word] or word.isdigit() or word in (EMPTY_WORD, INSTANCE_WORD):
            raise ValueError(f"codec.mask_token is {word!r}; give one word that is no number, such as <|mask|>.")

    @property
    def words(self) -> list[str]:
        """Every word of the texts, numbers first and in order."""
        return [*map(str, range(self.box_bins + 1)), self.mask_token, INSTANCE_WORD, EMPTY_WORD]

    def grammar(self) -> AnswerGrammar:
        """Raises NotImplementedError: there is none."""
        raise NotImplementedError("codec box_masks has no grammar; set sampling.grammar to false.")

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of the boxes around `instances`, each a list of pixel rings [N, 2], over a height x width image.

        Those without a vertex are left out. Raises ValueError for more than max_masks.
        """
        drawn = [np.concatenate(rings) for rings in instances if any(map(len, rings))]
        corners = [np.stack([vertices.min(axis=0), vertices.max(axis=0)]) for vertices in drawn]
        boxes = self._boxes(corners, height, width)
        return f" {INSTANCE_WORD} ".join(f"{box} {self.mask_token}" for box in boxes) or EMPTY_WORD

    def _boxes(self, corners: Sequence[Ring], height: int, width: int) -> list[str]:
        if len(corners) > self.max_masks:
            raise ValueError(f"{len(corners)} boxes exceed the codec's max_masks {self.max_masks}; raise it.")
        written = grid_places(corners, np.full(2, self.box_bins), (height, width))
        return [" ".join(map(str, place.ravel().tolist())) for place in written]

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes that `text` says of a height x width image, as rectangles; any str reads as some status.

        truncated: the length limit cut the text. A box without its mark is unparsable, and so is a mark without a box.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = text.split()
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        parts = split(words, INSTANCE_WORD)
        if any(part[-1:] != [self.mask_token] for part in parts):
            return Answer(AnswerStatus.UNPARSABLE)
        return self._read_numbers([part[:-1] for part in parts], "box", height, width)

    def _read_numbers(self, parts: Sequence[list[str]], asked: str, height: int, width: int) -> Answer:
        numbers = [numbers_of(part) or [] for part in parts]
        if any(len(each) != 2 * CORNERS[asked] for each in numbers):
            return Answer(AnswerStatus.UNPARSABLE)
        if max(map(max, numbers)) > self.box_bins or len(numbers) > self.max_masks:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        extent = (0.0, 0.0, float(width), float(height))
        return answer_of_places([px_from_grid(np.array(n).reshape(-1, 2), self.box_bins, extent) for n in numbers])

    def box_text(self, text: str) -> str:
        """The box that a text begins with; the empty answer as it is."""
        return " ".join(text.split()[:4])

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each box of a text that reads as `ok`."""
        return [TextPlace(*found.span(), k, None) for k, found in enumerate(_BOX.finditer(text))]

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px: "x y" for a point, "x0 y0 x1 y1" for a box, " ; " between them.

        Raises ValueError for more than max_masks.
        """
        return f" {INSTANCE_WORD} ".join(self._boxes(places, height, width)) or EMPTY_WORD

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises."""
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        words = text.split()
        if words == [EMPTY_WORD]:
            return Answer(AnswerStatus.EMPTY)
        return self._read_numbers(split(words, INSTANCE_WORD), asked, height, width)
