"""Which answers become pairs for a refiner.

Of the answers offered, each outline of an example counts once. At most `per_example` an example are chosen, spread
over IoU: the range is cut into `per_example` equal bins, and the bins take turns, the lowest first, each giving its
outlines in a seeded order. With a limit, examples come in a seeded order until it is reached. Memory holds only what
may still be chosen: at most `per_example` outlines a bin, and `limit` examples.
"""

import hashlib
import heapq
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class PairRule:
    """Which answers become pairs."""

    min_iou: float = 0.3
    """Lowest IoU kept, 0..1."""
    max_iou: float = 1.0
    """Highest IoU kept, min_iou..1."""
    per_example: int = 4
    """Most pairs of one example."""
    limit: int | None = None
    """Most pairs in all; None for no limit."""
    seed: int = 0
    """Key of every random choice."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting that can keep nothing."""
        if not 0 <= self.min_iou <= self.max_iou <= 1:
            raise ValueError(
                f"min_iou is {self.min_iou} and max_iou {self.max_iou}; set them so that 0 <= min_iou <= max_iou <= 1."
            )
        if self.per_example < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"per_example is {self.per_example} and limit {self.limit}; set each to 1 or more.")

    def iou_bin(self, iou: float) -> int:
        """Bin of an IoU, 0 .. per_example - 1."""
        width = max(self.max_iou - self.min_iou, 1e-9)
        return min(int((iou - self.min_iou) / width * self.per_example), self.per_example - 1)

    def order(self, *names: bytes) -> bytes:
        """Place of something in the seeded order: 16 bytes, evenly spread, the same for equal names."""
        digest = hashlib.blake2b(f"{self.seed}".encode(), digest_size=16)
        for name in names:
            digest.update(len(name).to_bytes(8, "little") + name)
        return digest.digest()


DEFAULT_RULE = PairRule()


class Candidate(NamedTuple):
    """An answer that may become a pair."""

    order: bytes
    """Its place among its bin's, by example and outline: equal outlines are equal here."""
    place: tuple[int, int, int]
    """Step, position, index."""


class Chooser:
    """Keeps what may still be chosen, whatever the order in which answers are offered."""

    def __init__(self, rule: PairRule) -> None:
        self.rule = rule
        self.bins: dict[str, list[list[Candidate]]] = {}
        self.left_out: Counter[str] = Counter()
        self._last_first: list[tuple[int, str]] = []

    def offer(self, example_id: str, iou: float, candidate: Candidate) -> None:
        """Keep the candidate, in place of a later one where its bin is full, or count why not."""
        if not self._admits(example_id):
            self.left_out["over_limit"] += 1
            return
        bin_ = self.bins[example_id][self.rule.iou_bin(iou)]
        place = bisect_left(bin_, (candidate.order,))
        if place < len(bin_) and bin_[place].order == candidate.order:
            self.left_out["duplicate"] += 1
            return
        bin_.insert(place, candidate)
        if len(bin_) > self.rule.per_example:
            bin_.pop()
            self.left_out["over_per_example"] += 1

    def _admits(self, example_id: str) -> bool:
        """Whether an example may still be chosen: each of the `limit` first examples gives at least one pair."""
        if example_id in self.bins:
            return True
        self.bins[example_id] = [[] for _ in range(self.rule.per_example)]
        if self.rule.limit is None:
            return True
        heapq.heappush(self._last_first, (-int.from_bytes(self.rule.order(example_id.encode())), example_id))
        if len(self._last_first) <= self.rule.limit:
            return True
        _, last = heapq.heappop(self._last_first)
        self.left_out["over_limit"] += sum(len(bin_) for bin_ in self.bins.pop(last))
        return last != example_id

    def chosen(self) -> dict[tuple[int, int, int], str]:
        """Example ids of the pairs by (step, position, index); counts what the caps leave out."""
        places: dict[tuple[int, int, int], str] = {}
        for name in sorted(self.bins, key=lambda name: self.rule.order(name.encode())):
            turns = [(turn, k, item) for k, bin_ in enumerate(self.bins[name]) for turn, item in enumerate(bin_)]
            fair = [item for _, _, item in sorted(turns)[: self.rule.per_example]]
            kept = fair if self.rule.limit is None else fair[: self.rule.limit - len(places)]
            places.update({item.place: name for item in kept})
            self.left_out["over_per_example"] += len(turns) - len(fair)
            self.left_out["over_limit"] += len(fair) - len(kept)
        return places
