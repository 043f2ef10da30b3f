"""Reasoning before an answer: a block of text between two marks, told apart from the answer once, before a codec reads.

    <think>The cup left of the plate is the white one.</think>[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]]
    <think> ... </think><answer>[[[0.1, 0.1], ...]]]</answer>

Models trained for reasoning segmentation (Seg-Zero, arXiv 2503.06520; VisionReasoner, arXiv 2505.12081) and the
"thinking" variants of released models write so. The block is well-formed where it is the only one, begins the text and
is closed; a chat template may open it itself, so that a response begins within it. Everything behind the block is the
answer, which the codec reads as if it stood alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from envs.polygons import Answer, AnswerStatus
from policies.settings import Asking

ANSWER_MARKS = ("<answer>", "</answer>")
"""What may stand around the answer where a block may stand before it."""


class BlockForm(Enum):
    """How a text holds a block of reasoning."""

    ABSENT = "absent"
    """No mark occurs in it."""
    WHOLE = "whole"
    """One block begins it, and ends."""
    OPEN = "open"
    """One block begins it, and does not end."""
    BROKEN = "broken"
    """Marks in any other order: text before the block, a second one, an end without a beginning."""


class Parts(NamedTuple):
    """A text cut at the marks of its block; `opening`, `thinking`, `closing` and `rest` joined are the text."""

    form: BlockForm
    opening: str
    """White space and the mark that opens the block; "" without a whole block, or where the template opened it."""
    thinking: str
    """What stands between the marks; "" without a whole block."""
    closing: str
    """The mark that closes the block; "" without a whole block."""
    rest: str
    """What stands behind the block; all of the text without a whole block."""


def split_thinking(text: str, marks: tuple[str, str], begun: bool = False) -> Parts:
    """Any text, cut at its block.

    marks: what opens and what closes a block. begun: whether the text begins within the block, as behind a chat
    template that opens it.
    """
    opens, closes = marks
    space = len(text) - len(text.lstrip())
    start = 0 if begun else space + len(opens)
    end = text.find(closes, start)
    if not begun and not text.startswith(opens, space):
        form = BlockForm.BROKEN if opens in text or closes in text else BlockForm.ABSENT
    elif opens in text[start:] or text.count(closes) > 1:
        form = BlockForm.BROKEN
    else:
        form = BlockForm.OPEN if end < 0 else BlockForm.WHOLE
    if form is not BlockForm.WHOLE:
        return Parts(form, "", "", "", text)
    behind = end + len(closes)
    return Parts(form, text[:start], text[start:end], text[end:behind], text[behind:])


def without_answer_marks(text: str) -> str:
    """What stands between ANSWER_MARKS that are around all of a text, white space aside; else the text itself."""
    opens, closes = ANSWER_MARKS
    inner = text.strip()
    if inner.startswith(opens) and inner.endswith(closes):
        return inner[len(opens) : -len(closes)]
    return text


def mark_tokens(asking: Asking, marks: tuple[str, str], vocabulary: Mapping[str, int]) -> list[int]:
    """Tokens that are a mark of reasoning or of an answer, where a block may stand; [] where marks are several tokens.

    They are control tokens by their looks, and must be sampled all the same.
    """
    if asking.thinking == "none":
        return []
    return [vocabulary[mark] for mark in (*marks, *ANSWER_MARKS) if mark in vocabulary]


@dataclass(frozen=True)
class Thinking:
    """Whether the answers of a policy begin with a block of reasoning, and how it is marked."""

    mode: str
    """`none`, `optional` or `required`, as Asking has it."""
    marks: tuple[str, str]
    """What opens and what closes the block."""
    begun: bool = False
    """Whether the chat template opens the block, so that a response begins within it."""

    @classmethod
    def behind(cls, ending: str, asking: Asking, marks: tuple[str, str]) -> "Thinking":
        """The reasoning of answers that follow `ending`, the end of the prompt behind the user's text.

        Raises ValueError where the chat template closes a block there, so that the answer could have none.
        """
        if asking.thinking != "none" and ending.rstrip().endswith(marks[1]):
            raise ValueError(
                f"policy.thinking is {asking.thinking}, but the chat template ends in {marks[1]}, which tells the "
                "model that its reasoning is over; change that by policy.template_arguments, such as "
                "{enable_thinking: true}, or set policy.thinking to none."
            )
        return cls(asking.thinking, marks, ending.rstrip().endswith(marks[0]))

    @property
    def wanted(self) -> bool:
        """Whether a block may stand before an answer."""
        return self.mode != "none"

    @property
    def written(self) -> tuple[str, ...]:
        """The marks that the model itself writes around a block."""
        return self.marks[1:] if self.begun else self.marks

    def read(self, codec: Callable[[str], Answer], text: str, truncated: bool) -> Answer:
        """The answer that a text gives, with its reasoning; a status for any text, never an exception.

        codec: reads the part of a text that is the answer. truncated: the length limit cut the text. Marks that make
        no well-formed block are unparsable, and where one is required so is a text without.
        """
        if not self.wanted:
            return codec(text)
        parts = split_thinking(text, self.marks, self.begun)
        if parts.form is BlockForm.WHOLE:
            return replace(codec(without_answer_marks(parts.rest)), thinking=parts.thinking.strip())
        if parts.form is BlockForm.ABSENT and self.mode == "optional":
            return codec(without_answer_marks(parts.rest))
        return Answer(AnswerStatus.TRUNCATED if truncated else AnswerStatus.UNPARSABLE)


def block_marks(asking: Asking, of_family: tuple[str, str]) -> tuple[str, str]:
    """What opens and what closes a block: as the settings say, else as the family has it."""
    if asking.thinking_marks is None:
        return of_family
    opens, closes = asking.thinking_marks
    return opens, closes


def asking_for_thinking(asking: Asking, marks: tuple[str, str]) -> Asking:
    """The settings with `thinking_question` at the end of each of their questions, where a block may stand."""
    if asking.thinking == "none" or asking.thinking_question is None:
        return asking
    sentence = " " + asking.thinking_question.replace("{open}", marks[0]).replace("{close}", marks[1])
    return replace(
        asking,
        question=asking.question + sentence,
        questions=asking.questions and [question + sentence for question in asking.questions],
        box_question=asking.box_question and asking.box_question + sentence,
        point_question=asking.point_question and asking.point_question + sentence,
    )
