"""Answers as polygons, and every change of coordinate frame.

Frames, said by the suffix of a name:
  _px    continuous pixels: x right, y down, the image spans [0, W] x [0, H].
  _unit  0..1 of the image's width and height.
  _grid  integers 0..bins over an extent (the image, or a box), bins included, so that both edges can be said.

A ring is a closed polygon given by its vertices, the first not repeated. Outer rings run clockwise on screen,
holes the other way. Rings of one shape are stored flat: vertices [N, 2] and offsets [R + 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
Box = tuple[float, float, float, float]


class AnswerStatus(StrEnum):
    """How a model's output read. Only `ok` and `empty` are valid answers."""

    OK = "ok"
    EMPTY = "empty"
    """The model said that nothing fits the phrase."""
    UNPARSABLE = "unparsable"
    """Not in the codec's grammar."""
    OUT_OF_RANGE = "out_of_range"
    """A number outside the grid, the image, or a limit on rings or vertices."""
    DEGENERATE = "degenerate"
    """In the grammar, but a ring or box has no area to speak of (fewer than 3 vertices, x1 <= x0)."""
    TRUNCATED = "truncated"
    """The length limit cut the output before its end."""

    @property
    def valid(self) -> bool:
        """True for `ok` and `empty`."""
        return self in (AnswerStatus.OK, AnswerStatus.EMPTY)


@dataclass(frozen=True)
class Instance:
    """One object of an answer."""

    vertices_px: NDArray[np.float64]
    """[N, 2] float64 (x, y), all rings one after the other."""
    ring_offsets: NDArray[np.int64]
    """[R + 1] int64; ring r is vertices_px[ring_offsets[r]:ring_offsets[r + 1]]."""
    box_px: Box | None = None
    """(x0, y0, x1, y1) as the model said it, if it did."""
    label: str | None = None
    score: float | None = None

    @property
    def rings_px(self) -> list[Ring]:
        """Views of the rings, each [N, 2]."""
        return split_rings(self.vertices_px, self.ring_offsets)


@dataclass(frozen=True)
class Answer:
    """What the model said, read. No instance unless the status is `ok`."""

    status: AnswerStatus
    instances: tuple[Instance, ...] = ()
    bare: bool = True
    """False where lenient reading took something off that strict reading does not take: a sentence, a fence."""
    thinking: str | None = None
    """The reasoning that stood before it, white space at its ends aside; None without, or where none was asked for."""

    @property
    def rings_px(self) -> list[Ring]:
        """Rings of all instances; filled together by non-zero winding they are the answer's mask."""
        return [ring for instance in self.instances for ring in instance.rings_px]

    @property
    def num_vertices(self) -> int:
        """Vertices of all rings."""
        return sum(len(instance.vertices_px) for instance in self.instances)


class FlatAnswers(NamedTuple):
    """The rings of A answers in three arrays, as kernels take them."""

    vertices: NDArray[np.float64]
    """[M, 2] (x, y) of all rings, one after the other."""
    ring_offsets: NDArray[np.int64]
    """[R + 1] ring r is vertices[ring_offsets[r]:ring_offsets[r + 1]]."""
    answer_offsets: NDArray[np.int64]
    """[A + 1] answer a has the rings answer_offsets[a]..answer_offsets[a + 1] - 1."""

    @property
    def num_answers(self) -> int:
        """A."""
        return len(self.answer_offsets) - 1

    def part(self, first: int, end: int) -> "FlatAnswers":
        """Answers first..end - 1 alone."""
        rings = self.answer_offsets[first : end + 1]
        vertices = self.ring_offsets[rings[0] : rings[-1] + 1]
        return FlatAnswers(self.vertices[vertices[0] : vertices[-1]], vertices - vertices[0], rings - rings[0])


