"""Codec: JSON objects, the form in which released Qwen2.5-VL and Qwen3-VL write boxes and points, with outlines.

    answer  = "[]" | "[" object ("," object)* "]"         one object an instance
    object  = {"bbox_2d": [x0, y0, x1, y1], "polygon_2d": outline, "label": text}
    outline = ring | "[" ring ("," ring)* "]"             several: parts and holes, which direction tells apart
    ring    = [[x, y], [x, y], [x, y], ...]

So these models were taught boxes (```json [{"bbox_2d": [10, 20, 60, 80], "label": "cup"}] ```) but no outlines; a list
of points under a key of the same kind is the least that they have to learn beside. The outline must be there, box and
label may be left out, and a label is kept as the instance's. Keys in any order, none twice; white space as in JSON.

With `reading: lenient` also what released models write around it (envs/codecs/_lenient.py), one object without its
list, and keys of other names, which are passed over.

Points are written as point_text writes them: with Qwen's tokenizer, which has one token a digit, a further vertex takes
9.9 tokens in thousandths and 13.6 in fractions, in both codecs. All told, an outline of 40 vertices takes 10.12 tokens
a vertex here and 9.97 there, in fractions 13.60 and 13.45: the object costs 6 tokens an instance, with its box 31 (in
fractions 36).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from envs.codecs._json_grammar import JsonObjectsGrammar
from envs.codecs._json_scan import BOX_KEY, LABEL_KEY, POINT_KEY, JsonScan, read_place_objects
from envs.codecs._lenient import bare_objects
from envs.codecs._places import CORNERS
from envs.codecs._point_codec import EMPTY_TEXT, NUMBER, SPACE, Draft, PointCodec
from envs.codecs.base import State, TextPlace
from envs.geometry.grid_rings import GridRing
from envs.polygons import Answer, AnswerStatus, Ring

_PAIR = re.compile(rf"{NUMBER.pattern}[{SPACE}]*,[{SPACE}]*{NUMBER.pattern}")
_NO_KEY = re.compile(r'["\\\x00-\x1f\x7f-\x9f\ud800-\udfff]')


@dataclass(frozen=True)
class Codec(PointCodec):
    """Settings of the form of JSON objects: those of PointCodec (envs/codecs/_point_codec.py), and two more."""

    boxes: bool = False
    """Whether `encode` writes the box around an instance before its outline; it is read either way."""
    outline_key: str = "polygon_2d"
    """Key of the rings."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        super().__post_init__()
        if not self.outline_key or _NO_KEY.search(self.outline_key) or self.outline_key in (BOX_KEY, LABEL_KEY):
            raise ValueError(
                f"codec.outline_key is {self.outline_key!r}; give the rings a key without quotes, backslashes and "
                f"control characters that is neither {BOX_KEY} nor {LABEL_KEY}, such as polygon_2d."
            )

    @property
    def signs(self) -> list[str]:
        """Pieces that make up every text of `encode` in fractions or whole numbers, digits first."""
        box, outline = f'"{BOX_KEY}": [', f'"{self.outline_key}": [['
        objects = ["[{", "}]", "}, {", box, f"], {outline}", outline]
        return [*"0123456789", "0.", ".", ", ", *objects, "], [", "]], [[", "]]", EMPTY_TEXT, *"[]{},-"]

    def grammar(self) -> JsonObjectsGrammar:
        """Automaton of the texts that read as valid within these limits; of the ways to write them, see its file.

        Raises ValueError for pixels of the resized image, whose numbers end elsewhere in every photo.
        """
        start = State("nothing", self.max_rings, self.max_vertices, characters_left=self.max_characters)
        return JsonObjectsGrammar(self.numerals, self.outline_key, self.boxes, start)

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of `instances`, each a list of pixel rings [N, 2] in canonical order, over a height x width image.

        Spaces are those of Python's json.dumps, and numbers but fractions below 0.0001. Vertices go to the nearest
        point of the grid, and what fills a pixel reads back as `ok`, and fills one (see `written`). Raises ValueError
        where a limit is exceeded: simplify first (envs/geometry/contours.py).
        """
        objects = map(self._object, self.written(instances, height, width))
        text = "[" + ", ".join(objects) + "]"
        self.refuse_beyond_limits(instances, text)
        return text

    def _object(self, rings: list[GridRing]) -> str:
        vertices, texts = np.concatenate(rings), [self.ring_text(ring) for ring in rings]
        sides = [*vertices.min(axis=0).tolist(), *vertices.max(axis=0).tolist()]
        box = f'"{BOX_KEY}": [{", ".join(map(self.numbers.text, sides))}], ' if self.boxes else ""
        outline = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        return f'{{{box}"{self.outline_key}": {outline}}}'

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """What `text` says about a height x width image; any str reads as some status, none raises.

        truncated: the length limit cut the text, so it is not an answer even where it happens to parse. A text that is
        the beginning of an answer reads as truncated without it too, and an object without an outline as unparsable.
        Rings and boxes are held to what `answer` says; a box need not be that of its outline.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if len(text) > self.max_characters:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        read = JsonScan(self.outline_key, with_others=False).read(text.strip(SPACE))
        if isinstance(read, Draft) or self.reading == "strict":
            return self._answer_or_status(read, height, width)
        inner = bare_objects(text)
        read = JsonScan(self.outline_key, with_others=True).read(inner.strip(SPACE))
        answer = self._answer_or_status(read, height, width)
        as_it_was = inner.strip(SPACE) == text.strip(SPACE)
        return replace(answer, bare=as_it_was and isinstance(read, AnswerStatus))

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each box and each vertex of a text that reads as `ok`."""
        places: list[TextPlace] = []
        instance = vertices = 0
        for part in _parts(self.outline_key).finditer(text):
            if part["end"]:
                instance += 1
            elif part["box"]:
                places.append(TextPlace(*part.span("box"), instance, None))
            elif part["rings"]:
                for pair in _PAIR.finditer(text, *part.span("rings")):
                    places.append(TextPlace(*pair.span(), instance, vertices))
                    vertices += 1
        return places

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places px as released models write them: {"bbox_2d": [x0, y0, x1, y1]} or {"point_2d": [x, y]} each.

        Raises ValueError for more than max_rings.
        """
        key = BOX_KEY if places and len(places[0]) > 1 else POINT_KEY
        objects = (f'{{"{key}": {numbers}}}' for numbers in self.place_numbers(places, height, width))
        return "[" + ", ".join(objects) + "]"

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes or points that `text` says; any str reads as some status, none raises.

        An object may have a label beside its place; with `reading: lenient` also keys of other names.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if len(text) > self.max_characters:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        answer = self._read_bare_places(text, asked, height, width, with_others=False)
        if self.reading == "strict" or answer.status is not AnswerStatus.UNPARSABLE:
            return answer
        inner = bare_objects(text)
        return replace(self._read_bare_places(inner, asked, height, width, with_others=True), bare=False)

    def _read_bare_places(self, text: str, asked: str, height: int, width: int, with_others: bool) -> Answer:
        found = read_place_objects(text.strip(SPACE), BOX_KEY if asked == "box" else POINT_KEY, with_others)
        if found is None:
            return Answer(AnswerStatus.UNPARSABLE)
        numbers = [number for each in found for number in each.numbers]
        answer = self.places_answer(numbers, CORNERS[asked], height, width)
        named = zip(answer.instances, found, strict=False)
        return replace(answer, instances=tuple(replace(instance, label=each.label) for instance, each in named))

    def _answer_or_status(self, read: Draft | AnswerStatus, height: int, width: int) -> Answer:
        if isinstance(read, AnswerStatus):
            return Answer(read)
        return self.answer(read, height, width) if len(read.instance_ends) > 1 else Answer(AnswerStatus.EMPTY)


@lru_cache(maxsize=16)
def _parts(outline_key: str) -> re.Pattern[str]:
    """What finds boxes, rings and ends of objects in a text, and passes over every other string."""
    numbers, free = r"\[[^\[\]{}\"]*\]", f"[{SPACE}]*"
    return re.compile(
        rf'"{BOX_KEY}"{free}:{free}(?P<box>{numbers})'
        rf'|"{re.escape(outline_key)}"{free}:{free}(?P<rings>[^{{}}"]*)'
        r'|"(?:[^"\\]|\\.)*"|(?P<end>\})'
    )
