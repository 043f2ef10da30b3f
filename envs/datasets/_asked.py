"""Questions about a composed scene beside names and places: by colour, size and kind, by a mask, and all but one name.

    colour   "everything red"         all objects of which half the pixels or more have this colour
    size     "the largest", "the smallest pear"   the one object that is a third larger, or smaller, than all others
    kind     "every fruit"            all objects whose names are of this kind, by a table of common nouns
    same     "the same as <mask>"     the mask is one of several objects of a name; all of that name, itself included
    others   "all but pear"           all objects of other names

A scene offers only questions that have one answer: a colour is not asked for where it is a fifth to a half of some
object, a size not where two are near each other.
"""

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.datasets._scene import Scene

COLOURS = ("black", "grey", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
KINDS: Mapping[str, frozenset[str]] = {
    "bird": frozenset({"bird", "chick", "chicken", "rooster", "penguin", "duck", "owl", "parrot", "eagle", "swan"}),
    "fish": frozenset({"fish", "blowfish", "shark", "trout", "salmon", "goldfish"}),
    "insect": frozenset({"ant", "honeybee", "beetle", "bug", "bee", "fly", "butterfly", "moth", "wasp"}),
    "fruit": frozenset(
        {"apple", "banana", "cherries", "cherry", "grapes", "lemon", "melon", "orange", "peach", "pear", "pineapple"}
        | {"plum", "strawberry", "tangerine", "watermelon"}
    ),
    "vehicle": frozenset({"automobile", "bus", "rocket", "car", "truck", "train", "boat", "bicycle", "airplane"}),
}
"""Last words of the names of each kind."""
CLEAR, UNLIKE = 0.5, 0.2
"""Shares of an object's pixels from which it has a colour, and up to which it has not."""
LARGER = 4 / 3
"""Least ratio of two areas of which one is said to be the larger."""
_WORDS = {
    "colour": {"everything", *COLOURS},
    "size": {"the", "largest", "smallest"},
    "kind": {"every", *KINDS},
    "same": {"the", "same", "as"},
    "others": {"all", "but"},
}
SORTS = tuple(_WORDS)
"""What can be asked beside names, in the order in which their shares are drawn."""


@dataclass(frozen=True)
class Asked:
    """A question about a scene."""

    words: str
    """Its text; a mask that it shows comes behind."""
    objects: tuple[int, ...]
    """Which objects it means."""
    shown: int | None = None
    """The object whose mask it shows; None for words alone."""


def words_of(sort: str) -> set[str]:
    """Words of the questions of one of SORTS, beside names."""
    return set(_WORDS[sort])


def questions(sort: str, scene: Scene, colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    """What of one of SORTS can be asked about a scene, [] where nothing has one answer; colours: of each name, as
    `colours_of` tells them."""
    return _MADE[sort](scene, colours)


def _by_colour(scene: Scene, colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    found = []
    for colour in COLOURS:
        shares = [colours[name][colour] for name in scene.names]
        meant = tuple(k for k, share in enumerate(shares) if share >= CLEAR)
        if meant and all(share >= CLEAR or share <= UNLIKE for share in shares):
            found.append(Asked(f"everything {colour}", meant))
    return found


def _by_size(scene: Scene, _colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    areas, found = scene.masks.sum(axis=(1, 2)).tolist(), []
    named = {name: [k for k, other in enumerate(scene.names) if other == name] for name in scene.names}
    for what, among in {"": list(range(len(areas))), **named}.items():
        if len(among) < 2:
            continue
        by_area = sorted(among, key=lambda k: areas[k])
        ends = (("smallest", by_area[0], by_area[1]), ("largest", by_area[-2], by_area[-1]))
        for word, small, large in ends:
            if areas[large] >= LARGER * areas[small]:
                found.append(Asked(f"the {word} {what}".strip(), (small if word == "smallest" else large,)))
    return found


def _by_kind(scene: Scene, _colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    found = []
    for kind, nouns in KINDS.items():
        meant = tuple(k for k, name in enumerate(scene.names) if name.split()[-1] in nouns)
        if meant:
            found.append(Asked(f"every {kind}", meant))
    return found


def _by_mask(scene: Scene, _colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    alike = [tuple(k for k, name in enumerate(scene.names) if name == own) for own in scene.names]
    return [Asked("the same as", meant, shown) for shown, meant in enumerate(alike) if len(meant) > 1]


def _but_a_name(scene: Scene, _colours: Mapping[str, Mapping[str, float]]) -> list[Asked]:
    names = dict.fromkeys(scene.names)
    left = {name: tuple(k for k, other in enumerate(scene.names) if other != name) for name in names}
    return [Asked(f"all but {name}", meant) for name, meant in left.items() if meant]


_MADE: Mapping[str, Callable[[Scene, Mapping[str, Mapping[str, float]]], list[Asked]]] = {
    "colour": _by_colour,
    "size": _by_size,
    "kind": _by_kind,
    "same": _by_mask,
    "others": _but_a_name,
}


def colours_of(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Share of the pixels [N, 3] RGB, one or more, that have each of COLOURS."""
    distinct, counts = np.unique(pixels, axis=0, return_counts=True)
    shares = dict.fromkeys(COLOURS, 0.0)
    for pixel, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        shares[_colour(*pixel)] += count / len(pixels)
    return shares


def _colour(red: int, green: int, blue: int) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.3 or saturation < 0.15:
        return "black" if value < 0.3 else "grey" if value < 0.9 else "white"
    degrees = 360 * hue
    if degrees < 15 or degrees >= 330:
        return "pink" if saturation < 0.5 and value > 0.7 else "red"
    if degrees < 45:
        return "orange" if value > 0.75 else "brown"
    ends = (("yellow", 70), ("green", 170), ("blue", 260), ("purple", 330))
    return next(name for name, end in ends if degrees < end)
