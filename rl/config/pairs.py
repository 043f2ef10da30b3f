"""Which answers become pairs for a refiner, damaged masks among them, and how pairs are exported: the settings, and the
seeded orders that every choice follows.

Two choices share the work. rl/pairs/shortlist.py keeps, in one pass and bounded memory, the answers that may still be
chosen: in each stratum of IoU, per example the first few in a seeded order. rl/pairs/select.py then looks at their
outlines: at most `per_example` per example, taken from its strata in turns, each time the one that differs most from
those taken; and where a limit cuts, every stratum of IoU and of boundary error gives the same number, as far as it has.
"""

import hashlib
from dataclasses import dataclass, field, replace
from math import nextafter
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from envs.ranges import at_least, between, check_ranges, one_of

FORMATS = ("parquet", "webdataset", "coco", "png")
"""Formats that pairs are exported in; rl/pairs/formats.py writes them."""

DAMAGES = ("dilate", "erode", "drop_vertices", "shift", "box_jitter")
"""Kinds of damage that envs/geometry/damage.py does to a mask."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class PairRule:
    """Which answers become pairs."""

    min_iou: Annotated[float, between(0, 1)] = 0.3
    """Lowest IoU kept, 0..1; below it another object was drawn."""
    max_iou: Annotated[float, between(0, 1)] = 1.0
    """Highest IoU kept, min_iou..1."""
    per_example: Annotated[int, at_least(1)] = 4
    """Most pairs of one example, over all runs."""
    limit: Annotated[int | None, at_least(1)] = None
    """Most pairs in all; None for no limit. It bounds the memory of the choice."""
    near_duplicate_iou: Annotated[float, between(0, 1, open=True, advice=", 1 for equal masks only.")] = 0.98
    """IoU from which two answers to one example are near-duplicates, of which only one is kept."""
    iou_strata: Annotated[int, between(1, 100)] = 5
    """Equal parts of min_iou..max_iou that share the limit evenly."""
    boundary_strata: Annotated[int, between(1, 100)] = 3
    """Equal parts of 0..1 of the boundary error (1 - Boundary IoU) that share it within each of them."""
    seed: int = 0
    """Key of every random choice."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting that can keep nothing."""
        check_ranges(self)
        if self.min_iou > self.max_iou:
            raise ValueError(f"min_iou is {self.min_iou} and max_iou {self.max_iou}; set min_iou to max_iou or less.")

    def iou_stratum(self, iou: NDArray[np.float64]) -> NDArray[np.int8]:
        """Stratum 0 .. iou_strata - 1 of each IoU, which lies in min_iou..max_iou."""
        width = max(self.max_iou - self.min_iou, 1e-9)
        return _part((iou - self.min_iou) / width, self.iou_strata)

    def boundary_stratum(self, boundary_iou: NDArray[np.float64]) -> NDArray[np.int8]:
        """Stratum 0 .. boundary_strata - 1 of each Boundary IoU; 0 holds the smallest errors."""
        return _part(1 - boundary_iou, self.boundary_strata)

    def key(self, name: str) -> np.uint64:
        """64 bits that stand for a name, evenly spread, other ones for another seed.

        Among a million examples two have the same key with probability 3e-8; they would share their caps.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=f"{self.seed}".encode()).digest()
        return np.uint64(int.from_bytes(digest, "little"))

    def answer_orders(self, run: str, *place: NDArray[np.integer]) -> NDArray[np.uint64]:
        """[A] each answer's number in the seeded order; place: step, position and index in its run, each [A]."""
        orders = np.full(len(place[0]), self.key(run))
        for column in place:
            orders = _mixed(orders + _GOLDEN + column.astype(np.uint64))
        return orders


def _part(values: NDArray[np.float64], parts: int) -> NDArray[np.int8]:
    return np.clip((values * parts).astype(np.int64), 0, parts - 1).astype(np.int8)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits in which every bit turns on every."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class DamageSettings:
    """Synthetic coarse masks."""

    share: Annotated[float, between(0, 1, advice=", the share of pairs that are synthetic.")] = 0.0
    """Share of the pairs in which the answer gives way to a damaged true mask of the same example."""
    per_example: Annotated[int, at_least(0)] = 0
    """Damaged masks added per training example in the archives, also where no answer to it was kept."""
    kinds: tuple[str, ...] = DAMAGES
    """Kinds of damage, taken in turns."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting out of range."""
        check_ranges(self, "damage")
        if unknown := sorted(set(self.kinds) - set(DAMAGES)):
            raise ValueError(f"damage.kinds has {unknown[0]!r}; choose of {', '.join(DAMAGES)}.")
        if (self.share or self.per_example) and not self.kinds:
            raise ValueError(
                f"damage.kinds is empty, but damage.share {self.share} and damage.per_example {self.per_example}; name "
                "one or more kinds."
            )


WRONG_OBJECTS = "wrong_objects"
"""Folder of the answers about another object, where they are asked for."""


@dataclass(frozen=True)
class PairExport:
    """What an export keeps and how it is written."""

    rule: PairRule = field(default_factory=PairRule)
    damage: DamageSettings = field(default_factory=DamageSettings)
    format: Annotated[str, one_of(*FORMATS)] = "parquet"
    """Format of the files: parquet, webdataset, coco or png."""
    shard_mb: Annotated[int, at_least(1)] = 256
    """Most MiB of a shard; a single pair may be larger."""
    wrong_objects: bool = False
    """Also export the answers below rule.min_iou, as pairs in a folder of their own, wrong_objects/."""
    held_out_examples: Annotated[int | None, at_least(0)] = 2000
    """Examples of each held-out split whose ids and images are barred, at least those that a run evaluates; None: all.
    """
    unfinished: bool = False
    """Take also what a run has archived that has not reached its last step."""
    pictures: Annotated[int, at_least(0)] = 6
    """Pairs shown of each stratum of IoU in pairs.html."""

    def __post_init__(self) -> None:
        """Raises ValueError on a setting out of range."""
        check_ranges(self)
        if self.wrong_objects and self.rule.min_iou == 0:
            raise ValueError("wrong_objects is true, but rule.min_iou is 0, so no answer is below it; raise min_iou.")

    @property
    def wrong_object_rule(self) -> PairRule:
        """The rule of the answers below min_iou."""
        return replace(self.rule, min_iou=0.0, max_iou=nextafter(self.rule.min_iou, 0.0))
