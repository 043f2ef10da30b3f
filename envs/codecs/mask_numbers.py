"""Codec: which of a question's candidate masks belong to the answer, as their numbers, written by a model.

    answer = "none" | number (" " number)*        numbers from 0, each once; taught in rising order, read in any

How many candidates there are stands in the question, and is not written (mask_group, whose answers nobody writes, tells
it). What a choice covers is in the candidates: a text alone is no answer, and is read beside its question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.codecs import mask_group
from envs.codecs.base import AnswerGrammar
from envs.geometry.pools import meant
from envs.polygons import Answer, AnswerStatus, Ring

NONE = "none"
"""What is written where nothing is chosen."""
_TEXT = re.compile(r"none|[0-9]{1,6}(?: +[0-9]{1,6})*")


@dataclass(frozen=True)
class Codec:
    """There is nothing to set."""

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Raises ValueError: outlines are not chosen from; see `chosen_text`."""
        raise ValueError(
            "codec mask_numbers says which candidates of a question belong to its answer, and writes no outlines; give "
            "data with candidates, or choose another codec."
        )

    def grammar(self) -> AnswerGrammar:
        """Raises NotImplementedError: there is none, since how many numbers there are is each question's own."""
        raise NotImplementedError("codec mask_numbers has no grammar; set sampling.grammar to false.")

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """Unparsable, or truncated: without its candidates no text says which pixels it means."""
        return Answer(AnswerStatus.TRUNCATED if truncated else AnswerStatus.UNPARSABLE)

    def chosen_text(self, candidates: NDArray[np.bool_] | None, masks: NDArray[np.bool_]) -> str:
        """The answer that means masks [K, H, W]: of candidates [N, H, W] those that stand for them (geometry/pools.py),
        in rising order. Raises ValueError where there are none to choose from."""
        if candidates is None or not len(candidates):
            raise ValueError(
                "codec mask_numbers needs candidates to choose from, and the example has none; set env.candidates of "
                "composed scenes, or give shards that hold some."
            )
        return text_of(meant(candidates, masks).tolist())

    def read_chosen(self, text: str, candidates: NDArray[np.bool_] | None) -> Answer:
        """What a text means of candidates [N, H, W]; any str reads as some status, none raises.

        Unparsable: no such text, a number twice, or a question without candidates. Out of range: a number that no
        candidate has.
        """
        numbers = numbers_of(text)
        if numbers is None or candidates is None:
            return Answer(AnswerStatus.UNPARSABLE)
        if any(number >= len(candidates) for number in numbers):
            return Answer(AnswerStatus.OUT_OF_RANGE)
        chosen = np.zeros(len(candidates), np.bool_)
        chosen[numbers] = True
        return mask_group.answer_of(chosen, candidates)


def text_of(chosen: Sequence[bool]) -> str:
    """The text of a choice [N]."""
    return " ".join(str(k) for k, taken in enumerate(chosen) if taken) or NONE


def numbers_of(text: str) -> list[int] | None:
    """The numbers of a text in its order, none of them twice; None where it says no choice."""
    written = text.strip()
    if _TEXT.fullmatch(written) is None:
        return None
    numbers = [] if written == NONE else [int(number) for number in written.split()]
    return numbers if len(set(numbers)) == len(numbers) else None
