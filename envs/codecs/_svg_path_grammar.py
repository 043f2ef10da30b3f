"""The grammar of SVG paths over characters: what envs/codecs/svg_path.py writes, with one space between words.

    answer   = "none" | instance (" ; " instance)*
    instance = x0 y0 x1 y1 (" M " x y segments " Z")+
    segments = ("L" (x y)+ | "Q" (x1 y1 x y)+ | "C" (x1 y1 x2 y2 x y)+)+      behind M an L may be left out

Absolute forms alone; a space may end the text, numbers have no leading zeros, and every outline has an area.
"""

from envs.codecs._boxed_codec import EMPTY_WORD, INSTANCE_WORD, RING_WORD, box_bounds, condensed_box
from envs.codecs._numerals import Bounds, WholeNumerals
from envs.codecs._open_path import OpenPath
from envs.codecs._open_ring import NOTHING_FITS
from envs.codecs.base import State, walked

CLOSE_WORD = "Z"
DEGREES = {"L": 1, "Q": 2, "C": 3}
"""Points of a segment by its letter."""
_FREE = 2
"""Lines behind a segment with which any outline gets an area."""


class SvgPathGrammar:
    """An AnswerGrammar.

    Places: start, empty word (being written), empty, box, path (M must come), Z and ; (just written), end (behind Z), a
    letter M, L, Q or C (just written), and of points "L0x": the letter, the points of the segment before this one, and
    the number. "L x" stands behind a whole segment of lines, where a letter may come too.
    """

    joint = " "
    alphabet = "".join(sorted({*EMPTY_WORD, *RING_WORD, *INSTANCE_WORD, *CLOSE_WORD, *DEGREES, *"0123456789 "}))

    def __init__(
        self, box_bins: int, path_bins: int, max_rings: int, max_vertices: int, size_steps: int | None = None
    ) -> None:
        """size_steps: steps of a box's sizes where it is said by its centre; None where it is said by two corners, the
        second beyond the first."""
        self._size_steps = size_steps
        self._box, self._path = WholeNumerals(box_bins), WholeNumerals(path_bins)
        self.start = State("start", max_rings, max_vertices)
        number = self._path.longest
        self.longest = ("", EMPTY_WORD, *[self._box.longest] * 4, RING_WORD, *[number] * 12, "L", CLOSE_WORD)

    def words(self, spaced: bool) -> list[str]:
        """Words that the grammar can write."""
        letters = [RING_WORD, INSTANCE_WORD, CLOSE_WORD, *DEGREES]
        if spaced:
            return [EMPTY_WORD, *letters, *map(str, range(max(self._box.bins, self._path.bins) + 1))]
        digits = self._path.characters
        return [EMPTY_WORD, *digits, *(f" {word}" for word in [*letters, *digits])]

    def advance(self, state: State, text: str) -> State | None:
        """State after `text`; None where it is refused."""
        return walked(self._step, state, text)

    def _step(self, state: State, character: str) -> State | None:
        if character in self._path.characters:
            return self._digit(state, character)
        if character == " ":
            return self._space(state)
        if state.word and state.place != "empty word":
            return None
        if character in (RING_WORD, INSTANCE_WORD) and state.place == "end":
            room = state.rings_left >= 1 and state.vertices_left >= 3
            return state._replace(place=character, rings_left=state.rings_left - 1) if room else None
        if character == RING_WORD and state.place == "path":
            return state._replace(place=RING_WORD)
        if state.place.endswith(" x"):
            return self._letter(state, character)
        word = state.word + character
        if state.place in ("start", "empty word") and EMPTY_WORD.startswith(word):
            return state._replace(place="empty word", word=word)
        return None

    def _letter(self, state: State, letter: str) -> State | None:
        """A letter behind a whole segment."""
        if letter == CLOSE_WORD:
            if state.needed is None:
                return state._replace(sure=False)
            return None if state.needed else state._replace(place=CLOSE_WORD)
        if letter not in DEGREES:
            return None
        bounds = self._point_bounds(_at(state, letter, 0, "x"))
        if bounds is None:
            return state._replace(sure=False)
        return None if bounds == NOTHING_FITS else _at(state, letter, 0, "x")._replace(place=letter)

    def _digit(self, state: State, digit: str) -> State | None:
        if state.place == "start":
            state = state._replace(place="box", rings_left=state.rings_left - 1)
        if state.place.endswith(" x"):
            state = _at(state, state.place[0], 0, "x")
        if state.place != "box" and not state.place[1:2].isdigit():
            return None
        bounds = state.bounds
        if bounds is None:
            bounds = self._box_bounds(state) if state.place == "box" else self._point_bounds(state)
            if bounds is None:
                return state._replace(sure=False)
        numerals = self._box if state.place == "box" else self._path
        word = state.word + digit
        if not numerals.fits(word, bounds):
            return None
        return state._replace(word=word, bounds=bounds, needed=3 if state.place == "box" else None)

    def _box_bounds(self, state: State) -> Bounds | None:
        """Bounds of the next number of a box; None where a condensed state cannot tell."""
        if self._size_steps is None:
            return box_bounds(state.box, self._box.bins)
        return Bounds(0, self._box.bins if len(state.box) < 2 else self._size_steps)

    def _point_bounds(self, state: State) -> Bounds | None:
        """Bounds of the number at a place such as "C1x"; None where a condensed state cannot tell."""
        after = state.vertices_left - 1
        left = 0 if state.place[0] == RING_WORD else DEGREES[state.place[0]] - int(state.place[1]) - 1
        if after - left < (_FREE if state.place[0] == RING_WORD else 0):
            return NOTHING_FITS
        if after - left >= _FREE:
            return Bounds(0, self._path.bins)
        if state.path is None or (state.place[-1] == "y" and state.x is None):
            return None
        if state.place[-1] == "y":
            return state.path.y_bounds(state.x or 0, after, self._path.bins)
        return state.path.x_bounds(after, self._path.bins)

    def _space(self, state: State) -> State | None:
        if state.place == "empty word":
            return state._replace(place="empty", word="") if state.word == EMPTY_WORD else None
        if state.place == RING_WORD:
            return state._replace(place="M0x", path=OpenPath(), needed=3)
        if state.place == INSTANCE_WORD:
            return state._replace(place="box", box=())
        if state.place == CLOSE_WORD:
            return state._replace(place="end", path=OpenPath(), needed=None)
        if state.place in DEGREES:
            return state._replace(place=f"{state.place}0x")
        if state.bounds is None:
            return None
        numerals = self._box if state.place == "box" else self._path
        return self._number(state, int(state.word)) if numerals.complete(state.word, state.bounds) else None

    def _number(self, state: State, value: int) -> State:
        done = state._replace(word="", bounds=None)
        if state.place == "box":
            box = (*state.box, value)
            return done._replace(place="path", box=()) if len(box) == 4 else done._replace(box=box)
        if state.place[-1] == "x":
            return done._replace(place=state.place[:-1] + "y", x=value)
        letter, k = state.place[0], int(state.place[1])
        path = None if state.path is None or state.x is None else state.path.add(state.x, value)
        done = done._replace(x=None, path=path, needed=None, vertices_left=state.vertices_left - 1)
        if k + 1 < DEGREES.get(letter, 1):
            return done._replace(place=f"{letter}{k + 1}x")
        letter = "L" if letter == RING_WORD else letter
        return done._replace(place=f"{letter} x", needed=None if path is None else path.needed)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here; the state must be a whole one."""
        if state.place == "empty word":
            return state.word == EMPTY_WORD
        return state.place in ("empty", CLOSE_WORD, "end")

    def completion(self, state: State) -> list[str]:
        """Texts that end the answer as shortly as can be."""
        if state.place in ("start", "empty word"):
            return [EMPTY_WORD[len(state.word) :]] if state.word != EMPTY_WORD else []
        if state.place in ("empty", CLOSE_WORD, "end"):
            return []
        if state.place in (RING_WORD, INSTANCE_WORD, *DEGREES):
            begun = self._space(state)
            assert begun is not None
            return ["", *self.completion(begun)]
        words: list[str] = []
        while state.place == "box":
            bounds = state.bounds or self._box_bounds(state) or Bounds(0, 0)
            words.append(self._box.rest(state.word, bounds))
            state = self._number(state, int(state.word + words[-1]))
        if state.place == "path":
            words.append(RING_WORD)
            state = state._replace(place="M0x", path=OpenPath())
        return words + self._closing(state)

    def _closing(self, state: State) -> list[str]:
        """The fewest numbers and letters that give the outline an area, and the letter that closes it."""
        words: list[str] = []
        while not (state.place.endswith(" x") and not state.needed):
            if state.path is None:
                raise ValueError("a condensed state has no completion; ask with the whole one.")
            if state.place.endswith(" x"):
                if state.place[0] != "L":
                    words.append("L")
                state = _at(state, "L", 0, "x")
            words.append(self._path.rest(state.word, self._tightest(state)))
            state = self._number(state, self._path.value(state.word + words[-1]))
        return [*words, CLOSE_WORD]

    def _tightest(self, state: State) -> Bounds:
        """Bounds of the number that the word goes on, with the fewest points behind it with which it fits."""
        for vertices_left in range(1, 2 + max(DEGREES.values()) + _FREE):
            bounds = self._point_bounds(state._replace(vertices_left=vertices_left))
            if bounds is not None and self._path.fits(state.word, bounds):
                return bounds
        raise AssertionError(f"no number goes on at {state}")

    def condensed(self, state: State, num_characters: int) -> State | None:
        """State without what the next characters hardly ever depend on."""
        if state.place == "start":
            return state
        if state.vertices_left < 3:
            return None
        # A point takes four characters or more; as long as five may follow, any of them may be anything.
        most = num_characters // 4 + 6
        return state._replace(
            path=None,
            x=None,
            word=self._path.alike(state.word, state.bounds) if state.bounds else state.word,
            rings_left=min(state.rings_left, most),
            vertices_left=min(state.vertices_left, most),
            box=condensed_box(state.box),
        )


def _at(state: State, letter: str, k: int, number: str) -> State:
    """The state at a point of a segment of `letter`, whose degree the path takes over."""
    path = None if state.path is None else state.path._replace(degree=DEGREES[letter])
    return state._replace(place=f"{letter}{k}{number}", path=path)
