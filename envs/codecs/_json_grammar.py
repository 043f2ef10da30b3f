"""The grammar of json_objects as an automaton over characters, stricter than the reader.

An object has its box first, where the codec writes boxes, then its outline, and nothing else; keys are written plainly,
one space at most between two signs, and numbers as in _point_text_grammar.py.
"""

from envs.codecs._json_scan import BOX_KEY, SIGNS
from envs.codecs._numerals import Bounds, UnitNumerals, WholeNumerals
from envs.codecs._open_ring import OpenRing, closing_numbers
from envs.codecs.base import MANY, State, number_begun, ring_begun, room_for_ring, vertex_ended, without_vertices

_UNSAID = (("box", "}"), ("sole ring", ","), ("rings", ","))
_SIGNS = {before: place for before, place in SIGNS.items() if before not in _UNSAID}
"""SIGNS where nothing stands behind an outline, and an outline behind every box."""
_KEY_PLACES = ("object begun", "member and comma")
_BOX_PLACES = ("box begun", "x0 and comma", "y0 and comma", "x1 and comma")
"""Behind these a number of the box is written."""
_NEXT_SIGN = {
    "nothing": "[",
    "list begun": "]",
    "box key": ":",
    "box wanted": "[",
    "box": ",",
    "outline key": ":",
    "outline wanted": "[",
    "outline begun": "[",
    "ring": "]",
    "ring and comma": "[",
    "ring begun": "[",
    "rings": "}",
    "sole point and comma": "[",
    "point and comma": "[",
    "sole ring": "}",
    "object": "]",
    "object and comma": "{",
}
"""The sign by which an answer ends soonest, of places where neither a key, a number nor a vertex has to say more."""


