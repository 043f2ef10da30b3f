"""The question as tokens: a phrase in the user's text, and that text in the checkpoint's chat template.

A phrase is data: a control token written in it stays text. A prompt is tokenised as a whole, so that text merges over
the seams between template and question as it does elsewhere. Only where the question writes a control token is it cut,
behind that token's first character. No part then holds the token, which is what split_special_tokens does not warrant:
it leaves tokens such as <tool_call>, which are added to the vocabulary but not called special, and a vocabulary of
words, which has control tokens among its words.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any

from envs.example import Question
from envs.reading import refuse_no_text
from policies.settings import Asking

PHRASE = "{phrase}"
"""What stands for the phrase in policy.question; nothing else in it is replaced."""
_ANY_TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"
"""A question by which to find the place of the user's text in a chat template; no template writes it itself."""


def check_question(question: str, setting: str = "policy.question") -> None:
    """Raise ValueError for a question that leaves the phrase out, or that is no text; setting: its dotted path."""
    if PHRASE not in question:
        raise ValueError(
            f"{setting} is {question!r}, which never asks the phrase; write {PHRASE} where it belongs, such "
            f"as 'Outline {PHRASE}.'"
        )
    refuse_no_text(question, setting)


def check_phrase(phrase: str) -> None:
    """Raise ValueError for a phrase that is empty, or no text."""
    if not phrase.strip():
        raise ValueError("the phrase is empty; say what to outline, such as 'the left apple'.")
    refuse_no_text(phrase, "the phrase")


def shows_question(
    tokenizer: Any, template: str | None, image_token: int, image_text: tuple[str, str] | None = None
) -> bool:
    """Whether a chat template (None: the tokenizer's own) shows one image and the user's text, each of them once;
    image_text: as Family has it."""
    from jinja2 import TemplateError  # here, since settings are checked without it

    try:
        text = _in_template(tokenizer, template, None, _ANY_TEXT)
    except (TypeError, ValueError, TemplateError):  # one for text alone joins strings to lists, or there is none
        return False
    if image_text is not None and _lacks_image(text, image_text):
        text = text.replace(*image_text, 1)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text.count(_ANY_TEXT) == 1 and ids.count(image_token) == 1


class Questions:
    """The user's texts, one of which a phrase is asked by."""

    def __init__(self, asking: Asking) -> None:
        """Raises ValueError for a question without its phrase."""
        self._questions = (asking.question,) if asking.questions is None else tuple(asking.questions)
        for question in self._questions:
            check_question(question)
        self._of_places = {"box": asking.box_question, "point": asking.point_question}
        for asked, text in self._of_places.items():
            if text is not None:
                check_question(text, f"policy.{asked}_question")

    def text(self, phrase: str, asked: str) -> str:
        """What asks for the mask, box or point of a phrase: of several always the same one, in any process.

        Raises ValueError where there is no question that asks for it, and for a phrase that is no text.
        """
        refuse_no_text(phrase, "the phrase")
        return self._question(phrase, asked).replace(PHRASE, phrase)

    def _question(self, phrase: str, asked: str) -> str:
        if asked in self._of_places:
            question = self._of_places[asked]
            if question is None:
                raise ValueError(
                    f"the data asks for a {asked}, and policy.{asked}_question is not set; set it to a text with "
                    f"{PHRASE} in it, which no question about masks is, such as '{asked} of {PHRASE}'."
                )
            return question
        if len(self._questions) == 1:
            return self._questions[0]
        digest = hashlib.sha256(phrase.encode()).digest()
        return self._questions[int.from_bytes(digest[:8], "big") % len(self._questions)]


