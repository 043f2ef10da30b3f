"""The signs of json_objects, and the reader that follows them: over the tokens of JSON (RFC 8259), once, left to right.

Nothing is built of a text but its numbers and labels, so neither deep brackets nor long numbers cost more than their
characters, and where the text ends early it is known whether an answer could have gone on.
"""

import json
import re
from dataclasses import dataclass

from envs.codecs._point_codec import NUMBER, NUMBER_BEGUN, SPACE, Draft
from envs.polygons import AnswerStatus

BOX_KEY, POINT_KEY, LABEL_KEY = "bbox_2d", "point_2d", "label"

_POINTS = {
    ("point begun", "number"): "x",
    ("x", ","): "x and comma",
    ("x and comma", "number"): "y",
    ("y", "]"): "point",
    ("point", ","): "point and comma",
    ("point and comma", "["): "point begun",
    ("point", "]"): "ring",
}
_MEMBERS = ("box", "sole ring", "rings", "label", "other value")
"""Places behind a whole member of an object."""
SIGNS = {
    **_POINTS,
    **{(f"sole {place}", sign): f"sole {following}" for (place, sign), following in _POINTS.items()},
    **{(member, ","): "member and comma" for member in _MEMBERS},
    **{(member, "}"): "object" for member in _MEMBERS},
    **{("object begun", kind): f"{kind} key" for kind in ("box", "outline", "label", "other")},
    **{("member and comma", kind): f"{kind} key" for kind in ("box", "outline", "label", "other")},
    ("nothing", "["): "list begun",
    ("list begun", "]"): "empty",
    ("list begun", "{"): "object begun",
    ("object", ","): "object and comma",
    ("object and comma", "{"): "object begun",
    ("object", "]"): "answer",
    ("box key", ":"): "box wanted",
    ("box wanted", "["): "box begun",
    ("box begun", "number"): "x0",
    ("x0", ","): "x0 and comma",
    ("x0 and comma", "number"): "y0",
    ("y0", ","): "y0 and comma",
    ("y0 and comma", "number"): "x1",
    ("x1", ","): "x1 and comma",
    ("x1 and comma", "number"): "y1",
    ("y1", "]"): "box",
    ("outline key", ":"): "outline wanted",
    ("outline wanted", "["): "outline begun",
    ("outline begun", "["): "first begun",
    ("outline begun", "]"): "sole ring",
    ("first begun", "number"): "sole x",
    ("first begun", "["): "point begun",
    ("first begun", "]"): "ring",
    ("ring", ","): "ring and comma",
    ("ring and comma", "["): "ring begun",
    ("ring begun", "["): "point begun",
    ("ring begun", "]"): "ring",
    ("ring", "]"): "rings",
    ("label key", ":"): "label wanted",
    ("label wanted", "string"): "label",
    ("other key", ":"): "value wanted",
}
"""What was read last, and the sign that may follow (a key by what it is the key of): what has then been read. "sole"
are the places of an outline that is one ring; of one that is a list of rings they are the same without it."""

_VALUES = {
    **{(place, sign): "value" for place in ("value wanted", "[") for sign in ("number", "string", "word")},
    **{(place, bracket): bracket for place in ("value wanted", "[") for bracket in "[{"},
    ("[", "]"): "value",
    ("{", "}"): "value",
    ("{", "string"): "key",
    ("key wanted", "string"): "key",
    ("key", ":"): "value wanted",
    ("value in [", ","): "value wanted",
    ("value in [", "]"): "value",
    ("value in {", ","): "key wanted",
    ("value in {", "}"): "value",
}
"""SIGNS within the value of another key: any JSON."""

_WORDS = ("true", "false", "null")
_CHARACTERS = r'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*'
_TOKEN = re.compile(rf'[{SPACE}]*([\[\]{{}},:]|"{_CHARACTERS}"|[-+.0-9eE]+|{"|".join(_WORDS)})')
_STRING_BEGUN = re.compile(rf'("{_CHARACTERS})(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?')