class JsonObjectsGrammar:
    """An AnswerGrammar. Places are those of SIGNS; `word` is what is written of a key or number begun."""

    joint = ""

    def __init__(self, numerals: UnitNumerals | WholeNumerals, outline_key: str, boxes: bool, start: State) -> None:
        """numerals: how places of the grid are written; start: State of the codec's limits, at "nothing"."""
        self._numerals, self._boxes = numerals, boxes
        self._keys = {"box": f'"{BOX_KEY}"', "outline": f'"{outline_key}"'}
        used = "".join(self._keys.values()) if boxes else self._keys["outline"]
        self.alphabet = "".join(sorted({*' ,:[]{}"', *used, *numerals.characters}))
        self.start = start
        number = numerals.longest
        point = ["[", number, ",", number, "]", ","]
        box = [self._keys["box"], ":", "[", *[number, ","] * 4, ","] if boxes else []
        self.longest = ("{", *box, self._keys["outline"], ":", "[", *point * 3, "]", "}", "]")
        self._longest = sum(map(len, self.longest))

    def words(self, spaced: bool) -> list[str]:
        """Words that the grammar can write."""
        bins = self._numerals.bins
        numbers = [self._numerals.text(value) for value in range(bins + 1)] if spaced else self._numerals.characters
        keys = [*self._keys.values()] if self._boxes else [self._keys["outline"]]
        return [*"[]{},:", *keys, *numbers]

    def advance(self, state: State, text: str) -> State | None:
        """State after `text`; None where it is refused."""
        for character in text:
            following = self._step(state, character)
            if following is None or not following.sure:
                return following
            state = following
        if state.characters_left == MANY:
            return state
        left = state.characters_left - len(text)
        # Near the limit on characters, what is left must hold a completion.
        if left < self._longest and len("".join(self.completion(state))) > left:
            return None
        return state._replace(characters_left=left)

    def _step(self, state: State, character: str) -> State | None:
        if state.place in _KEY_PLACES and (state.word or character == '"'):
            return self._key_character(state, character)
        if character in self._numerals.characters:
            return self._number_character(state, character)
        if state.word:
            done = self._number_done(state)
            if done is None:
                return None
            state = done
        if character == " ":
            return None if state.spaced else state._replace(spaced=True)
        place = _SIGNS.get((state.place, character))
        return None if place is None else self._sign(state._replace(spaced=False), place)

    def _kind(self, state: State) -> str:
        """What the next key of an object is the key of."""
        return "box" if self._boxes and state.place == "object begun" else "outline"

    def _key_character(self, state: State, character: str) -> State | None:
        kind, word = self._kind(state), state.word + character
        if word == self._keys[kind]:
            return state._replace(place=f"{kind} key", word="", spaced=False)
        return state._replace(word=word, spaced=False) if self._keys[kind].startswith(word) else None

    def _sign(self, state: State, place: str) -> State | None:
        """The state after a sign that leads to `place`."""
        if place in ("ring", "sole ring"):
            if state.needed is None:
                return state._replace(sure=False)
            return None if state.needed else state._replace(place=place, ring=OpenRing(), needed=3)
        if place in ("outline begun", "ring begun"):
            return ring_begun(state, place)
        if place.endswith("point and comma") and not state.vertices_left:
            return None
        if place in ("ring and comma", "object and comma") and not room_for_ring(state):
            return None
        return state._replace(place=place, box=() if place == "box" else state.box)

    def _number_character(self, state: State, character: str) -> State | None:
        bounds = state.bounds
        if bounds is None:
            if (state.place, "number") not in _SIGNS:
                return None
            bounds = self._bounds(state)
            if bounds is None:
                return state._replace(sure=False)
        word = state.word + character
        if not self._numerals.fits(word, bounds):
            return None
        needed = state.needed if state.place in _BOX_PLACES else None
        return state._replace(word=word, bounds=bounds, needed=needed, spaced=False)

    def _bounds(self, state: State) -> Bounds | None:
        """Bounds of the next number; None where a condensed state cannot tell. A box's near sides leave room for the
        far ones."""
        if state.place not in _BOX_PLACES:
            return number_begun(state, state.place.endswith("x and comma"), self._numerals)
        if len(state.box) < 2:
            return Bounds(0, self._numerals.bins - 1)
        near = state.box[len(state.box) - 2]
        return None if near is None else Bounds(near + 1, self._numerals.bins)

    def _number_done(self, state: State) -> State | None:
        if state.bounds is None or not self._numerals.complete(state.word, state.bounds):
            return None
        value, place = self._numerals.value(state.word), _SIGNS[state.place, "number"]
        if place in ("y", "sole y"):
            return vertex_ended(state, value, place)
        done = state._replace(place=place, word="", bounds=None)
        return done._replace(box=(*state.box, value)) if state.place in _BOX_PLACES else done._replace(x=value)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here."""
        return state.place in ("answer", "empty")

    def completion(self, state: State) -> list[str]:
        """Texts that end the answer as shortly as can be."""
        words: list[str] = []
        state = state._replace(characters_left=MANY)
        while not self.accepts(state):
            words.append(self._next_word(state))
            following = self.advance(state, words[-1])
            assert following is not None, (state, words)
            state = following
        return words

    def _next_word(self, state: State) -> str:
        """The first text of the completion."""
        place = state.place
        if place in _KEY_PLACES:
            return self._keys[self._kind(state)][len(state.word) :]
        if place in _NEXT_SIGN:
            return _NEXT_SIGN[place]
        if state.ring is None:
            raise ValueError("a condensed state has no completion; ask with the whole one.")
        if (place, "number") in _SIGNS:
            return self._number_rest(state) or ("," if (_SIGNS[place, "number"], ",") in _SIGNS else "]")
        if place.endswith("point"):
            return "," if state.needed else "]"
        return "," if (place, ",") in _SIGNS else "]"

    def _number_rest(self, state: State) -> str:
        if state.place in _BOX_PLACES:
            bounds = state.bounds or self._bounds(state) or Bounds(0, 0)
            return self._numerals.rest(state.word, bounds)
        ring = state.ring or OpenRing()
        return closing_numbers(ring, state.x, state.word, self._numerals)[0]

    def condensed(self, state: State, num_characters: int) -> State | None:
        """State without what the next characters hardly ever depend on."""
        if state.characters_left < MANY:
            if state.characters_left < self._longest + num_characters:
                return None
            state = state._replace(characters_left=MANY)
        if state.place in ("nothing", "list begun"):
            return state
        less = without_vertices(state, num_characters, self._numerals)
        if less is None:
            return None
        # A side of the box is compared with the one two numbers before it, and with none that comes later.
        sides = len(less.box)
        return less._replace(box=tuple(side if sides - k == 2 else None for k, side in enumerate(less.box)))
