"""Which examples an archive holds, in 16 bytes an example: a run may ask millions."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_SMALLEST_BATCH = 4096


class StoredIds:
    """A set of ids that only grows, kept as 128-bit hashes: two ids are taken for one with a chance below 1e-24."""

    def __init__(self) -> None:
        # Sorted by the first half; the newest are in a set, and join the sorted ones when they are an eighth of them:
        # then the cost of adding one id does not grow with their number.
        self._sorted: NDArray[np.uint64] = np.zeros((2, 0), np.uint64)
        self._newest: set[bytes] = set()

    def add(self, ids: Iterable[str]) -> None:
        """Take in ids."""
        for name in ids:
            self._newest.add(_hash(name))
            if len(self._newest) >= max(_SMALLEST_BATCH, self._sorted.shape[1] // 8):
                self._settle()

    def _settle(self) -> None:
        newest = np.frombuffer(b"".join(self._newest), "<u8").reshape(-1, 2).T
        joined = np.concatenate([self._sorted, newest], axis=1)
        self._sorted = joined[:, np.argsort(joined[0], kind="stable")]
        self._newest.clear()

    def __contains__(self, name: str) -> bool:
        """Whether an id was added."""
        hashed = _hash(name)
        first, second = np.frombuffer(hashed, "<u8")
        begin, end = np.searchsorted(self._sorted[0], first, "left"), np.searchsorted(self._sorted[0], first, "right")
        return hashed in self._newest or bool((self._sorted[1, begin:end] == second).any())


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
