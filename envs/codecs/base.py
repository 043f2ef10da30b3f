"""What a codec must be, and its grammar as an automaton over characters: what may be written next in a valid answer.

The grammar is deterministic and finite: a state holds counters and one open ring, never the text. What it accepts is
read as ok or empty; what cannot become such an answer is refused at the first character that makes it so.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envs.codecs._coordinates import ShownSize
from envs.codecs._numerals import Bounds, Numerals
from envs.codecs._open_path import OpenPath
from envs.codecs._open_ring import NOTHING_FITS, OpenRing
from envs.polygons import Answer, Ring

MANY = 1 << 40
"""Stands for a number of characters that no limit holds back."""


class State(NamedTuple):
    """Where an answer has got to. A condensed one leaves out what the next few characters hardly ever depend on."""

    place: str
    """What has been read last, in the codec's words."""
    rings_left: int
    """Rings that may still begin."""
    vertices_left: int
    """Vertices that may still be finished."""
    word: str = ""
    """What is written of the word or number begun."""
    bounds: Bounds | None = None
    """Least and most that the number begun may be."""
    box: tuple[int | None, ...] = ()
    """The numbers of the instance's box so far; None where left out."""
    ring: OpenRing | None = OpenRing()
    """None where left out."""
    x: int | None = None
    """First coordinate of the vertex begun."""
    needed: int | None = 3
    """Vertices that the ring needs before it may end; None within a vertex, and where what is left out decides."""
    characters_left: int = MANY
    path: OpenPath | None = OpenPath()
    """The outline so far, where it may have curves; None where left out."""
    spaced: bool = False
    """Whether the last character was a space."""
    sure: bool = True
    """False where a condensed state could not tell: ask again with the whole one."""


class AnswerGrammar(Protocol):
    """What a codec says of its texts to whoever writes them a piece at a time."""

    start: State
    alphabet: str
    """All characters that occur."""
    joint: str
    """What stands between two words; " " between words is always allowed."""
    longest: tuple[str, ...]
    """No fewer words, and none shorter, than any completion has."""

    def words(self, spaced: bool) -> list[str]:
        """What a vocabulary must be able to write; spaced: as whole words, since each of its tokens is one."""
        ...

    def advance(self, state: State, text: str) -> State | None:
        """The state after `text`; None where no valid answer goes on like that."""
        ...

    def accepts(self, state: State) -> bool:
        """Whether the answer may end here."""
        ...

    def completion(self, state: State) -> list[str]:
        """Words that end the answer soon, none where it may end here; the first goes on with the word begun.

        After some of its characters the rest of them is the completion. The state must be a whole one.
        """
        ...

    def condensed(self, state: State, num_characters: int) -> State | None:
        """A state that stands for many, to ask about the next `num_characters`; None where nothing can be left out."""
        ...


def walked(step: Callable[[State, str], State | None], state: State, text: str) -> State | None:
    """The state after `text`, a character at a time by `step`; None where one is refused, and where a condensed state
    cannot tell, that state."""
    for character in text:
        following = step(state, character)
        if following is None or not following.sure:
            return following
        state = following
    return state


def number_begun(state: State, in_y: bool, numerals: Numerals) -> Bounds | None:
    """Bounds of a vertex's next number; None where a condensed state cannot tell."""
    after = state.vertices_left - 1
    if after >= 2:
        return Bounds(0, numerals.bins)
    if after < 0:
        return NOTHING_FITS
    if state.ring is None or (in_y and state.x is None):
        return None
    return (
        state.ring.y_bounds(state.x or 0, after, numerals.bins) if in_y else state.ring.x_bounds(after, numerals.bins)
    )


def vertex_ended(state: State, y: int, place: str) -> State:
    """The state, now at `place`, after the vertex of its x and of y; its word is done."""
    ring = None if state.ring is None or state.x is None else state.ring.add(state.x, y)
    return state._replace(
        place=place,
        word="",
        bounds=None,
        ring=ring,
        x=None,
        needed=None if ring is None else ring.needed,
        vertices_left=state.vertices_left - 1,
    )


def ring_begun(state: State, place: str) -> State:
    """The state, now at `place`, with a fresh ring."""
    return state._replace(place=place, ring=OpenRing(), x=None, needed=3, rings_left=state.rings_left - 1)


