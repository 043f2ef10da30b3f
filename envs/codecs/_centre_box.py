"""Boxes by centre and size, as models with coordinate and size heads say them: four numbers on a grid of steps.

A coordinate is a share of the image's side, number k of K steps being k / K. A size is a share by its logarithm: number
k of S steps is 2^(10 k / S - 10), from 1/1024 to 1, so that small objects are said as exactly as large ones. A box is
what of it lies in the image. After Moondream 3 (1023 steps), whose paths lie in that part.
"""

import math
from collections.abc import Sequence

import numpy as np

from envs.polygons import Box, Ring

Steps = tuple[int, int]
"""Steps of a coordinate, and of a size."""
_OCTAVES = 10
"""Halvings from the largest size to the smallest."""


def coordinate_number(share: float, bins: int) -> int:
    """The nearest number of a share 0..1 of a side."""
    return round(min(1.0, max(0.0, share)) * bins)


def size_number(share: float, bins: int, at_least: bool = False) -> int:
    """The nearest number of a size, or the smallest that is as large; shares outside of 1/1024..1 go to the ends."""
    exact = (math.log2(max(share, 2.0**-_OCTAVES)) + _OCTAVES) / _OCTAVES * bins
    # A hair's tolerance, so that a size that is a number's own keeps it.
    return min(bins, max(0, math.ceil(exact - 1e-9) if at_least else round(exact)))


def size_share(number: int, bins: int) -> float:
    """The share that a size's number says."""
    return float(2.0 ** (_OCTAVES * number / bins - _OCTAVES))


def box_around(vertices_px: Ring, steps: Steps, height: int, width: int) -> tuple[int, int, int, int]:
    """(x, y, width, height) in numbers of the smallest box that holds the vertices.

    Where none does, the largest that leaves out least: an odd number of steps has no middle, so that an object over a
    whole side loses half a step of it at one end.
    """
    sides = np.array([width, height], np.float64)
    low, high = vertices_px.min(axis=0) / sides, vertices_px.max(axis=0) / sides
    (x, across), (y, down) = (_span(float(lo), float(hi), steps) for lo, hi in zip(low, high, strict=True))
    return x, y, across, down


def _span(low: float, high: float, steps: Steps) -> tuple[int, int]:
    """(centre, size) in numbers that hold the shares low to high of a side, as far as any do."""
    exact = (low + high) / 2 * steps[0]
    found = []
    for centre in {min(steps[0], max(0, number)) for number in (math.floor(exact), math.ceil(exact))}:
        reach = 2 * max(centre / steps[0] - low, high - centre / steps[0])
        size = size_number(reach, steps[1], at_least=True)
        found.append((max(0.0, reach - size_share(size, steps[1])), size, centre))
    _, size, centre = min(found)
    return centre, size


def box_px(box: Sequence[int], steps: Steps, height: int, width: int) -> Box:
    """The part of a box that lies in a height x width image, pixels; never without area."""
    x, y = box[0] / steps[0] * width, box[1] / steps[0] * height
    across, down = size_share(box[2], steps[1]) * width / 2, size_share(box[3], steps[1]) * height / 2
    return max(0.0, x - across), max(0.0, y - down), min(float(width), x + across), min(float(height), y + down)


def place_numbers(place: Ring, steps: Steps, height: int, width: int) -> list[int]:
    """Numbers of a place px: (x, y) of a point [1, 2], (x, y, width, height) of the corners [2, 2] of a box."""
    shares = np.asarray(place, np.float64) / (width, height)
    centre = [coordinate_number(float(share), steps[0]) for share in shares.mean(axis=0)]
    return centre + ([size_number(float(s), steps[1]) for s in shares[1] - shares[0]] if len(shares) == 2 else [])


def place_px(numbers: Sequence[int], steps: Steps, height: int, width: int) -> Ring:
    """The point [1, 2] or corners [2, 2] px that two or four numbers say."""
    if len(numbers) == 2:
        return np.array([(numbers[0] / steps[0] * width, numbers[1] / steps[0] * height)])
    return np.array(box_px(numbers, steps, height, width)).reshape(2, 2)
