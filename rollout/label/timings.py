"""What the stages of a labelling job take: the seconds of each, which travel with the blocks, and images a second."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from rollout.disk import replace_text

_TIMINGS = "timings"
"""A file for each shard; no part of the labels, which are the same however long they took."""
_SPENT = "spent"


@dataclass(frozen=True)
class Spent:
    """What one stage took."""

    wall: float = 0.0
    """Seconds by the clock, of all its workers together."""
    core: float = 0.0
    """Seconds of cores: of all threads of its processes, while it was at work."""

    def __add__(self, other: "Spent") -> "Spent":
        """Both together."""
        return Spent(self.wall + other.wall, self.core + other.core)


def timed(work: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    """The block that a stage makes of another, with what it took behind what the stages before it took.

    An image carries its equal share of its block's seconds, so that blocks may be cut and joined.
    """
    wall, core = time.perf_counter(), time.process_time()
    done = work(block)
    share = [(time.perf_counter() - wall) / max(1, len(done)), (time.process_time() - core) / max(1, len(done))]
    before = block.column(_SPENT).to_pylist() if _SPENT in block.column_names else [[]] * len(done)
    return done.append_column(_SPENT, pa.array([[*held, *share] for held in before], pa.list_(pa.float64())))


def spent_of(block: pa.Table) -> list[Spent]:
    """What each stage took for a block, in the order of the stages."""
    rows = block.column(_SPENT).to_pylist()
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return [Spent(wall, core) for wall, core in zip(sums[::2], sums[1::2], strict=True)]


@dataclass
class Timings:
    """What stages took for some images."""

    images: int = 0
    stages: dict[str, Spent] = field(default_factory=dict)
    """By name of the stage, in their order."""

    def add(self, images: int, stages: Mapping[str, Spent]) -> None:
        """Take in what they took for some more."""
        self.images += images
        for name, spent in stages.items():
            self.stages[name] = self.stages.get(name, Spent()) + spent

    def slowest(self) -> tuple[str, float] | None:
        """The stage that takes longest an image, and the images that one of its workers does in a second; None before
        any."""
        if not self.stages:
            return None
        name, spent = max(self.stages.items(), key=lambda item: item[1].wall)
        return name, self.images / spent.wall if spent.wall else float("inf")

    def write(self, out: Path, part: int) -> None:
        """Write what the images of the shard of this number took to a folder of labels."""
        held = {"images": self.images, "stages": {name: asdict(one) for name, one in self.stages.items()}}
        replace_text(out / f"{_TIMINGS}-{part:05d}.json", json.dumps(held))


def read_timings(out: Path) -> Timings:
    """What all shards of a folder took; nothing where no timings are."""
    total = Timings()
    for path in sorted(out.glob(f"{_TIMINGS}-*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        total.add(held["images"], {name: Spent(**one) for name, one in held["stages"].items()})
    return total
