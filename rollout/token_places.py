"""Which vertex, or box, each token of an answer says.

So that rewards of single vertices can become advantages of single tokens. Tokens that say neither, such as brackets and
the end, belong to none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.codecs.base import LocatingCodec, TextPlace
from envs.polygons import Answer, AnswerStatus
from policies.families.base import Response
from policies.processor import Processor
from policies.thinking import split_thinking

NEITHER = -1
"""Stands for no instance, and for no vertex."""


def token_places(processor: Processor, response: Response, text: str, answer: Answer) -> NDArray[np.int16] | None:
    """[T, 2] the instance and the vertex that each token of a response says, NEITHER where none; of a box's tokens the
    instance alone.

    Vertices are counted through all rings of the answer, as its vertices are. text, answer: of the response. None where
    it is not known: of an answer that is not `ok`, of one amid other text, and where the codec does not locate.
    """
    codec = processor.codec
    if answer.status is not AnswerStatus.OK or not answer.bare or not isinstance(codec, LocatingCodec):
        return None
    behind = 0
    if answer.thinking is not None:
        behind = len(text) - len(split_thinking(text, processor.thinking.marks, processor.thinking.begun).rest)
    places = codec.text_places(text[behind:])
    if sum(place.vertex is not None for place in places) != answer.num_vertices:
        return None
    ends = text_ends(processor.token_texts(response), text)
    return None if ends is None else _by_token(ends, places, behind)


def text_ends(pieces: Sequence[str], text: str) -> NDArray[np.int64] | None:
    """[T] characters of `text` that are written by the end of each of its tokens, whose texts `pieces` are.

    None where they do not add up to it. The end token's text is "".
    """
    for between in ("", " "):  # tokenizers put texts end to end, or a space between
        written = np.cumsum([len(piece) for piece in pieces]) + len(between) * np.arange(len(pieces))
        if between.join(pieces[: len(pieces) - (pieces[-1:] == [""])]) == text:
            return np.minimum(written, len(text))
    return None


def _by_token(ends: NDArray[np.int64], places: Sequence[TextPlace], behind: int) -> NDArray[np.int16]:
    found = np.full((len(ends), 2), NEITHER, np.int16)
    begins = np.concatenate([[0], ends[:-1]])
    for place in places:
        said = (begins < behind + place.end) & (ends > behind + place.begin)
        found[said] = place.instance, NEITHER if place.vertex is None else place.vertex
    return found
