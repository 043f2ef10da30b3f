"""`polytrace bench vertices`: overlaps of every outline that lacks one vertex, in one pass and one at a time.

One at a time means the fastest way there is without the pass: the kernel of rewards/kernels/overlap.py on flat arrays
of all outlines that lack a vertex, made outside of the clock. One thread each, in turn, medians compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from envs.polygons import flat_answers
from rewards.kernels.overlap import overlap, warm
from rewards.kernels.vertices import left_out
from rewards.target import Target
from rl.bench.outlines import OUTLINES
from rl.bench.scoring.rewards import median_seconds

_GROUP = 8


@dataclass(frozen=True)
class Timed:
    """What a case took."""

    kind: str
    """Kind of outline."""
    height: int
    width: int
    vertices: int
    pass_us: float
    """Microseconds an answer in one pass over its vertices."""
    each_us: float
    """Microseconds an answer, each outline that lacks a vertex by itself."""

    @property
    def ratio(self) -> float:
        """How many times as long one at a time takes."""
        return self.each_us / self.pass_us


def cases() -> list[tuple[str, int, int, int]]:
    """(kind, height, width, vertices) of all cases."""
    sizes = [(64, 64), (480, 640), (1024, 1024)]
    return [(kind, *size, num) for kind in ("smooth", "concave") for size in sizes for num in (12, 64, 256)]


def bench() -> Iterator[Timed]:
    """Every case, as it is measured. Raises AssertionError where the two ways count different pixels."""
    warm()
    for case in cases():
        yield measure(*case)


def measure(kind: str, height: int, width: int, vertices: int) -> Timed:
    """Time both ways on the outlines of a case."""
    rng = np.random.default_rng(0)
    answers = [OUTLINES[kind](rng, vertices, height, width) for _ in range(_GROUP)]
    target = Target.from_rings([OUTLINES[kind](rng, 40, height, width)], height, width)
    flat = flat_answers([[ring] for ring in answers])
    lacking = flat_answers([[np.delete(ring, v, axis=0)] for ring in answers for v in range(len(ring))])
    in_one = lambda: left_out(*flat, target.spans, target.table, target.ignored, target.width)  # noqa: E731  # two calls to time
    each = lambda: overlap(*lacking, target.spans, target.table, target.width)  # noqa: E731
    assert np.array_equal(in_one(), each()[:, :2]), "the pass counts other pixels"
    seconds = median_seconds({"pass": in_one, "each": each})
    return Timed(kind, height, width, vertices, 1e6 * seconds["pass"] / _GROUP, 1e6 * seconds["each"] / _GROUP)


def table(timed: Sequence[Timed]) -> Table:
    """A row per case."""
    made = Table(title="Leave-one-out overlaps, microseconds an answer, one thread", box=SIMPLE_HEAD)
    for column in ("outline", "pixels", "N", "in one pass", "one at a time", "ratio"):
        made.add_column(column, justify="left" if column in ("outline", "pixels") else "right", no_wrap=True)
    for one in timed:
        shape = one.kind, f"{one.height}x{one.width}", f"{one.vertices}"
        made.add_row(*shape, f"{one.pass_us:.1f}", f"{one.each_us:.1f}", f"{one.ratio:.1f}")
    return made


def as_json(timed: Sequence[Timed]) -> dict[str, object]:
    """What --json prints: `cases`, and `ratio`, the lowest and the highest."""
    ratios = [one.ratio for one in timed]
    rows = [asdict(one) | {"ratio": one.ratio} for one in timed]
    return {"cases": rows, "ratio": {"lowest": min(ratios), "highest": max(ratios)}}
