"""Prepared example shards of many made-up examples: what it costs to write and to open them, and to read at random.

Opening and reading have a process of their own (`python -m rl.bench.examples FOLDER`, which prints a line of JSON), so
that the memory is theirs; that of the imports is left out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from envs.datasets.shards import Env as Shards
from envs.example import Example, ImageRef, Prompt, Truth, image_sha256
from envs.images import ShownFile, View
from rl.pages.progress import bar
from rollout.example_shards import SplitWriter

QUICK_EXAMPLES = 20_000
OPEN_BAR_SECONDS, OPEN_BAR_MB = 2.0, 200.0
"""Most time and memory that opening a million examples may take."""
_SIDE_PX, _PER_IMAGE, _SHAPES, _READ = 64, 5, 64, 2000


@dataclass
class MadeUp:
    """An Env of examples of boxes, five about each image; the files of its images are never opened."""

    num_examples: int
    """Examples of the split."""
    split: str = "train"
    """Name of the split."""

    def __post_init__(self) -> None:
        boxes = np.random.default_rng(0).integers(4, 30, (_SHAPES, 4))
        self._truths = [self._box(*box.tolist()) for box in boxes]
        self._sha256 = image_sha256(np.zeros((_SIDE_PX, _SIDE_PX, 3), np.uint8))

    @staticmethod
    def _box(left: int, top: int, width: int, height: int) -> Truth:
        mask = np.zeros((1, _SIDE_PX, _SIDE_PX), np.bool_)
        mask[0, top : top + height, left : left + width] = True
        return Truth(mask)

    @property
    def fingerprint(self) -> str:
        """Hash of all that is asked: the number of examples says it."""
        return f"{self.num_examples:064x}"

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """Nothing is left out."""
        return {}

    def phrase_words(self) -> set[str]:
        """Words of the phrases."""
        return {"the", "box", *map(str, range(_SHAPES))}

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        image = ImageRef(f"images/{index // _PER_IMAGE:09d}.jpg", self._sha256, _SIDE_PX, _SIDE_PX)
        shape = index % _SHAPES
        prompt = Prompt.of_text(f"the box {shape}")
        return Example(f"made/{index}", image, prompt, self._truths[shape], self.split, "made up", "CC0-1.0")

    def image(self, ref: ImageRef) -> NDArray[np.uint8]:
        """Pixels of any image."""
        return np.zeros((ref.height, ref.width, 3), np.uint8)

    def image_file(self, ref: ImageRef) -> ShownFile:
        """A file that is not there."""
        return ShownFile(Path(ref.key), False, View())

    def scene(self, index: int) -> list[Example]:
        """The examples of one image."""
        first = index - index % _PER_IMAGE
        return [self[k] for k in range(first, min(first + _PER_IMAGE, self.num_examples))]


@dataclass(frozen=True)
class ExamplesBench:
    """What was measured."""

    examples: int
    """Examples written."""
    write_seconds: float
    """Time of writing them."""
    written_mb: float
    """Size of the shards."""
    open_seconds: float
    """Time of opening them in a new process."""
    open_mb: float
    """Resident memory that opening added to that of the imports."""
    random_us: float
    """Microseconds for each example at a random index."""
    in_order_us: float
    """Microseconds for each example in the order of the env."""


def write(folder: Path, num_examples: int, console: Console) -> float:
    """Write the examples to `folder`; returns seconds, those of an earlier call left out."""
    writer, started = (
        SplitWriter(folder / "train", MadeUp(num_examples), {"env": "made up"}, False),
        time.perf_counter(),
    )
    if writer.is_whole:
        return 0.0
    for index in bar(range(writer.next_index, num_examples), "writing examples", console):
        writer.add(index)
    writer.finish()
    return time.perf_counter() - started


def measure(folder: Path) -> dict[str, float]:
    """Open the shards and read some of them, in this process, which should have done nothing else."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    env = Shards("train", str(folder))
    seconds, rss = time.perf_counter() - started, process.memory_info().rss
    env[0]  # kernels are compiled or loaded
    num = min(_READ, len(env))
    places = np.random.default_rng(0).integers(0, len(env), num).tolist()
    return {
        "open_seconds": seconds,
        "open_mb": (rss - before) / 1e6,
        "random_us": _microseconds(env, places),
        "in_order_us": _microseconds(env, list(range(num))),
    }


def _microseconds(env: Shards, places: list[int]) -> float:
    started = time.perf_counter()
    for place in places:
        env[place]
    return (time.perf_counter() - started) / len(places) * 1e6


def bench(num_examples: int, folder: Path, console: Console) -> ExamplesBench:
    """Write the examples, then measure in a process of its own."""
    seconds = write(folder, num_examples, console)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    command = [sys.executable, "-m", "rl.bench.examples", f"{folder}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return ExamplesBench(num_examples, seconds, written, **json.loads(done.stdout.splitlines()[-1]))


def table(found: ExamplesBench) -> Table:
    """What was measured, for people."""
    table = Table("what", "measured", title=f"{found.examples:,} prepared examples")
    table.columns[1].justify = "right"
    table.add_row("written", f"{found.write_seconds:,.1f} s, {found.written_mb:,.0f} MB")
    table.add_row("opened", f"{found.open_seconds:.3f} s (at most {OPEN_BAR_SECONDS:g} s)")
    table.add_row("memory of opening", f"{found.open_mb:.0f} MB (at most {OPEN_BAR_MB:g} MB)")
    table.add_row("an example at random, in order", f"{found.random_us:,.0f} µs, {found.in_order_us:,.0f} µs")
    return table


def as_json(found: ExamplesBench) -> dict[str, float | dict[str, float]]:
    """What was measured, and what opening a million may take."""
    return asdict(found) | {"bar": {"open_seconds": OPEN_BAR_SECONDS, "open_mb": OPEN_BAR_MB}}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
