"""Outlines to measure on: of three kinds, drawn at random, all of a group about the same object."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.polygons import FlatAnswers, Ring
from rewards.target import Target

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


# What Numba may assume of the same loops, a C compiler may as well: its own processor, and whole sums in any order.
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]

Sums = Callable[[FlatAnswers, Target], NDArray[np.int64]]


def overlap_in_c() -> Sums | None:
    """`rewards.kernels.overlap.overlap` for answers of one ring each, from C at -O3; None where `cc` is missing."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="polytrace-bench-"))
    with as_file(files("rl") / "bench" / "overlap.c") as source:
        command = [compiler, *_FLAGS, "-shared", "-fPIC", "-o", str(folder / "overlap.so"), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    call = ctypes.CDLL(str(folder / "overlap.so")).overlap
    shutil.rmtree(folder)  # loaded; the name is no longer needed
    doubles, numbers = (np.ctypeslib.ndpointer(kind, flags="C_CONTIGUOUS") for kind in (np.float64, np.int64))
    call.restype = None
    call.argtypes = [*(doubles, numbers, ctypes.c_int64), *(doubles, doubles, numbers), *[ctypes.c_int64] * 3, numbers]

    def sums(flat: FlatAnswers, target: Target) -> NDArray[np.int64]:
        table, found = target.table, np.empty((flat.num_answers, 4), np.int64)
        places, size = len(table.rows), (target.height, target.width)
        call(
            flat.vertices,
            flat.ring_offsets,
            flat.num_answers,
            table.left,
            table.right,
            table.rows,
            places,
            *size,
            found,
        )
        return found

    return sums
