"""The answers that may still become pairs, kept while an archive streams by: a few bytes each, in bounded memory.

Kept are, in each stratum of IoU, of each example the first `per_example` answers in the seeded order; with a limit, of
the first examples in their seeded order only, as many as the limit can need. What is kept does not depend on the order
in which answers are offered.
"""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from rl.pair_rule import PairRule, even_shares

CANDIDATE = np.dtype(
    [
        ("stratum", np.int8),
        ("run", np.int32),
        ("example", np.uint64),
        ("order", np.uint64),
        ("step", np.int64),
        ("position", np.int32),
        ("index", np.int32),
        ("iou", np.float64),
    ]
)
"""An answer that may be chosen: stratum of its IoU, number of its run, key of its example (its place in the seeded
order of examples), its place in the seeded order of answers, where it is in the archive, and its IoU."""

_SPARE = 1.25
"""Shortlisted pairs over the limit: near-duplicates on two sides of a stratum's edge are found only by their masks."""
_MIN_PENDING = 1 << 16


class Shortlist:
    """Takes candidates a batch at a time."""

    def __init__(self, rule: PairRule) -> None:
        self.rule = rule
        self.left_out: Counter[str] = Counter()
        self._wanted = None if rule.limit is None else math.ceil(rule.limit * _SPARE)
        self._kept = np.empty(0, CANDIDATE)
        self._pending: list[NDArray[np.void]] = []
        self._num_pending = 0
        # By stratum, the last example that may still be chosen.
        self._last = np.full(rule.iou_strata, np.iinfo(np.uint64).max)

    def offer(self, candidates: NDArray[np.void]) -> None:
        """Keep what may still be chosen of an array of CANDIDATE, and count why the rest is not."""
        hopeful = candidates[candidates["example"] <= self._last[candidates["stratum"]]]
        self.left_out["over_limit"] += len(candidates) - len(hopeful)
        self._pending.append(hopeful)
        self._num_pending += len(hopeful)
        if self._num_pending > max(_MIN_PENDING, len(self._kept) // 2):
            self.compact()

    def chosen(self) -> NDArray[np.void]:
        """The shortlist, sorted by example, then stratum, then order."""
        self.compact()
        kept = self._kept
        if self._wanted is not None:
            kept = self._first_examples(kept, self._level(kept, self._wanted))
        return kept[np.lexsort((kept["order"], kept["stratum"], kept["example"]))]

    def compact(self) -> None:
        """Let go of what can no longer be chosen."""
        rows = np.concatenate([self._kept, *self._pending])
        self._kept, self._pending, self._num_pending = rows[:0], [], 0
        rows = rows[np.lexsort((rows["order"], rows["example"], rows["stratum"]))]
        few = _rank(_new_example(rows)) < self.rule.per_example
        self.left_out["over_per_example"] += int((~few).sum())
        rows = rows[few]
        if self._wanted is not None and len(rows):
            rows = self._first_examples(rows, self._safe_level(rows, self._wanted))
            last = np.flatnonzero(np.diff(rows["stratum"], append=-1))
            numbers = _example_number(rows)[last] + 1
            full = last[numbers == self._safe_level(rows, self._wanted)]
            self._last[rows["stratum"][full]] = rows["example"][full]
        self._kept = rows

    def _first_examples(self, rows: NDArray[np.void], level: int) -> NDArray[np.void]:
        """The rows of the first `level` examples of each stratum."""
        near = _example_number(rows) < level
        self.left_out["over_limit"] += int((~near).sum())
        return rows[near]

    def _safe_level(self, rows: NDArray[np.void], wanted: int) -> int:
        """No less than `_level` will be, whatever is offered yet.

        The examples of all strata are counted here; at worst each is in all strata, and gives per_example pairs.
        """
        strata, per_example = self.rule.iou_strata, self.rule.per_example
        sizes = np.bincount(rows["stratum"][_new_example(rows)], minlength=strata)
        needed = math.ceil(wanted * max(1, strata / per_example))
        return wanted if sizes.sum() <= needed else min(wanted, int(even_shares(sizes, needed).max()))

    def _level(self, rows: NDArray[np.void], wanted: int) -> int:
        """How many examples each stratum gives, as far as it has them, so that all give `wanted` pairs together."""
        number, first = _example_number(rows), _new_example(rows)
        low, high = 1, max(1, int(number.max(initial=0)) + 1)
        while low < high:
            middle = (low + high) // 2
            if _promised(rows["example"][first & (number < middle)], self.rule.per_example) >= wanted:
                high = middle
            else:
                low = middle + 1
        return low


def _promised(examples: NDArray[np.uint64], per_example: int) -> int:
    """Pairs that examples can give, named once a stratum: one a stratum, since the rest there may be duplicates."""
    _, counts = np.unique(examples, return_counts=True)
    return int(np.minimum(counts, per_example).sum())


def _new_example(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """[A] whether another example or stratum begins, in rows sorted by stratum and example."""
    first = np.ones(len(rows), np.bool_)
    for name in ("stratum", "example"):
        first[1:] &= rows[name][1:] == rows[name][:-1]
    first[1:] = ~first[1:]
    return first


def _rank(first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[A] place 0, 1, ... after the last True."""
    places = np.arange(len(first))
    return places - np.maximum.accumulate(np.where(first, places, 0))


def _example_number(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """[A] number 0, 1, ... of the example within its stratum, in rows sorted by stratum and example."""
    numbers = np.cumsum(_new_example(rows)) - 1
    strata, first = np.unique(rows["stratum"], return_index=True)
    starts = numbers[first]
    return numbers - starts[np.searchsorted(strata, rows["stratum"])]
