"""Boxes and points as answers and as parts of questions: what codecs that write them share.

A place is [1, 2] for a point and [2, 2] for a box, its upper left and lower right corner, (x, y) in pixels. An answer
of places has an instance for each: a box as `box_px` and the rectangle that it is, a point as a ring of that one
vertex, which fills nothing.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Answer, AnswerStatus, Instance, Ring, instance_from_rings

CORNERS = {"box": 2, "point": 1}
"""By what is asked for, the points of a place."""


def rectangle(corners_px: Ring) -> Ring:
    """The clockwise ring [4, 2] of a box given by two corners [2, 2], upper left and lower right."""
    (x0, y0), (x1, y1) = corners_px
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def answer_of_places(places_px: Sequence[Ring]) -> Answer:
    """The answer that says these places, each [1, 2] or [2, 2] px; a box without area makes it degenerate."""
    if not places_px:
        return Answer(AnswerStatus.EMPTY)
    if any(len(place) == 2 and (place[1] <= place[0]).any() for place in places_px):
        return Answer(AnswerStatus.DEGENERATE)
    return Answer(AnswerStatus.OK, tuple(_instance(place) for place in places_px))


def _instance(place: Ring) -> Instance:
    if len(place) == 1:
        return Instance(np.asarray(place, np.float64), np.array([0, 1], np.int64))
    x0, y0, x1, y1 = (float(number) for number in chain(*place))
    return instance_from_rings([rectangle(place)], (x0, y0, x1, y1))


def places_of(numbers: NDArray[np.float64], corners: int) -> list[Ring]:
    """Numbers [K * corners * 2], x, y, x, y, ..., as K places [corners, 2]."""
    return [*np.asarray(numbers, np.float64).reshape(-1, corners, 2)]


def grid_places(places: Sequence[Ring], steps: NDArray[np.int64], size: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Places px on the grid of `steps` (x, y) over an image of (height, width): points to the nearest, boxes outwards.

    A box keeps a step of width and of height.
    """
    scale = np.asarray(steps) / np.array([size[1], size[0]])
    return [_on_grid(place * scale, np.asarray(steps)) for place in places]


def _on_grid(place: Ring, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(place) == 1:
        return np.floor(place + 0.5).clip(0, steps).astype(np.int64)
    # A hair's tolerance, so that a box that lies on the grid up to rounding errors keeps its place.
    low = np.floor(place[0] + 1e-9).clip(0, steps - 1).astype(np.int64)
    return np.stack([low, np.ceil(place[1] - 1e-9).clip(low + 1, steps).astype(np.int64)])