def flat_answers(answers: Sequence[Sequence[Ring]]) -> FlatAnswers:
    """Answers, each a list of rings [N, 2], as FlatAnswers; raises ValueError for a ring of another shape."""
    rings = [ring for rings in answers for ring in rings]
    try:
        vertices = np.concatenate(rings) if rings else np.zeros((0, 2))
    except ValueError:  # of different numbers of axes, as an empty list has but one
        vertices = np.zeros(0)
    if vertices.ndim != 2 or vertices.shape[1] != 2:
        vertices = np.concatenate([_checked_ring(ring) for ring in rings])
    vertices = np.ascontiguousarray(vertices, np.float64)
    ring_offsets = np.array(list(accumulate(map(len, rings), initial=0)), np.int64)
    answer_offsets = np.array(list(accumulate(map(len, answers), initial=0)), np.int64)
    return FlatAnswers(vertices, ring_offsets, answer_offsets)


def _checked_ring(ring: Ring) -> Ring:
    if np.shape(ring)[1:] != (2,) and np.size(ring):
        raise ValueError(f"A ring has shape {np.shape(ring)}; give [N, 2] vertices (x, y) in pixels.")
    return np.asarray(ring, np.float64).reshape(-1, 2)


def flatten_rings(rings: Sequence[Ring]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rings, each [N, 2], as (vertices [sum N, 2] float64, offsets [R + 1] int64)."""
    offsets = np.zeros(len(rings) + 1, np.int64)
    np.cumsum([len(ring) for ring in rings], out=offsets[1:])
    if not rings:
        return np.zeros((0, 2)), offsets
    vertices = np.concatenate([np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings])
    return np.ascontiguousarray(vertices), offsets


def split_rings(vertices: NDArray[np.float64], offsets: NDArray[np.int64]) -> list[Ring]:
    """The inverse of `flatten_rings`; the rings are views."""
    return [vertices[start:end] for start, end in pairwise(offsets)]


def instance_from_rings(rings_px: Sequence[Ring], box_px: Box | None = None) -> Instance:
    """An Instance from pixel rings, each [N, 2]."""
    vertices, offsets = flatten_rings(rings_px)
    return Instance(vertices, offsets, box_px)


def answer_from_rings(rings_px: Sequence[Ring]) -> Answer:
    """A valid answer of one instance with these pixel rings; `empty` without any."""
    if not rings_px:
        return Answer(AnswerStatus.EMPTY)
    return Answer(AnswerStatus.OK, (instance_from_rings(rings_px),))


def signed_area_px(ring: Ring | NDArray[np.int64]) -> float:
    """Shoelace area of [N, 2] `ring` in square pixels, positive where it runs clockwise on screen."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def bounding_box_px(vertices: NDArray[np.float64]) -> Box:
    """(x0, y0, x1, y1) around [N, 2] vertices; N must be 1 or more."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def px_from_grid(grid: NDArray[np.integer] | NDArray[np.float64], bins: int, extent_px: Box) -> NDArray[np.float64]:
    """Grid numbers [N, 2] in 0..bins to pixels, 0 and bins being the near and the far edge of `extent_px`."""
    x0, y0, x1, y1 = extent_px
    return np.array([x0, y0]) + np.asarray(grid, np.float64) * (np.array([x1 - x0, y1 - y0]) / bins)


def grid_from_px(points_px: NDArray[np.float64], bins: int | NDArray[np.int64], extent_px: Box) -> NDArray[np.int64]:
    """Pixels [N, 2] to the nearest grid numbers 0..bins over `extent_px` (halves round up); clipped to the extent.

    bins: steps of the grid, the same in x and y, or [2] of x and of y.
    """
    x0, y0, x1, y1 = extent_px
    scaled = (np.asarray(points_px) - np.array([x0, y0])) * bins / np.array([x1 - x0, y1 - y0])
    return np.clip(np.floor(scaled + 0.5), 0, bins).astype(np.int64)


def unit_from_px(points_px: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Pixels [N, 2] to fractions of width and height."""
    return np.asarray(points_px, np.float64) / np.array([width, height])


def px_from_unit(points_unit: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Fractions of width and height [N, 2] to pixels."""
    return np.asarray(points_unit, np.float64) * np.array([width, height])
