"""What released models write around an answer, taken off: a sentence, a full stop, a fence of code, an end mark.

SimpleSeg's training answers stand in one of five sentences, all of which end in a full stop; instruct models put JSON
into a fence; a list of points without the brackets of a list of polygons is one polygon, and a JSON object without
those of a list is a list of one. What has more about it than that, or a second list apart from the first, stays as it
is: a model that hedges is not read.
"""

import re

_MOST_AROUND = 200
"""Most characters before the list, and as many behind it: a sentence."""
_FENCE = "```"
_END_MARKS = ("</s>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<end_of_utterance>")
_SENTENCE = re.compile(r"[^\[\](){};]*")
_POINTS = re.compile(r"\[\s*\[\s*[-+.0-9eE]")
"""How a polygon begins: two levels of brackets, then a number."""
_JSON_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""A bracket of JSON, or a string, whose brackets are none."""


def bare_answer(text: str) -> str:
    """The answer within a text, in the form that strict reading takes; the text itself where there is none."""
    inner = _without_fence(_without_end_marks(text.strip()))
    first, last = inner.find("["), inner.rfind("]")
    if first < 0 or last < first:
        return text
    if not (_is_sentence(inner[:first]) and _is_sentence(inner[last + 1 :])):
        return text
    lists = _lists(inner[first : last + 1])
    if lists is None:
        return text
    # Two levels are one polygon, which stands in a list of its own elsewhere.
    return "; ".join(f"[{each}]" if _POINTS.match(each) else each for each in lists)


def bare_objects(text: str) -> str:
    """The list of JSON objects within a text, its end missing where the text ends before; the text where there is none.

    An object that stands alone becomes a list of one. Brackets within strings count for nothing.
    """
    inner = _without_fence(_without_end_marks(text.strip()))
    begun = re.search(r"[\[{]", inner)
    if begun is None:
        return text
    end = _json_end(inner, begun.start())
    answer, behind = inner[begun.start() : end], "" if end is None else inner[end:]
    if not (_is_sentence(inner[: begun.start()]) and _is_sentence(behind)):
        return text
    if answer[0] == "[":
        return answer
    return f"[{answer}" if end is None else f"[{answer}]"


def _json_end(text: str, first: int) -> int | None:
    """The place behind the list or object of JSON that begins at `first`; None where the text ends within it."""
    depth = 0
    for match in _JSON_BRACKET.finditer(text, first):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    return None


def _without_end_marks(text: str) -> str:
    while text.endswith(_END_MARKS):
        mark = next(mark for mark in _END_MARKS if text.endswith(mark))
        text = text[: -len(mark)].rstrip()
    return text


def _without_fence(text: str) -> str:
    """What stands within a fence of code that is all of the text; else the text."""
    if len(text) < 2 * len(_FENCE) or not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    inner = text[len(_FENCE) : -len(_FENCE)]
    language = re.match(r"[a-zA-Z]*", inner)
    return inner[language.end() if language else 0 :]


def _is_sentence(text: str) -> bool:
    return len(text) <= _MOST_AROUND and _SENTENCE.fullmatch(text) is not None


def _lists(answer: str) -> list[str] | None:
    """The bracketed lists of a text, between which stand semicolons alone; None where anything else does."""
    found: list[str] = []
    depth, begin, between = 0, 0, ""
    for place, sign in enumerate(answer):
        if depth == 0 and sign != "[":
            between += sign
            continue
        if sign == "[":
            if depth == 0:
                if found and between.strip() != ";":
                    return None
                begin, between = place, ""
            depth += 1
        elif sign == "]":
            depth -= 1
            if depth == 0:
                found.append(answer[begin : place + 1])
                between = ""
    return found if depth == 0 and not between else None
