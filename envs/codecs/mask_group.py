"""Codec: which of a question's candidate masks belong to the answer, by their numbers.

    answer = "none of " count | number (" " number)* " of " count        numbers from 0, each once, in order

It is how a model that chooses among candidates (policies/families/mask_selection.py) is shown to people, kept in an
archive and taught: the model itself chooses in or out, a candidate each. What a choice covers is in the candidates, so
that a text alone is no answer, and is read beside its question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.codecs.base import AnswerGrammar
from envs.geometry.contours import rings_from_mask
from envs.geometry.pools import meant
from envs.polygons import Answer, AnswerStatus, Instance, Ring, instance_from_rings

_TEXT = re.compile(r"(none|[0-9]{1,6}(?: [0-9]{1,6})*) of ([0-9]{1,6})")


@dataclass(frozen=True)
class Codec:
    """There is nothing to set."""

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Raises ValueError: outlines are not chosen from; see `chosen_text`."""
        raise ValueError(
            "codec mask_group says which candidates of a question belong to its answer, and writes no outlines; give "
            "data with candidates, or choose another codec."
        )

    def grammar(self) -> AnswerGrammar:
        """Raises NotImplementedError: there is none."""
        raise NotImplementedError("codec mask_group has no grammar; set sampling.grammar to false.")

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """Unparsable, or truncated: without its candidates no text says which pixels it means."""
        return Answer(AnswerStatus.TRUNCATED if truncated else AnswerStatus.UNPARSABLE)

    def chosen_text(self, candidates: NDArray[np.bool_] | None, masks: NDArray[np.bool_]) -> str:
        """The answer that means masks [K, H, W]: of candidates [N, H, W] those that stand for them (geometry/pools.py).

        Raises ValueError where there are none to choose from.
        """
        if candidates is None or not len(candidates):
            raise ValueError(
                "codec mask_group needs candidates to choose from, and the example has none; set env.candidates of "
                "composed scenes, or give shards that hold some."
            )
        return text_of(meant(candidates, masks).tolist())

    def read_chosen(self, text: str, candidates: NDArray[np.bool_] | None) -> Answer:
        """What a text means of candidates [N, H, W]; any str reads as some status, none raises."""
        chosen = choice_of(text)
        return Answer(AnswerStatus.UNPARSABLE) if chosen is None else answer_of(chosen, candidates)


def text_of(chosen: Sequence[bool]) -> str:
    """The text of a choice [N]."""
    numbers = " ".join(str(k) for k, taken in enumerate(chosen) if taken)
    return f"{numbers or 'none'} of {len(chosen)}"


def choice_of(text: str) -> NDArray[np.bool_] | None:
    """[N] the choice that a text says; None where it says none."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        return None
    chosen = np.zeros(int(found[2]), np.bool_)
    numbers = [] if found[1] == "none" else [int(number) for number in found[1].split()]
    if sorted(set(numbers)) != numbers or (numbers and numbers[-1] >= len(chosen)):
        return None
    chosen[numbers] = True
    return chosen


def answer_of(chosen: NDArray[np.bool_], candidates: NDArray[np.bool_] | None) -> Answer:
    """What a choice [N] covers, each candidate an instance with its exact outline; unparsable where there are not so
    many candidates [N, H, W]. Candidates without a pixel cover nothing."""
    if candidates is None or len(candidates) != len(chosen):
        return Answer(AnswerStatus.UNPARSABLE)
    covered: list[Instance] = [instance_from_rings(rings_from_mask(mask)) for mask in candidates[chosen] if mask.any()]
    return Answer(AnswerStatus.OK, tuple(covered)) if covered else Answer(AnswerStatus.EMPTY)
