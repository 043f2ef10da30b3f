"""Questions with candidates -> tokens, patches and regions; choices -> the masks that they cover. No weights.

A mask that a question refers to takes two places of its prompt, where it stands among the words: a prefix's and its
own. Order among words tells which of several is meant.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from envs.codecs import mask_group
from envs.codecs.base import AnswerCodec
from envs.example import Example, MaskPart, Prompt, Question, TextPart
from envs.polygons import Answer, AnswerStatus
from policies.checkpoint import Checkpoint
from policies.families.base import PromptRows, Response, TaughtAnswer
from policies.family import Family
from policies.processor import Processor
from policies.selection.encoders import View
from policies.selection.regions import References, pools_of, regions_of
from policies.settings import Asking

_GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Where a mask stands among words, whose own such signs are left out."""
_PLACES = [-1, -1]
"""Of a reference among the ids of a prompt: its prefix, and itself."""


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
        self._known_tokens = lru_cache(maxsize=4096)(self._gapped_ids)
        self._chooser = codec
        self.views: tuple[View, ...] = ()
        """How further encoders are shown images; a policy that has some sets it."""
        # Choices are no tokens of the vocabulary.
        self.unsampled_tokens, self.end_tokens = [], []

    def prompt_tokens(self, question: Question) -> NDArray[np.int64]:
        """[P] token ids of a question, a placeholder for each token of its image and the end token for each place of
        a reference; its candidates come behind.

        Raises ValueError for parts other than text and masks, and for masks of another size than the image.
        """
        ids = self._prompt(question)
        return np.where(ids < 0, self.end_token, ids)

    def prompt_text(self, question: Question) -> str:
        """The prompt as text, <mask> for each that it refers to; for people."""
        ids = np.concatenate(self._question_tokens(question, 1))
        pieces = np.split(ids, np.flatnonzero(ids < 0)[::2])
        return " <mask> ".join(str(self.tokenizer.decode(piece[piece >= 0])).strip() for piece in pieces)

    def _question_tokens(self, question: Question, image_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As Processor has them, _PLACES in place of each reference."""
        return super()._question_tokens(self._asked(question), image_tokens)

    def _asked(self, question: Question) -> Question:
        """The question without its candidates, once it is found to be one of words and masks."""
        prompt, size = question.prompt, question.image.shape[:2]
        said = tuple(part for part in prompt.parts if not isinstance(part, MaskPart))
        Prompt(said, prompt.asked).text_alone  # noqa: B018  raises for other parts
        shown = [("refers to a mask", part.mask.shape) for part in prompt.parts if isinstance(part, MaskPart)]
        if question.candidates is not None:
            shown.append(("comes with masks to choose from", question.candidates.shape[1:]))
        for what, other in shown:
            if other != size:
                raise ValueError(
                    f"the prompt {prompt.told!r} {what} of {' x '.join(map(str, other))} pixels, and its image has "
                    f"{size[0]} x {size[1]}; give masks in the pixels of the image."
                )
        return replace(question, candidates=None)

    def _words(self, question: Question) -> str:
        """Texts, and a gap for each reference, which takes the space before it."""
        told = [part.text.replace(_GAP, "") if isinstance(part, TextPart) else _GAP for part in question.prompt.parts]
        return " ".join(told).replace(f" {_GAP}", _GAP)

    def _gapped_ids(self, words: str, asked: str) -> list[int]:
        if _GAP not in words:
            return self._template.tokens(words, asked)
        first, *others = self._template.gapped(words, asked, _GAP)
        return [*first, *chain.from_iterable([*_PLACES, *each] for each in others)]

    def _references(self, questions: Sequence[Question]) -> References | None:
        masks = [[part.mask for part in each.prompt.parts if isinstance(part, MaskPart)] for each in questions]
        if not any(masks):
            return None
        none = np.zeros((0, 1, 1), np.bool_)
        regions = regions_of([np.stack(each) if each else none for each in masks])
        ends = torch.zeros(regions.mask.shape, dtype=torch.int64)
        for b, question in enumerate(questions):
            ids = self._prompt(question)
            places = np.flatnonzero(ids < 0)[::2]
            ends[b, : len(places)] = torch.from_numpy(len(ids) - places)
        return References(regions, ends)

    def rows(self, questions: Sequence[Question], responses: Sequence[Sequence[NDArray[np.int64]]]) -> PromptRows:
        """Rows of B questions with up to G choices [N] each, all of them scored; on the CPU.

        Raises ValueError for a question without candidates.
        """
        pools, images = pools_of(questions), [question.image for question in questions]
        plain = super().rows(questions, responses)
        tokens = plain.prompt_tokens
        return replace(
            plain,
            prompt_tokens=torch.where(tokens < 0, self.end_token, tokens),
            regions=replace(regions_of(pools), views=tuple(view.of(images) for view in self.views)),
            references=self._references(questions),
        )

    def listed_tokens(self, places: int) -> int:
        """Tokens behind a prompt of as many candidates as an answer has places, in the order `free`."""
        return 1 + places

    def most_places(self, num: int) -> int:
        """Places of an answer about `num` candidates: one each."""
        return num

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