class PlainWords:
    """Text as tokens none of which controls, whatever is written in it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        controls = [t.content for t in tokenizer.added_tokens_decoder.values() if is_control(t.content, t.special)]
        longest_first = "|".join(re.escape(content) for content in sorted(controls, key=len, reverse=True))
        self._control = re.compile(f"(?=({longest_first}))") if controls else re.compile(r"(?!)")

    def ids(self, text: str, begin: int = 0, end: int | None = None) -> list[int]:
        """Ids of a text, whose part from `begin` to `end` is the user's: cut where it would else hold a control
        token."""
        last = len(text) if end is None else end
        cuts = {m.start() + 1 for m in self._control.finditer(text) if m.start() < last and m.end(1) > begin}
        edges = [0, *sorted(cuts), len(text)]
        parts = [self._tokenizer(text[start:stop], add_special_tokens=False) for start, stop in pairwise(edges)]
        return list(chain.from_iterable(part["input_ids"] for part in parts))


class QuestionTemplate:
    """The user's text in the chat template of one tokenizer: what a phrase is asked by, about one image."""

    def __init__(
        self,
        tokenizer: Any,
        asking: Asking,
        image_token: int,
        template: str | None = None,
        begins: bool = False,
        image_text: tuple[str, str] | None = None,
    ) -> None:
        """asking: the user's texts, the system message, and values of the template's variables. image_token: what an
        image becomes. template: the chat template; None for the tokenizer's own. begins: whether a prompt begins with
        the tokenizer's own token for that, which is put before it where the template does not. image_text: as Family
        has it.

        Raises ValueError for a question without its phrase, for arguments that the template does not name, and for a
        template that does not show image and question once.
        """
        self._tokenizer, self._image_token = tokenizer, image_token
        self._questions, self._words = Questions(asking), PlainWords(tokenizer)
        self._system, self._chat_template, self._arguments = asking.system, template, asking.template_arguments or {}
        _refuse_unnamed(self._arguments, template or tokenizer.chat_template)
        self._begin = str(tokenizer.bos_token or "") if begins else ""
        self._image_text: tuple[str, str] | None = None
        if image_text is not None and _lacks_image(self._in_template(_ANY_TEXT), image_text):
            self._image_text = image_text
        text = self._in_template(_ANY_TEXT)
        parts = text.split(_ANY_TEXT)
        if len(parts) != 2:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path} writes the user's text {len(parts) - 1} times, and a "
                "phrase must be asked once; give a checkpoint whose template shows an image and a text."
            )
        self._before, self._behind = map(len, parts)
        self.ending: str = parts[1]
        """What the template writes behind the user's text: what an answer follows."""
        self._check_image(self._ids(text), "a question")

    def tokens(self, phrase: str, asked: str = "mask") -> list[int]:
        """Ids of the whole prompt, one image token in it; ValueError for a phrase that is no text.

        asked: "mask", "box" or "point"; ValueError where there is no question that asks for it.
        """
        ids = self._ids(self._in_template(self._questions.text(phrase, asked)))
        self._check_image(ids, f"the question about {phrase!r}")
        return ids

    def gapped(self, phrase: str, asked: str, gap: str) -> list[list[int]]:
        """`tokens`, cut wherever the character `gap` stands in the phrase for something that is no text: one list more
        than there are gaps. Raises as `tokens` does."""
        text = self._in_template(self._questions.text(phrase, asked))
        end = len(text) - self._behind
        edges = [-1, *(k for k in range(self._before, end) if text[k] == gap), len(text)]
        pieces = [
            self._words.ids(text[first + 1 : last], max(0, self._before - first - 1), end - first - 1)
            for first, last in pairwise(edges)
        ]
        self._check_image(list(chain.from_iterable(pieces)), f"the question about {phrase!r}")
        return pieces

    def apart(self, phrase: str, asked: str) -> tuple[list[int], list[int]]:
        """`tokens`, what stands up to the end of the user's text and what is behind tokenised each alone, so that
        something may stand between them. Raises as `tokens` does."""
        text = self._in_template(self._questions.text(phrase, asked))
        end = len(text) - self._behind
        pieces = self._words.ids(text[:end], self._before, end), self._words.ids(text[end:], 0, 0)
        self._check_image([*pieces[0], *pieces[1]], f"the question about {phrase!r}")
        return pieces

    def _ids(self, text: str) -> list[int]:
        """Ids of a prompt, cut where the user's text would else hold a control token."""
        return self._words.ids(text, self._before, len(text) - self._behind)

    def _check_image(self, ids: list[int], what: str) -> None:
        found = ids.count(self._image_token)
        if found != 1:
            raise ValueError(
                f"{what} has {found} image tokens in the chat template of {self._tokenizer.name_or_path}, and one "
                "image goes with it; give a checkpoint whose template shows an image and a text."
            )

    def _in_template(self, question: str) -> str:
        text = _in_template(self._tokenizer, self._chat_template, self._system, question, self._arguments)
        if self._image_text is not None:
            text = text.replace(*self._image_text, 1)  # the first is the image, words of the user stand behind
        return text if text.startswith(self._begin) else self._begin + text


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is no word of a language: called special, or in angle brackets as <tool_call> is."""
    return len(content) > 1 and (special or (content[0] == "<" and content[-1] == ">"))


def _refuse_unnamed(arguments: Mapping[str, Any], template: Any) -> None:
    """Raise ValueError for arguments that would change nothing, and for those that the template is given anyway."""
    for name in arguments:
        if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", str(template)):
            reason = "is given to it anyway" if name in _GIVEN else "it does not name"
            raise ValueError(
                f"policy.template_arguments sets {name}, which {reason}, so that it would change nothing of the chat "
                "template; see chat_template.jinja (or tokenizer_config.json) of the checkpoint for its variables."
            )


_GIVEN = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token")
"""Variables of a chat template that are no settings."""


def _lacks_image(text: str, image_text: tuple[str, str]) -> bool:
    """Whether a rendered prompt has not yet all that stands for an image."""
    return image_text[1].strip() not in text


def _in_template(
    tokenizer: Any, template: str | None, system: str | None, question: str, arguments: Mapping[str, Any] | None = None
) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        conversation.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    rendered = tokenizer.apply_chat_template(
        conversation, chat_template=template, tokenize=False, add_generation_prompt=True, **(arguments or {})
    )
    return str(rendered)


def refuse_candidates(question: Question) -> None:
    """Raise ValueError for a question with masks to choose from, of a family that draws outlines."""
    if question.candidates is not None:
        raise ValueError(
            f"the question {question.prompt.told!r} comes with {len(question.candidates)} masks to choose from, "
            "and this model family draws outlines; leave the candidates out."
        )