class JsonScan:
    """One reading of one text."""

    def __init__(self, outline_key: str, with_others: bool) -> None:
        """outline_key: key of the rings. with_others: whether keys beside the known ones are passed over."""
        self._kinds = {BOX_KEY: "box", outline_key: "outline", LABEL_KEY: "label"}
        self._with_others = with_others
        self._place = "nothing"
        self._told: set[str] = set()  # kinds of keys of the object begun
        self._open: list[str] = []  # brackets open in the value of another key
        self._box: list[float] = []
        self._draft = Draft()

    def read(self, text: str) -> Draft | AnswerStatus:
        """A draft of a text without white space around it; or why it is none.

        Truncated where an answer has begun, else unparsable. No instance is in the draft of the empty answer.
        """
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                return self._cut(text[position:].lstrip(SPACE))
            position, token = match.end(), match[1]
            if not self._take(token):
                return self._cut(token) if position == len(text) else AnswerStatus.UNPARSABLE
        if self._place in ("answer", "empty"):
            return self._draft
        return AnswerStatus.TRUNCATED if text else AnswerStatus.UNPARSABLE

    def _take(self, token: str) -> bool:
        """Whether a token may follow; if so, it has been read."""
        if token[0] == '"':
            sign = self._key(token) if self._key_may_follow() else "string"
        elif token in _WORDS:
            sign = "word"
        elif token in "[]{},:":
            sign = token
        elif NUMBER.fullmatch(token):
            sign = "number"
        else:
            return False
        following = self._following(sign)
        if following is None:
            return False
        if self._open or self._place == "value wanted":
            self._go_on_in_value(sign, following)
            return True
        self._place = following
        return self._note(token)

    def _following(self, sign: str) -> str | None:
        """The place behind a sign; None where it may not follow."""
        if not self._open and self._place != "value wanted":
            return SIGNS.get((self._place, sign))
        place = f"value in {self._open[-1]}" if self._place == "value" else self._place
        return _VALUES.get((place, sign))

    def _go_on_in_value(self, sign: str, following: str) -> None:
        if sign in ("[", "{"):
            self._open.append(sign)
        elif sign in ("]", "}"):
            self._open.pop()
        self._place = following if self._open else "other value"

    def _key_may_follow(self) -> bool:
        return not self._open and self._place in ("object begun", "member and comma")

    def _key(self, token: str) -> str:
        """Sign of a key; one that no place takes where it stands a second time, or is not to be passed over."""
        kind = self._kinds.get(json.loads(token), "other")
        if kind in self._told or (kind == "other" and not self._with_others):
            return "string"
        if kind != "other":
            self._told.add(kind)
        return kind

    def _note(self, token: str) -> bool:
        """Keep what has just been read; False for an object without an outline."""
        draft, instance = self._draft, len(self._draft.instance_ends) - 1
        match self._place:
            case "x" | "y" | "sole x" | "sole y":
                draft.numbers.append(float(token))
            case "x0" | "y0" | "x1" | "y1":
                self._box.append(float(token))
            case "ring" | "sole ring":
                draft.ring_ends.append(len(draft.numbers) // 2)
            case "box":
                draft.boxes[instance], self._box = self._box, []
            case "label":
                # Half of a surrogate pair is legal in JSON and in a str, but not in UTF-8.
                draft.labels[instance] = str(json.loads(token)).encode("utf-8", "replace").decode("utf-8")
            case "object":
                draft.instance_ends.append(len(draft.ring_ends) - 1)
                whole, self._told = "outline" in self._told, set()
                return whole
        return True

    def _cut(self, rest: str) -> AnswerStatus:
        """What a text is that ends with `rest`, which is no whole token that may follow."""
        string = _STRING_BEGUN.fullmatch(rest)
        if string and self._key_may_follow():
            begun = json.loads(string[1] + '"')
            known = (key for key, kind in self._kinds.items() if kind not in self._told)
            goes_on = self._with_others or any(key.startswith(begun) for key in known)
        else:
            word = "word" if any(word.startswith(rest) for word in _WORDS) else "none"
            sign = "string" if string else "number" if NUMBER_BEGUN.fullmatch(rest) else word
            goes_on = self._following(sign) is not None
        return AnswerStatus.TRUNCATED if goes_on else AnswerStatus.UNPARSABLE


@dataclass(frozen=True)
class PlaceObject:
    """A box or a point that an object of JSON says."""

    numbers: list[float]
    """x, y of a point, x0, y0, x1, y1 of a box."""
    label: str | None


def read_place_objects(text: str, key: str, with_others: bool) -> list[PlaceObject] | None:
    """The places of a list of objects, each under `key` (BOX_KEY or POINT_KEY); None where the text is no such list.

    with_others: whether keys beside the place and its label are passed over.
    """
    try:
        held = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(held, list):
        return None
    found = [_place(each, key, with_others) for each in held]
    return None if None in found else [each for each in found if each is not None]


def _place(held: object, key: str, with_others: bool) -> PlaceObject | None:
    if not isinstance(held, dict) or not (with_others or held.keys() <= {key, LABEL_KEY}):
        return None
    numbers, label = held.get(key), held.get(LABEL_KEY)
    wanted = 4 if key == BOX_KEY else 2
    if not isinstance(numbers, list) or len(numbers) != wanted or not all(isinstance(each, float) for each in numbers):
        return None
    if label is not None and not isinstance(label, str):
        return None
    # Half of a surrogate pair is legal in JSON and in a str, but not in UTF-8.
    return PlaceObject(numbers, label and label.encode("utf-8", "replace").decode("utf-8"))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, no key of which may come twice."""
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("a key comes twice")
    return held


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
