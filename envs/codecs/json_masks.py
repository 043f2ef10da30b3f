"""Codec: JSON objects of a box, a name and three tokens for a mask, as Qwen3-VL-Seg writes them (arXiv 2605.07141).

    answer = "[]" | "[" object ("," object)* "]"         one object an instance
    object = {"bbox_2d": [x0, y0, x1, y1], "label": text, "mask": "<start><mask><end>"}

The hidden state of the middle token says what a decoder draws in the box (policies/families/box_decoder.py). A text
alone says boxes, and reads as their rectangles; the policy that wrote it puts the masks in their place. Keys in any
order, none twice, label may be left out; white space as in JSON. What the three tokens are called is not published.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np

from envs.codecs import json_objects
from envs.codecs._json_scan import BOX_KEY, LABEL_KEY
from envs.codecs._lenient import bare_objects
from envs.codecs._point_codec import EMPTY_TEXT, SPACE
from envs.codecs.base import AnswerGrammar, TextPlace
from envs.polygons import Answer, AnswerStatus, Ring
from envs.ranges import one_of

MASK_KEY = "mask"
_FAR = 1e9
_BOX = re.compile(rf'"{BOX_KEY}"[{SPACE}]*:[{SPACE}]*(\[[^\[\]{{}}"]*\])')


@dataclass(frozen=True)
class Codec(json_objects.Codec):
    """Settings of the form of JSON objects with masks; of those of json_objects, what concerns outlines has no use."""

    coordinates: Annotated[str, one_of("unit", "thousandths", "resized_px", "family")] = "family"
    mask_start: str = "<|mask_start|>"
    """Token before the one that stands for a mask."""
    mask_token: str = "<|mask|>"
    """Token whose hidden state says what is to be drawn in the box."""
    mask_end: str = "<|mask_end|>"
    """Token behind it."""
    label: str = "object"
    """Name that `encode` writes of every instance; what a model writes is kept as it is."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no text can meet."""
        super().__post_init__()
        if len({self.mask_start, self.mask_token, self.mask_end}) < 3 or any(
            not mark or json.dumps(mark) != f'"{mark}"' for mark in (self.mask_start, self.mask_token, self.mask_end)
        ):
            raise ValueError(
                f"codec.mask_start, mask_token and mask_end are {self.mask_start!r}, {self.mask_token!r} and "
                f"{self.mask_end!r}; give three different tokens without quotes and backslashes."
            )

    @property
    def _said(self) -> str:
        return f"{self.mask_start}{self.mask_token}{self.mask_end}"

    @property
    def words(self) -> list[str]:
        """The three tokens of masks, which a vocabulary must have."""
        return [self.mask_start, self.mask_token, self.mask_end]

    @property
    def signs(self) -> list[str]:
        """Pieces that make up every text of `encode`, digits first."""
        begun, named = f'{{"{BOX_KEY}": [', f'], "{LABEL_KEY}": {json.dumps(self.label)}, "{MASK_KEY}": "'
        return [*"0123456789", "0.", ".", ", ", begun, named, '"}', *self.words, EMPTY_TEXT, *"[]"]

    def grammar(self) -> AnswerGrammar:  # type: ignore[override]  # json_objects has one
        """Raises NotImplementedError: there is none."""
        raise NotImplementedError("codec json_masks has no grammar; set sampling.grammar to false.")

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of the boxes around `instances`, each a list of pixel rings [N, 2], over a height x width image.

        Those without a vertex are left out. Raises ValueError beyond max_rings or max_characters.
        """
        drawn = [np.concatenate(rings) for rings in instances if any(map(len, rings))]
        corners = [np.stack([vertices.min(axis=0), vertices.max(axis=0)]) for vertices in drawn]
        objects = (
            f'{{"{BOX_KEY}": {numbers}, "{LABEL_KEY}": {json.dumps(self.label)}, "{MASK_KEY}": "{self._said}"}}'
            for numbers in self.place_numbers(corners, height, width)
        )
        text = "[" + ", ".join(objects) + "]"
        self.refuse_beyond_limits([], text)
        return text

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The boxes that `text` says of a height x width image, as rectangles; any str reads as some status.

        truncated: the length limit cut the text. An object without box or without mask is unparsable, and so is one
        with other keys, unless reading is lenient.
        """
        if truncated:
            return Answer(AnswerStatus.TRUNCATED)
        if len(text) > self.max_characters:
            return Answer(AnswerStatus.OUT_OF_RANGE)
        answer = self._read_bare(text, height, width)
        if answer.status is not AnswerStatus.UNPARSABLE or self.reading == "strict":
            return answer
        return replace(self._read_bare(bare_objects(text), height, width), bare=False)

    def _read_bare(self, text: str, height: int, width: int) -> Answer:
        objects = _objects(text)
        if objects is None:
            return Answer(AnswerStatus.UNPARSABLE)
        if not objects:
            return Answer(AnswerStatus.EMPTY)
        if not all(map(self._is_whole, objects)):
            return Answer(AnswerStatus.UNPARSABLE)
        # What no float holds is out of range like any other number beyond the image.
        numbers = [min(max(number, -_FAR), _FAR) for each in objects for number in each[BOX_KEY]]
        answer = self.places_answer(numbers, 2, height, width)
        named = zip(answer.instances, objects, strict=False)
        return replace(answer, instances=tuple(replace(one, label=_label(each)) for one, each in named))

    def _is_whole(self, each: dict[str, Any]) -> bool:
        known = {BOX_KEY, LABEL_KEY, MASK_KEY}
        box = each.get(BOX_KEY)
        numbers = isinstance(box, list) and len(box) == 4 and all(type(number) in (int, float) for number in box)
        others = self.reading == "strict" and bool(each.keys() - known)
        return numbers and each.get(MASK_KEY) == self._said and isinstance(each.get(LABEL_KEY, ""), str) and not others

    def box_text(self, text: str) -> str:
        """The beginning of a text up to the end of its first box; all of a text that says none."""
        found = _BOX.search(text)
        return text if found is None else text[: found.end()]

    def text_places(self, text: str) -> list[TextPlace]:
        """Characters of each box of a text that reads as `ok`."""
        return [TextPlace(*found.span(1), k, None) for k, found in enumerate(_BOX.finditer(text))]


def _objects(text: str) -> list[dict[str, Any]] | None:
    """The objects of a list of JSON; None for anything else, keys that stand twice included."""
    try:
        found = json.loads(text.strip(SPACE), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError):  # brackets within brackets without end
        return None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return None
    return cast("list[dict[str, Any]]", found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _label(each: dict[str, Any]) -> str | None:
    """The name of an object; half of a surrogate pair is legal in JSON and in a str, but not in UTF-8."""
    said = each.get(LABEL_KEY)
    return None if said is None else str(said).encode("utf-8", "replace").decode("utf-8")
