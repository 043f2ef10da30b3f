"""The hot loop in C, compiled on the spot where there is a compiler."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.polygons import FlatAnswers
from rewards.target import Target

# What Numba may assume of the same loops, a C compiler may as well: its own processor, and whole sums in any order.
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"]

Sums = Callable[[FlatAnswers, Target], NDArray[np.int64]]


def overlap_in_c() -> Sums | None:
    """`overlap` of rewards/kernels.py for answers of one ring each, from C at -O3; None where `cc` is missing."""
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
