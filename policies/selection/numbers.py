"""Questions whose candidates stand numbered in the prompt -> tokens, patches and regions; written numbers -> the masks
that they choose. No weights.

    ... words of the question | prefix | 0 <mask> 1 <mask> ... | what the template writes behind the user's words

Numbers are the vocabulary's own; at the places of prefix and masks stands a token that the model replaces.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.codecs import mask_numbers
from envs.codecs.base import AnswerCodec
from envs.example import Example, Question
from envs.polygons import Answer, AnswerStatus
from policies.checkpoint import Checkpoint
from policies.families.base import PromptRows, Response
from policies.family import Family
from policies.processor import Processor
from policies.selection.encoders import View
from policies.selection.regions import pools_of, regions_of
from policies.settings import Asking


class NumbersProcessor(Processor):
    """A Processor that lists the candidates of a question, and whose answers are their numbers as text."""

    def __init__(self, checkpoint: Checkpoint, family: Family, codec: AnswerCodec, asking: Asking) -> None:
        """Raises ValueError as Processor does, for a codec that writes something else, a tokenizer that cannot write
        the codec's words, and a chat template with no token of its own between question and answer."""
        if not isinstance(codec, mask_numbers.Codec):
            raise ValueError(
                "policy.name is mask_numbers, which writes the numbers of candidate masks; set codec to "
                "{name: mask_numbers}."
            )
        super().__init__(checkpoint, family, codec, asking)
        self._chooser = codec
        self.views: tuple[View, ...] = ()
        """How further encoders are shown images; a policy that has some sets it."""
        self._numbers: dict[int, list[int]] = {}
        if self._words_of(mask_numbers.NONE) is None:
            raise ValueError(
                f"the tokenizer of {checkpoint.folder} cannot write {mask_numbers.NONE!r}, the answer of codec "
                "mask_numbers to what is not there; give a checkpoint whose tokenizer knows the word."
            )

    def _learn_to_ask(self, asking: Asking) -> str:
        ending = super()._learn_to_ask(asking)
        self._ending: list[int] = self.tokenizer(ending, add_special_tokens=False)["input_ids"]
        # Some tokenizers merge the seam between them, and candidates stand there.
        self._known_tokens = lru_cache(maxsize=4096)(self._ids_apart)
        if not self._ending:
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path} writes nothing behind the user's words, where "
                "candidates would stand; give a checkpoint whose template marks where an answer begins."
            )
        return ending

    def _ids_apart(self, words: str, asked: str) -> list[int]:
        before, ending = self._template.apart(words, asked)
        return before + ending

    def _words_of(self, text: str) -> list[int] | None:
        """Ids of a word of the codec; None where they do not say it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        said = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() == text
        return ids if said and set(ids).isdisjoint(self.unsampled_tokens) else None

    def _number(self, k: int) -> list[int]:
        if k not in self._numbers:
            ids = self._words_of(str(k))
            if ids is None:
                raise ValueError(
                    f"a question has candidates up to number {k}, which the tokenizer of {self._checkpoint.folder} "
                    f"cannot write; give at most {k} candidates."
                )
            self._numbers[k] = ids
        return self._numbers[k]

    def _listed(self, num: int) -> tuple[list[int], list[int]]:
        """What lists candidates, and where in it prefix and candidates stand (1 + num places)."""
        ids, places = [self.end_token], [0]
        for k in range(num):
            ids += [*self._number(k), self.end_token]
            places.append(len(ids) - 1)
        return ids, places

    def _question_tokens(self, question: Question, image_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        question.prompt.text_alone  # noqa: B018  raises for other parts
        num = 0 if question.candidates is None else len(question.candidates)
        shared, rest = super()._question_tokens(replace(question, candidates=None), image_tokens)
        if not num:  # which `rows` refuses
            return shared, rest
        cut = len(rest) - len(self._ending)
        whole = np.concatenate([rest[:cut], np.array(self._listed(num)[0], np.int64), rest[cut:]])
        most = self.config.get_text_config().max_position_embeddings
        if len(shared) + len(whole) > most:
            raise ValueError(
                f"the question {question.prompt.told!r} takes {len(shared) + len(whole)} tokens with {num} "
                f"candidates, and the model goes as far as {most}; give fewer candidates, or lower policy.max_pixels."
            )
        return shared, whole

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with the tokens of up to G responses each, all of them scored; on the CPU.

        Raises ValueError for a question without candidates, or with parts other than text.
        """
        regions = regions_of(pools_of(questions))
        behind = self._behind(regions.mask.sum(1).tolist(), regions.mask.shape[1])
        images = [question.image for question in questions]
        views = tuple(view.of(images) for view in self.views)
        return replace(super().rows(questions, responses), regions=replace(regions, behind=behind, views=views))

    def _behind(self, sizes: Sequence[int], most: int) -> Tensor:
        """[B, 1 + most] as Regions has it, 0 where there is no candidate."""
        found = torch.zeros(len(sizes), 1 + most, dtype=torch.int64)
        for b, size in enumerate(sizes):
            ids, places = self._listed(size)
            found[b, : 1 + size] = len(self._ending) + len(ids) - 1 - torch.tensor(places)
        return found

    @property
    def shares_images(self) -> bool:
        """Not: each question has candidates of its own in it."""
        return False

    def listed_tokens(self, places: int) -> int:
        """Tokens of a prompt that list as many candidates as an answer of so many places may all choose."""
        return len(self._listed(max(1, places - 1))[0])

    def most_places(self, num: int) -> int:
        """Places of the longest answer that chooses each of `num` candidates once, its end included."""
        return len(self.answer_tokens(mask_numbers.text_of([True] * num)))

    def read_answer(self, response: Response, example: Example) -> Answer:
        """The candidates whose numbers are written, as instances with their exact outlines; never raises on model
        output."""
        return self.read_text(self.text(response), example, response.finish == "length")

    def read_text(self, text: str, example: Example, truncated: bool = False) -> Answer:
        """A text as the answer to an example; never raises on the text."""
        return Answer(AnswerStatus.TRUNCATED) if truncated else self._chooser.read_chosen(text, example.candidates)
