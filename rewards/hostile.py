"""A fixed suite of hostile answers: what a policy finds when a reward pays for something else than a good outline.

Four scenes of 64 x 64 px, each with two honest drawings: a careful one (cuts corners, but its box, its centre and its
number of vertices are right) and a hasty one (a pixel or four off). Every trick is an answer to one of these
scenes. Tricks of grammar go through the real codecs; the others are made as a codec would read them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from envs.codecs import path_tokens, point_text
from envs.codecs.base import AnswerCodec
from envs.example import Truth
from envs.geometry.raster import fill
from envs.polygons import Answer, AnswerStatus, Instance, Ring, bounding_box_px, flatten_rings, instance_from_rings
from rewards.score import Target

SIDE = 64
"""Height and width of every scene, pixels."""
EMPTY = Answer(AnswerStatus.EMPTY)
"""The answer that nothing fits the phrase."""


@dataclass(frozen=True)
class Scene:
    """A truth and two fair answers to it."""

    name: str
    target: Target
    careful: Answer
    """A careful outline: its box and its centre are right, it spends at most 16 vertices, and its IoU is above 0.8."""
    hasty: Answer
    """Not even its box and its centre are quite right, but its IoU is above 0.8 too."""


@dataclass(frozen=True)
class Trick:
    """An answer that should not pay."""

    name: str
    why: str
    """What it tries, as half a sentence."""
    scene: Scene
    answer: Answer
    same_pixels: bool = False
    """Whether it fills the very pixels of the careful answer: it may earn as much as that one, never more."""


@cache
def tricks() -> tuple[Trick, ...]:
    """The whole suite, scene by scene, always in this order."""
    return (*_on_an_object(), *_through_codecs(), *_on_a_large_object(), *_on_two_objects(), *_on_nothing())


@cache
def object_scene() -> Scene:
    """A plus sign of 720 px, arms 12 px wide. Careful: arms of 10 px, IoU 0.861. Hasty: 1 px off as well, 0.836."""
    target = _target([_plus(14, 14, 36, 12)])
    return Scene("object", target, _drawn(_plus(14, 14, 36, 13)), _drawn(_plus(15, 14, 36, 13)))


@cache
def large_scene() -> Scene:
    """A plus sign over 3 / 4 of the image. Careful: arms 2 px thinner, IoU 0.957. Hasty: 4 px off, IoU 0.88."""
    hasty = np.minimum(_plus(4, 0, SIDE, 16), SIDE)
    return Scene("large object", _target([_plus(0, 0, SIDE, 16)]), _drawn(_plus(0, 0, SIDE, 17)), _drawn(hasty))


@cache
def two_scene() -> Scene:
    """Two octagons of 536 px each. Careful: corners cut deeper, IoU 0.806. Hasty: 2 px off, IoU 0.836."""
    careful = _said(_instance(_octagon(4, 4, 24, 8.5)), _instance(_octagon(36, 36, 24, 8.5)))
    hasty = _said(_instance(_octagon(6, 4, 24, 4.5)), _instance(_octagon(38, 36, 24, 4.5)))
    return Scene("two objects", _target([_octagon(4, 4, 24, 4.5)], [_octagon(36, 36, 24, 4.5)]), careful, hasty)


@cache
def nothing_scene() -> Scene:
    """An image in which nothing fits the phrase; the honest answer is `empty`, carefully or hastily."""
    return Scene("nothing there", _target(), EMPTY, EMPTY)


def _on_an_object() -> Iterator[Trick]:
    scene = object_scene()
    [plus] = scene.careful.rings_px
    same_pixels = [
        ("500 vertices", "traces the same edges in tiny steps, never to end", _drawn(_in_steps(plus, 500))),
        ("every vertex three times", "fills the answer with repeats", _drawn(np.repeat(plus, 3, axis=0))),
        ("doubled ring", "draws the outline twice, to be counted twice", _drawn(plus, plus)),
        ("ring gone round twice", "goes round the outline twice without lifting the pen", _drawn([*plus, *plus])),
        ("overlapping rings", "two rings that share their middle", _drawn(plus.clip(max=(37, 64)), plus.clip((27, 0)))),
        ("spikes", "reaches out to a far corner and back, without area", _drawn(_spiked(plus, (3.0, 61.0)))),
    ]
    yield from (Trick(name, why, scene, answer, same_pixels=True) for name, why, answer in same_pixels)
    yield from (Trick(name, why, scene, answer) for name, why, answer in _wrong_shapes(plus))


def _wrong_shapes(plus: Ring) -> list[tuple[str, str, Answer]]:
    """Name, purpose and answer of what is drawn instead of the object; `plus` is the careful outline."""
    tight = _box(14, 14, 50, 50)
    right_box = instance_from_rings([_box(15, 15, 17, 17)], bounding_box_px(tight))
    specks = [_instance(_box(x, y, x + 1, y + 1)) for y in range(0, SIDE, 2) for x in range(0, SIDE, 2)][:1000]
    hollow = _drawn(_plus(14, 14, 36, 12), _plus(16, 16, 32, 12)[::-1])
    return [
        ("whole image", "cannot miss a true pixel", _drawn(_box(0, 0, SIDE, SIDE))),
        ("tight box", "right place and size, no shape", _drawn(tight)),
        ("figure eight", "crosses itself, two lobes that turn opposite ways", _drawn(tight[[0, 1, 3, 2]])),
        ("line", "two points that hold no pixel", _drawn(tight[[0, 2]])),
        ("speck in the middle", "right centre, no wrong pixel, next to no area", _drawn(_box(31, 31, 33, 33))),
        ("right size, wrong place", "as many pixels as the truth, none of them true", _drawn(_box(2, 1, 62, 13))),
        ("a thousand specks", "a pixel everywhere, each an instance", _said(*specks)),
        ("hollow outline", "right along the boundary, nothing inside", hollow),
        ("stopped early", "half the outline, closed by the reader", _drawn(plus[: len(plus) // 2 + 1])),
        ("right box said, speck drawn", "says the true box and draws a speck", _said(right_box)),
        ("empty on full", "says that nothing is there, which cannot be drawn wrongly", EMPTY),
    ]


def _through_codecs() -> Iterator[Trick]:
    """What the careful drawing is worth once its text breaks a rule, and texts that hope for a kind reader."""
    scene = object_scene()
    codecs: dict[str, AnswerCodec] = {"path tokens": path_tokens.Codec(), "point text": point_text.Codec()}
    two_points = {"path tokens": "14 14 50 50 0 0 32 32", "point text": "[[[0.2, 0.2], [0.8, 0.8]]]"}
    outside = {
        "path tokens": "0 0 65 65 0 0 32 0 32 32 0 32",
        "point text": "[[[-0.1, -0.1], [1.1, -0.1], [1.1, 1.1], [-0.1, 1.1]]]",
    }
    for form, codec in codecs.items():
        text = codec.encode([scene.careful.rings_px], SIDE, SIDE)
        cut = codec.read(text[: len(text) * 3 // 4], SIDE, SIDE, truncated=True)
        prose = codec.read(f"Sure! The outline is {text} I hope that this helps.", SIDE, SIDE)
        yield Trick(f"truncated, {form}", "never ends, and hopes to be closed by the reader", scene, cut)
        yield Trick(f"brackets in prose, {form}", "an outline somewhere in chatter", scene, prose)
        points = codec.read(two_points[form], SIDE, SIDE)
        yield Trick(f"two points, {form}", "the shortest answer that still looks like one", scene, points)
        beyond = codec.read(outside[form], SIDE, SIDE)
        yield Trick(f"numbers out of range, {form}", "a box beyond the image, to be clipped", scene, beyond)


def _on_a_large_object() -> Iterator[Trick]:
    scene = large_scene()
    whole = _drawn(_box(0, 0, SIDE, SIDE))
    yield Trick("whole image, large object", "one answer for every large object", scene, whole)
    speck = _drawn(_box(31, 31, 33, 33))
    yield Trick("speck, large object", "inside the object wherever it is", scene, speck)


def _on_two_objects() -> Iterator[Trick]:
    scene = two_scene()
    first, second = scene.careful.instances
    around = _said(_instance(_box(4, 4, 60, 60)))
    yield Trick("one box around both", "one instance for all objects", scene, around)
    merged = _said(_instance(*first.rings_px, *second.rings_px))
    yield Trick("both as one instance", "right pixels, but does not tell them apart", scene, merged, True)
    thrice = _said(first, second, first, second, first, second)
    yield Trick("each object three times", "more instances, more chances of a match", scene, thrice, True)
    yield Trick("one of two", "draws the easy object only", scene, _said(first))
    tiles = [_instance(_box(x, y, x + 16, y + 16)) for y in range(0, SIDE, 16) for x in range(0, SIDE, 16)]
    yield Trick("a tile everywhere", "guesses until something matches", scene, _said(*tiles))


def _on_nothing() -> Iterator[Trick]:
    scene = nothing_scene()
    prose = point_text.Codec().read("There is no such object.", SIDE, SIDE)
    yield Trick("empty on empty", "the right answer, and nobody earns more", scene, EMPTY, True)
    yield Trick("area on empty", "draws something anyway", scene, _drawn(_box(16, 16, 48, 48)))
    yield Trick("speck on empty", "draws next to nothing, to be nearly right", scene, _drawn(_box(31, 31, 32, 32)))
    yield Trick(
        "line on empty", "draws no pixel, without saying that nothing is there", scene, _drawn([(16, 16), (48, 48)])
    )
    yield Trick("prose on empty", "is right, but not in the grammar", scene, prose)


def _said(*instances: Instance) -> Answer:
    return Answer(AnswerStatus.OK, instances)


def _instance(*rings: Ring) -> Instance:
    """An instance of these rings that says the box around them."""
    return instance_from_rings(rings, bounding_box_px(np.concatenate(rings)))


def _drawn(*rings: Iterable[Iterable[float]]) -> Answer:
    """A valid answer of one instance."""
    return _said(_instance(*(np.array(ring, np.float64) for ring in rings)))


def _target(*instances: list[Ring]) -> Target:
    masks = np.zeros((len(instances), SIDE, SIDE), np.bool_)
    for k, rings in enumerate(instances):
        masks[k] = fill(*flatten_rings(rings), SIDE, SIDE)
    return Target.from_truth(Truth(masks))


def _box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def _plus(x: float, y: float, side: float, notch: float) -> Ring:
    """A square from (x, y) less its four corners, each a square of `notch`; 12 vertices."""
    a, b, c = notch, side - notch, side
    corners = [(a, 0), (b, 0), (b, a), (c, a), (c, b), (b, b), (b, c), (a, c), (a, b), (0, b), (0, a), (a, a)]
    return np.array(corners, np.float64) + np.array([x, y])


def _octagon(x: float, y: float, side: float, cut: float) -> Ring:
    """A square from (x, y) less four triangles, `cut` wide and high; no pixel centre is on a slanting edge."""
    a, b, c = cut, side - cut, side
    corners = [(a, 0), (b, 0), (c, a), (c, b), (b, c), (a, c), (0, b), (0, a)]
    return np.array(corners, np.float64) + np.array([x, y])


def _in_steps(ring: Ring, num_vertices: int) -> Ring:
    """An outline with vertices along its edges, as many on each as go."""
    after = np.roll(ring, -1, axis=0)
    counts = [len(part) for part in np.array_split(np.arange(num_vertices), len(ring))]
    return np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in zip(ring, after, counts, strict=True)])


def _spiked(ring: Ring, tip: tuple[float, float]) -> Ring:
    """From each vertex to `tip` and back by the same line."""
    return np.stack([ring, np.broadcast_to(tip, ring.shape), ring], axis=1).reshape(-1, 2)
