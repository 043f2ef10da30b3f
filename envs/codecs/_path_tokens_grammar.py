"""The grammar of path tokens over characters: the words of envs/codecs/path_tokens.py with one space between them.

A space may end the text. Numbers have no leading zeros.
"""

from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, RING_WORD, box_bounds, condensed_box
from envs.codecs._numerals import Bounds, WholeNumerals
from envs.codecs._open_ring import closing_numbers
from envs.codecs.base import State, number_begun, ring_begun, room_for_ring, vertex_ended, walked, without_vertices


class PathTokensGrammar:
    """An AnswerGrammar.

    Places: start, empty word (being written), empty, box, x (a vertex or a separator may begin), y, M, and ;.
    """

    joint = " "
    alphabet = "".join(sorted({*EMPTY_WORD, *RING_WORD, *INSTANCE_WORD, *"0123456789 "}))

    def __init__(self, box_bins: int, path_bins: int, max_rings: int, max_vertices: int) -> None:
        self._box, self._path = WholeNumerals(box_bins), WholeNumerals(path_bins)
        self.start = State("start", max_rings, max_vertices)
        self.longest = ("", EMPTY_WORD, *[self._box.longest] * 4, *[self._path.longest] * 6)

    def words(self, spaced: bool) -> list[str]:
        """Words that the grammar can write."""
        if spaced:
            numbers = map(str, range(max(self._box.bins, self._path.bins) + 1))
            return [EMPTY_WORD, RING_WORD, INSTANCE_WORD, *numbers]
        digits = self._path.characters
        return [EMPTY_WORD, *digits, *(f" {word}" for word in [RING_WORD, INSTANCE_WORD, *digits])]

    def advance(self, state: State, text: str) -> State | None:
        """State after `text`; None where it is refused."""
        return walked(self._step, state, text)

    def _step(self, state: State, character: str) -> State | None:
        if character in self._path.characters:
            return self._digit(state, character)
        if character == " ":
            return self._space(state)
        if state.place == "x" and not state.word and character in (RING_WORD, INSTANCE_WORD):
            if state.needed is None:
                return state._replace(sure=False)
            return state._replace(place=character) if not state.needed and room_for_ring(state) else None
        word = state.word + character
        if state.place in ("start", "empty word") and EMPTY_WORD.startswith(word):
            return state._replace(place="empty word", word=word)
        return None

    def _digit(self, state: State, digit: str) -> State | None:
        if state.place == "start":
            state = ring_begun(state, "box")
        if state.place not in ("box", "x", "y"):
            return None
        bounds = state.bounds
        if bounds is None:
            bounds = box_bounds(state.box, self._box.bins) if state.place == "box" else self._vertex_bounds(state)
            if bounds is None:
                return state._replace(sure=False)
        numerals = self._box if state.place == "box" else self._path
        word = state.word + digit
        if not numerals.fits(word, bounds):
            return None
        return state._replace(word=word, bounds=bounds, needed=3 if state.place == "box" else None)

    def _vertex_bounds(self, state: State) -> Bounds | None:
        return number_begun(state, state.place == "y", self._path)

    def _space(self, state: State) -> State | None:
        if state.place == "empty word":
            return state._replace(place="empty", word="") if state.word == EMPTY_WORD else None
        if state.place == RING_WORD:
            return ring_begun(state, "x")
        if state.place == INSTANCE_WORD:
            return ring_begun(state, "box")._replace(box=())
        if state.bounds is None:
            return None
        numerals = self._box if state.place == "box" else self._path
        return self._number(state, int(state.word)) if numerals.complete(state.word, state.bounds) else None

    def _number(self, state: State, value: int) -> State:
        if state.place == "y":
            return vertex_ended(state, value, "x")
        done = state._replace(word="", bounds=None)
        if state.place == "x":
            return done._replace(place="y", x=value)
        box = (*state.box, value)
        return done._replace(place="x", box=()) if len(box) == 4 else done._replace(box=box)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here; the state must be a whole one."""
        if state.word and state.place == "y":
            ended = self._space(state)
            return ended is not None and ended.needed == 0
        if state.place == "empty word":
            return state.word == EMPTY_WORD
        return state.place == "empty" or (state.place == "x" and not state.word and state.needed == 0)

    def completion(self, state: State) -> list[str]:
        """Texts that end the answer as shortly as can be."""
        if state.place in ("start", "empty word"):
            return [EMPTY_WORD[len(state.word) :]] if state.word != EMPTY_WORD else []
        if state.place == "empty":
            return []
        if state.place in (RING_WORD, INSTANCE_WORD):
            begun = self._space(state)
            return [] if begun is None else ["", *self.completion(begun)]
        words: list[str] = []
        while state.place == "box":
            bounds = state.bounds or box_bounds(state.box, self._box.bins) or Bounds(0, 0)
            words.append(self._box.rest(state.word, bounds))
            state = self._number(state, int(state.word + words[-1]))
        if state.ring is None:
            raise ValueError("a condensed state has no completion; ask with the whole one.")
        rest = closing_numbers(state.ring, state.x, state.word or None, self._path)
        words += rest
        return [] if words == [""] else words

    def condensed(self, state: State, num_characters: int) -> State | None:
        """State without what the next characters hardly ever depend on."""
        if state.place == "start":
            return state
        less = without_vertices(state, num_characters, self._path)
        if less is None:
            return None
        return less._replace(box=condensed_box(less.box))
