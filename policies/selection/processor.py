"""Questions with candidates -> tokens, patches and regions; choices -> the masks that they cover. No weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.codecs import mask_group
from envs.codecs.base import AnswerCodec
from envs.example import Example, MaskPart, Question
from envs.polygons import Answer, AnswerStatus
from policies.checkpoint import Checkpoint
from policies.families.base import PromptRows, Response, TaughtAnswer
from policies.family import Family
from policies.processor import Processor
from policies.selection.regions import regions_of
from policies.settings import Asking


class SelectionProcessor(Processor):
    """A Processor whose answers are choices: 1 for a candidate that belongs to the answer, 0 for one that does not."""

    def __init__(self, checkpoint: Checkpoint, family: Family, codec: AnswerCodec, asking: Asking) -> None:
        """Raises ValueError as Processor does, and for a codec that writes something else."""
        if not isinstance(codec, mask_group.Codec):
            raise ValueError(
                "policy.name is mask_selection, which chooses among candidate masks and writes nothing; set codec to "
                "{name: mask_group}."
            )
        super().__init__(checkpoint, family, codec, asking)
        self._chooser = codec
        # Choices are no tokens of the vocabulary.
        self.unsampled_tokens, self.end_tokens = [], []

    def prompt_tokens(self, question: Question) -> NDArray[np.int64]:
        """[P] token ids of a question, a placeholder for each token of its image included; its candidates come behind.

        Raises ValueError for parts other than text.
        """
        return super().prompt_tokens(self._asked(question))

    def _asked(self, question: Question) -> Question:
        if any(isinstance(part, MaskPart) for part in question.prompt.parts):
            raise ValueError(
                f"the prompt {question.prompt.told!r} refers to a mask, which mask_selection does not read yet; ask in "
                "words."
            )
        question.prompt.text_alone  # noqa: B018  raises for other parts
        return replace(question, candidates=None)

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with up to G choices [N] each, all of them scored; on the CPU.

        Raises ValueError for a question without candidates.
        """
        for question in questions:
            if question.candidates is None or not len(question.candidates):
                raise ValueError(
                    f"the question {question.prompt.told!r} has no candidates to choose from; set env.candidates of "
                    "composed scenes, or give shards that hold some."
                )
        plain = super().rows([self._asked(question) for question in questions], responses)
        return replace(
            plain, regions=regions_of([each.candidates for each in questions if each.candidates is not None])
        )

    def unanswered(self, questions: Sequence[Question]) -> PromptRows:
        """Rows to answer: one choice each, that takes nothing."""
        sizes = [0 if question.candidates is None else len(question.candidates) for question in questions]
        return self.rows(questions, [[np.zeros(size, np.int64)] for size in sizes])

    @property
    def shares_images(self) -> bool:
        """Not: each question has candidates of its own behind it."""
        return False

    def supervised_rows(self, taught: Sequence[Sequence[TaughtAnswer]]) -> PromptRows:
        """A row for each question, with the choice that is taught."""
        alone = [each for row in taught for each in row]
        return self.rows([each.question for each in alone], [[each.tokens] for each in alone])

    def answer_tokens(self, text: str) -> NDArray[np.int64]:
        """[N] choices that a text of the codec says; ValueError for a text that says none."""
        chosen = mask_group.choice_of(text)
        if chosen is None:
            raise ValueError(f"{text[:60]!r} is no choice among candidates, such as '0 3 of 7'.")
        return chosen.astype(np.int64)

    def text(self, response: Response) -> str:
        """The choice in the codec's words."""
        return mask_group.text_of((response.tokens == 1).tolist())

    def token_texts(self, response: Response) -> list[str]:
        """[N] in or out."""
        return ["in" if token == 1 else "out" for token in response.tokens.tolist()]

    def read(self, response: Response, height: int, width: int) -> Answer:
        """Unparsable: without the question a choice covers nothing that is known; see `read_answer`."""
        return Answer(AnswerStatus.UNPARSABLE)

    def read_answer(self, response: Response, example: Example) -> Answer:
        """The candidates that are chosen, as instances with their exact outlines."""
        return mask_group.answer_of(response.tokens == 1, example.candidates)

    def read_text(self, text: str, example: Example, truncated: bool = False) -> Answer:
        """A text as the answer to an example; never raises on the text."""
        return Answer(AnswerStatus.TRUNCATED) if truncated else self._chooser.read_chosen(text, example.candidates)
