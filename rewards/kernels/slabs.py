"""Answers whose rings may cross: rows cut into slabs, each filled from chain to chain by non-zero winding, in Numba.

A slab is a stretch of rows in which the same chains (rewards/kernels/chains.py) run. Where their order from left to
right is the same in all its rows, what lies between two of them is a difference of two sums, and no row needs to be
sorted.
"""

from typing import Any

import numpy as np
from numba import njit

from rewards.kernels.chains import add_sums

MAX_SLAB_CHAINS = 16
"""Slabs cost the square of the number of chains, so beyond this the general spans of envs/geometry/spans.py are
quicker."""


@njit(cache=True, nogil=True)
def _nowhere_right(columns: Any, a: int, b: int, num: int) -> bool:
    """Whether none of `num` columns from a on is right of its counterpart from b on."""
    worse, p, q = 0, np.uintp(a), np.uintp(b)
    for i in range(num):
        worse += columns[p + np.uintp(i)] > columns[q + np.uintp(i)]
    return worse == 0


@njit(cache=True, nogil=True)
def _ordered(columns: Any, places: Any, turns: Any, num: int, rows: int) -> bool:
    """Sort the chains of a slab from left to right by its middle row; whether that is their order in all its rows.

    places, turns: of the columns of `num` chains in the first row of the slab, and of their winding; `rows` its height.
    """
    for j in range(1, num):
        place, turn, k = places[j], turns[j], j
        middle, last = columns[place + rows // 2], columns[place + rows - 1]
        while k > 0:
            other = columns[places[k - 1] + rows // 2]
            if other < middle or (other == middle and columns[places[k - 1] + rows - 1] <= last):
                break
            places[k], turns[k] = places[k - 1], turns[k - 1]
            k -= 1
        places[k], turns[k] = place, turn
    for j in range(num - 1):  # noqa: SIM110  # Numba has no all() of a generator
        if not _nowhere_right(columns, places[j], places[j + 1], rows):
            return False
    return True


@njit(cache=True, nogil=True)
def _sort_events(chains: Any, num: int, events: Any) -> None:
    """Write the rows at which `num` chains begin or end into events[: 2 * num], sorted."""
    for n in range(2 * num):
        row, k = chains[n // 2, n % 2], n
        while k > 0 and events[k - 1] > row:
            events[k] = events[k - 1]
            k -= 1
        events[k] = row


@njit(cache=True, nogil=True)
def sum_slabs(sums: Any, chains: Any, num_chains: int, columns: Any, table: Any, scratch: Any) -> bool:
    """Add up an answer by slabs; False, with sums half made, where chains cross inside of one."""
    events, places, turns = scratch[0], scratch[1], scratch[2]
    _sort_events(chains, num_chains, events)
    for n in range(2 * num_chains - 1):
        top, bottom, num = events[n], events[n + 1], 0
        if top == bottom:
            continue
        for c in range(num_chains):
            places[num], turns[num] = chains[c, 3] + top - chains[c, 0], chains[c, 2]
            num += (chains[c, 0] <= top) & (chains[c, 1] >= bottom)
        if not _ordered(columns, places, turns, num, bottom - top):
            return False
        winding = 0
        for j in range(num):
            before = winding
            winding += turns[j]
            if before == 0 or winding == 0:
                add_sums(sums, 1 if winding == 0 else -1, columns, places[j], top, bottom, table)
    return True