def room_for_ring(state: State) -> bool:
    """Whether another ring may begin."""
    return state.rings_left >= 1 and state.vertices_left >= 3


def without_vertices(state: State, num_characters: int, numerals: Numerals) -> State | None:
    """The state without its open ring, and with no more room than `num_characters` could tell apart."""
    if state.vertices_left < 3:
        return None
    # A vertex takes four characters or more: as long as three may follow, any of them may be anything.
    most = num_characters // 4 + 4
    return state._replace(
        ring=None,
        x=None,
        word=numerals.alike(state.word, state.bounds) if state.bounds else state.word,
        rings_left=min(state.rings_left, most),
        vertices_left=min(state.vertices_left, most),
    )


@runtime_checkable
class LimitedCodec(Protocol):
    """A codec that tells how much one answer may hold."""

    max_rings: int
    """Most rings of an answer."""
    max_vertices: int
    """Most vertices of an answer."""


@runtime_checkable
class FittingCodec(Protocol):
    """A codec that takes outlines as they were traced, and chooses itself which points to write."""

    fits_traced: ClassVar[bool]
    """True; there for its name."""


class AnswerCodec(Protocol):
    """Text <-> polygons.

    A codec is one file of this folder whose class `Codec` is a frozen dataclass of its settings.
    """

    def encode(self, instances: Sequence[Sequence[Ring]], height: int, width: int) -> str:
        """Text of instances, each a list of pixel rings.

        No instance is the empty answer. ValueError beyond the codec's limits.
        """
        ...

    def read(self, text: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The answer that `text` gives over a height x width image; a status for any str, never an exception."""
        ...

    def grammar(self) -> AnswerGrammar:
        """Automaton of texts that read as valid, all that `encode` writes among them; for `sampling.grammar` alone."""
        ...


class TextPlace(NamedTuple):
    """Where a text says a vertex, or the box of an instance."""

    begin: int
    """First character."""
    end: int
    """The character after its last."""
    instance: int
    """Number of the instance, from 0."""
    vertex: int | None
    """Number of the vertex among all of the answer, from 0; None for the box."""


@runtime_checkable
class LocatingCodec(Protocol):
    """A codec that can say which characters of an answer are which vertex."""

    def text_places(self, text: str) -> list[TextPlace]:
        """The places of a text that reads as `ok`, in order; of any other whatever is found."""
        ...


@runtime_checkable
class PlaceCodec(Protocol):
    """A codec that writes and reads boxes and points too, as answers and as parts of questions.

    A place is a point [1, 2] or the corners [2, 2] of a box, upper left and lower right, (x, y) in pixels.
    """

    def encode_places(self, places: Sequence[Ring], height: int, width: int) -> str:
        """Text of places, all points or all boxes; none is the empty answer, one may stand in a question.

        ValueError beyond the codec's limits.
        """
        ...

    def read_places(self, text: str, asked: str, height: int, width: int, truncated: bool = False) -> Answer:
        """The answer that `text` gives where boxes (asked: "box") or points ("point") were asked for.

        A status for any str, never an exception; instances as envs/codecs/_places.py says.
        """
        ...


@runtime_checkable
class ChoosingCodec(Protocol):
    """A codec whose answers choose among the candidates of a question."""

    def chosen_text(self, candidates: NDArray[np.bool_] | None, masks: NDArray[np.bool_]) -> str:
        """The answer that means masks [K, H, W] by candidates [N, H, W]; ValueError where there are none."""
        ...

    def read_chosen(self, text: str, candidates: NDArray[np.bool_] | None) -> Answer:
        """The answer that a text gives beside its candidates; a status for any str, never an exception."""
        ...


@runtime_checkable
class WordCodec(Protocol):
    """A codec whose texts are words, such as a tokenizer of words has a token for each."""

    @property
    def words(self) -> list[str]:
        """Every word of its texts, numbers first and in order."""
        ...


@runtime_checkable
class SeenCodec(Protocol):
    """A codec whose numbers may depend on the policy: on what its family was trained on, and on the size it sees."""

    def seen_by(self, coordinates: str, shown_size: ShownSize) -> AnswerCodec:
        """The codec of a policy of a family that writes places in `coordinates` (COORDINATES of _coordinates.py);
        shown_size: from height and width of an image to those of what the policy sees of it, pixels."""
        ...
