"""Outlines to measure on: of three kinds, drawn at random, all of a group about the same object."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from envs.polygons import Ring

KINDS = ("smooth", "ragged", "concave")


def smooth(rng: np.random.Generator, num: int, height: int, width: int) -> Ring:
    """A blob [num, 2] px whose radius swings slowly: what a model draws around a compact object."""
    turns = np.sort(rng.uniform(0, 2 * np.pi, num))
    swings = [rng.normal() / k * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) for k in range(1, 6)]
    return _around(rng, turns, 1 + 0.2 * np.sum(swings, axis=0), height, width)


def ragged(rng: np.random.Generator, num: int, height: int, width: int) -> Ring:
    """A star [num, 2] px, each vertex 70 to 100 % of the way out: the worst of a policy that has not learned yet."""
    return _around(rng, np.arange(num) * 2 * np.pi / num, rng.uniform(0.7, 1.0, num), height, width)


def concave(rng: np.random.Generator, num: int, height: int, width: int) -> Ring:
    """A bent band [num, 2] px, there along the outside and back along the inside."""
    turns = np.linspace(0.3, 5.6, num // 2) + rng.uniform(0, 1)
    outside = _around(rng, turns, 1.0 + rng.uniform(0.0, 0.1) + 0 * turns, height, width)
    middle = outside.mean(axis=0)
    return np.concatenate([outside, (middle + (outside - middle) * rng.uniform(0.5, 0.7))[::-1]])


def _around(
    rng: np.random.Generator, turns: NDArray[np.float64], reach: NDArray[np.float64], height: int, width: int
) -> Ring:
    middle = np.array([width, height]) * rng.uniform(0.42, 0.58, 2)
    radius = rng.uniform(0.2, 0.35) * np.array([width, height])
    return middle + radius * reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)


OUTLINES: dict[str, Callable[[np.random.Generator, int, int, int], Ring]] = dict(
    zip(KINDS, (smooth, ragged, concave), strict=True)
)
