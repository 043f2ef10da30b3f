"""Grounding DINO's answers about tokens as answers about names.

The model is asked with one text, "red car. carpet.", and says of each box how sure it is of each token. A name is the
tokens between two separators, so two names that share a word share no token.

Letters: Q boxes, T tokens of the text, N names.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEPARATORS = str.maketrans({".": " ", "?": " "})
"""Signs at which the model's text is divided into names; in a name they are read as spaces."""


def plain_text(name: str) -> str:
    """A name as it stands in the text: lower case, without separators, single spaces."""
    return " ".join(name.lower().translate(_SEPARATORS).split())


def asked_text(names: Sequence[Sequence[int]], start: int, separator: int, end: int) -> tuple[list[int], list[slice]]:
    """(tokens [T], spans [N]) the whole text, each name's tokens followed by the separator, and where they stand."""
    tokens, spans = [start], list[slice]()
    for name in names:
        spans.append(slice(len(tokens), len(tokens) + len(name)))
        tokens += [*name, separator]
    return [*tokens, end], spans


def texts_that_fit(lengths: Sequence[int], most: int) -> list[slice]:
    """Names, by their numbers of tokens, in as few texts one after the other as hold at most `most` tokens each; a
    name takes one token more, a text two."""
    texts, first, used = list[slice](), 0, 2
    for place, length in enumerate(lengths):
        if used + length + 1 > most and place > first:
            texts.append(slice(first, place))
            first, used = place, 2
        used += length + 1
    return [*texts, slice(first, len(lengths))] if lengths else []


def named(
    sureness: NDArray[np.float64], spans: Sequence[slice], threshold: float, text_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """([Q], [Q]) the name that each box's phrase stands for (-1: none) and its score, of `sureness` [Q, T] in 0..1.

    The phrase of a box is the tokens above `text_threshold`, and a name's score the highest sureness of its tokens. Of
    the names whose score is above `threshold` the one that the phrase covers best is taken: the highest mean over the
    name's tokens, those outside the phrase counted as 0; of equals the first. A box that is sure only of separators,
    or whose phrase has no token of such a name, stands for none; its score is 0.
    """
    phrase = np.where(sureness > text_threshold, sureness, 0.0)
    scores = np.stack([sureness[:, span].max(axis=1) for span in spans], axis=1)
    covered = np.stack([phrase[:, span].mean(axis=1) for span in spans], axis=1)
    covered[scores <= threshold] = 0
    best = covered.argmax(axis=1)
    found = np.take_along_axis(covered, best[:, None], axis=1)[:, 0] > 0
    score = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
    return np.where(found, best, -1), np.where(found, score, 0.0)
