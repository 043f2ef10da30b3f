"""A fixed suite of hostile choices among candidate masks: what a policy that chooses finds when a reward pays for it.

Two scenes of 64 x 64 px. In the first a pool of eleven candidates stands for two objects, as a segmenter gives it: no
candidate is quite right, two are equal, one is empty. The careful answer chooses the best candidate of each object, the
hasty one the second best. In the second scene the same pool is there, and nothing fits the phrase. Every choice is read
as the codec `mask_group` reads it.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from envs.codecs.mask_group import answer_of
from envs.example import Truth
from envs.polygons import Answer
from rewards.hostile import EMPTY, SIDE, Scene, Trick
from rewards.score import Target

NAMES = (
    "first",
    "second",
    "first again",
    "first, moved",
    "second, moved",
    "half of first",
    "half of second",
    "both as one",
    "neighbour",
    "largest",
    "empty",
)
"""Of the candidates, in order."""


@cache
def choice_tricks() -> tuple[Trick, ...]:
    """The whole suite, always in this order."""
    return (*_on_two_objects(), *_on_nothing())


@cache
def pool() -> NDArray[np.bool_]:
    """[11, 64, 64] the candidates of both scenes."""
    first, second = _plus(2, 2, 9), _plus(34, 34, 9)
    left, above = np.zeros_like(first), np.zeros_like(first)
    left[:, :16], above[:48] = True, True
    neighbour, largest = np.zeros_like(first), np.zeros_like(first)
    neighbour[4:24, 38:58], largest[30:, 30:] = True, True
    moved = (_plus(2, 4, 8), _plus(34, 36, 8))
    made = [first, second, first, *moved, first & left, second & above, first | second, neighbour, largest]
    return np.stack([*made, np.zeros_like(first)])


@cache
def pool_scene() -> Scene:
    """Two plus signs of 528 px, arms 12 px wide. Careful: arms of 10 px, IoU 460 / 528. Hasty: 2 px off, 472 / 584."""
    target = Target.from_truth(Truth(np.stack([_plus(2, 2, 8), _plus(34, 34, 8)])))
    return Scene("pool of two objects", target, chosen("first", "second"), chosen("first, moved", "second, moved"))


@cache
def missing_scene() -> Scene:
    """The same pool, and nothing that fits the phrase."""
    return Scene("pool without", Target.from_truth(Truth(np.zeros((0, SIDE, SIDE), np.bool_))), EMPTY, EMPTY)


def chosen(*names: str) -> Answer:
    """The answer that chooses candidates by their NAMES."""
    return answer_of(np.array([name in names for name in NAMES]), pool())


def _on_two_objects() -> Iterator[Trick]:
    scene, right = pool_scene(), ("first", "second")
    same_pixels = [
        ("a part beside each", "more instances, not a pixel more", chosen(*right, "half of first", "half of second")),
        ("both as one beside each", "chooses a mask and what it is part of", chosen(*right, "both as one")),
        ("both as one alone", "right pixels, one instance too few", chosen("both as one")),
        ("an equal one twice", "chooses a candidate and its copy", chosen(*right, "first again")),
        ("an empty one beside", "chooses what covers nothing, which is no instance", chosen(*right, "empty")),
    ]
    yield from (Trick(name, why, scene, answer, same_pixels=True) for name, why, answer in same_pixels)
    yield Trick("all in", "cannot miss what is right", scene, chosen(*NAMES))
    yield Trick("none in", "says nothing is there, to be safe", scene, chosen())
    yield Trick("the largest only", "covers most, looking at nothing", scene, chosen("largest"))
    yield Trick("one of the two", "chooses the easy object only", scene, chosen("first"))
    yield Trick("halves", "chooses parts of what is right, nothing wrong", scene, chosen(*_HALVES))
    yield Trick("a neighbour beside", "chooses one too many", scene, chosen(*right, "neighbour"))


_HALVES = ("half of first", "half of second")


def _on_nothing() -> Iterator[Trick]:
    scene = missing_scene()
    yield Trick("none in, nothing there", "the right answer, and nobody earns more", scene, chosen(), True)
    yield Trick("an empty one, nothing there", "chooses what covers nothing", scene, chosen("empty"), True)
    yield Trick("all in, nothing there", "something may be right", scene, chosen(*NAMES))
    yield Trick("the largest, nothing there", "chooses it always", scene, chosen("largest"))


def _plus(y: int, x: int, notch: int) -> NDArray[np.bool_]:
    """[64, 64] a square of 28 px from (x, y) less its four corners, each a square of `notch`."""
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[y : y + 28, x + notch : x + 28 - notch] = True
    mask[y + notch : y + 28 - notch, x : x + 28] = True
    return mask
