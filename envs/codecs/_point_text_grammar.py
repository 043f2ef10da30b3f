"""The grammar of point text: its signs, which the reader follows too, and an automaton over characters.

The automaton is stricter than the reader: one space at most between two signs, and numbers as `encode` writes them:
fractions as 0.5 or 0.50 or 1.0, with no exponent and no more digits than the codec's grid has, or whole thousandths.
"""

from envs.codecs._numerals import UnitNumerals, WholeNumerals
from envs.codecs._open_ring import OpenRing, closing_numbers
from envs.codecs.base import MANY, State, number_begun, ring_begun, room_for_ring, vertex_ended, without_vertices

SIGNS = {
    ("nothing", "["): "instance begun",
    ("instance begun", "["): "ring begun",
    ("ring begun", "["): "point begun",
    ("ring begun", "]"): "ring",
    ("point begun", "n"): "x",
    ("x", ","): "x and comma",
    ("x and comma", "n"): "y",
    ("y", "]"): "point",
    ("point", ","): "point and comma",
    ("point and comma", "["): "point begun",
    ("point", "]"): "ring",
    ("ring", ","): "ring and comma",
    ("ring and comma", "["): "ring begun",
    ("ring", "]"): "instance",
    ("instance", ";"): "nothing",
}
"""What was read last, and the sign that may follow ("n" stands for a number): what has then been read."""

_TO_NEXT_NUMBER = {
    "point begun": [],
    "x": [","],
    "x and comma": [],
    "point": [",", "["],
    "point and comma": ["["],
    "ring begun": ["["],
    "ring and comma": ["[", "["],
    "instance begun": ["[", "["],
    "nothing": ["[", "[", "["],
}
"""Signs from a place to the next number that closes a ring."""


class PointTextGrammar:
    """An AnswerGrammar. Places are those of SIGNS, start (where an empty answer may begin), and empty."""

    joint = ""

    def __init__(
        self, numerals: UnitNumerals | WholeNumerals, max_rings: int, max_vertices: int, max_characters: int
    ) -> None:
        """numerals: how places of the grid are written; max_...: limits of the codec."""
        self._numerals = numerals
        self.alphabet = "".join(sorted(" ,;[]" + numerals.characters))
        self.start = State("start", max_rings, max_vertices, characters_left=max_characters)
        number = self._numerals.longest
        point = ["[", number, ",", number, "]", ","]
        self.longest = (*"[[", *point * 3, *"]]")
        self._longest = sum(map(len, self.longest))

    def words(self, spaced: bool) -> list[str]:
        """Words that the grammar can write."""
        bins = self._numerals.bins
        numbers = [self._numerals.text(value) for value in range(bins + 1)] if spaced else self._numerals.characters
        return [*"[],;", *numbers]

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
        if character in self._numerals.characters:
            return self._number_character(state, character)
        if state.word:
            done = self._number_done(state)
            if done is None:
                return None
            state = done
        if character == " ":
            return None if state.spaced else state._replace(spaced=True)
        state = state._replace(spaced=False)
        if state.place == "start":
            return state._replace(place="first instance begun") if character == "[" else None
        if state.place == "first instance begun":
            if character == "]":
                return state._replace(place="empty")
            state = state._replace(place="instance begun")
        place = SIGNS.get((state.place, character))
        return None if place is None else self._sign(state, place)

    def _sign(self, state: State, place: str) -> State | None:
        """The state after a sign that leads to `place`."""
        if place == "ring":
            if state.needed is None:
                return state._replace(sure=False)
            return None if state.needed else state._replace(place=place, ring=OpenRing(), needed=3)
        if place == "ring begun":
            return ring_begun(state, place)
        if place == "point and comma" and not state.vertices_left:
            return None
        if place in ("ring and comma", "nothing") and not room_for_ring(state):
            return None
        return state._replace(place=place)

    def _number_character(self, state: State, character: str) -> State | None:
        bounds = state.bounds
        if bounds is None:
            if (state.place, "n") not in SIGNS:
                return None
            bounds = number_begun(state, state.place == "x and comma", self._numerals)
            if bounds is None:
                return state._replace(sure=False)
        word = state.word + character
        if not self._numerals.fits(word, bounds):
            return None
        return state._replace(word=word, bounds=bounds, needed=None, spaced=False)

    def _number_done(self, state: State) -> State | None:
        if state.bounds is None or not self._numerals.complete(state.word, state.bounds):
            return None
        value = self._numerals.value(state.word)
        if state.place == "x and comma":
            return vertex_ended(state, value, "y")
        return state._replace(place="x", word="", bounds=None, x=value)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here."""
        return state.place in ("instance", "empty")

    def completion(self, state: State) -> list[str]:
        """Texts that end the answer as shortly as can be."""
        if self.accepts(state):
            return []
        if state.place in ("start", "first instance begun"):
            return ["[", "]"] if state.place == "start" else ["]"]
        if state.place == "ring":
            return ["]"]
        if state.ring is None:
            raise ValueError("a condensed state has no completion; ask with the whole one.")
        if state.place == "y":
            return ["]", *self.completion(state._replace(place="point"))]
        if state.place == "point" and not state.needed:
            return ["]", "]"]
        begun = state.place not in ("point", "ring begun")
        numbers = closing_numbers(state.ring, state.x, state.word if begun else None, self._numerals)
        words = list(_TO_NEXT_NUMBER[state.place])
        in_y = len(numbers) % 2 == 1  # the last is a y
        for number in numbers:
            words += [number, "]", ",", "["] if in_y else [number, ","]
            in_y = not in_y
        return [*words[:-2], "]", "]"]

    def condensed(self, state: State, num_characters: int) -> State | None:
        """State without what the next characters hardly ever depend on."""
        if state.characters_left < MANY:
            if state.characters_left < self._longest + num_characters:
                return None
            state = state._replace(characters_left=MANY)
        if state.place in ("start", "first instance begun"):
            return state
        return without_vertices(state, num_characters, self._numerals)
