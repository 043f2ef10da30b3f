"""`polytrace bench rewards`: IoU of a group of answers, by us and by what one would take instead, on the same outlines.

One thread each. All contenders of a case are timed in turn, several rounds, and medians are compared, so that a machine
whose speed drifts slows them all alike. A contender gets the answers as lists of rings and the truth as it likes it
best, prepared outside of the clock; it gives the IoU of every answer.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from envs.example import Truth
from envs.geometry.raster import fill
from envs.geometry.rle import rle_from_mask
from envs.polygons import Ring, answer_from_rings, flat_answers
from rewards.kernels.overlap import overlap, warm
from rewards.score import Target, compare
from rewards.scorer import Scorer
from rl.bench.outlines import OUTLINES, overlap_in_c, smooth
from rl.config.rewards import load_rewards

Iou = Callable[[], NDArray[np.float64]]
BAR = 25.0
"""How many times as fast as pycocotools we mean to be at 480 x 640 pixels, 64 vertices, groups of 64."""
_ROUNDS, _ROUND_SECONDS = 9, 4e-3
_ANSWERS = {"shapely": 16, "skimage": 2}
"""Most answers of a group on which a slow contender is timed, and in three rounds only."""


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    kind: str
    """Kind of outline."""
    height: int
    width: int
    vertices: int
    group: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.kind}, {self.height} x {self.width} px, {self.vertices} vertices, group of {self.group}"


@dataclass(frozen=True)
class Timed:
    """What a case took."""

    case: Case
    microseconds: Mapping[str, float]
    """An answer, by contender, the median of the rounds."""
    iou_difference: Mapping[str, float]
    """Largest difference of an IoU from ours, by contender."""

    @property
    def ratio_pycocotools(self) -> float:
        """How many times as long pycocotools takes as we do."""
        return self.microseconds["pycocotools"] / self.microseconds["polytrace"]

    @property
    def ratio_c(self) -> float | None:
        """How many times as long our kernel alone takes as the same in C; None without a compiler."""
        in_c = self.microseconds.get("kernel in C")
        return None if in_c is None else self.microseconds["kernel in Numba"] / in_c


def cases(quick: bool) -> list[Case]:
    """All cases; with `quick`, one of each size."""
    sizes = [(224, 224), (480, 640), (1024, 1024)]
    if quick:
        return [Case("smooth", *size, 64, 8) for size in sizes]
    grid = [Case("smooth", *size, vertices, group) for size in sizes for vertices in (8, 64, 256) for group in (8, 64)]
    others = [Case(kind, *size, 64, 64) for kind in ("ragged", "concave") for size in sizes]
    return grid + others


def measure(case: Case, seed: int = 0) -> Timed:
    """Time every contender that is installed on the outlines of a case."""
    rng = np.random.default_rng(seed)
    draw = OUTLINES[case.kind]
    answers = [draw(rng, case.vertices, case.height, case.width) for _ in range(case.group)]
    target = Target.from_rings([draw(rng, 40, case.height, case.width)], case.height, case.width)
    contenders: dict[str, Iou] = {"polytrace": lambda: target.overlap([[ring] for ring in answers], threads=1).iou}
    contenders |= _others(answers, target)
    kernels = _kernels(answers, target)
    for run in kernels.values():
        assert np.array_equal(run(), kernels["kernel in Numba"]()), "C and Numba count different pixels"
    ours = contenders["polytrace"]()
    given = {name: run() for name, run in contenders.items()}
    difference = {name: float(np.abs(iou - ours[: len(iou)]).max()) for name, iou in given.items()}
    num = dict.fromkeys(kernels, case.group) | {name: len(iou) for name, iou in given.items()}
    seconds = median_seconds({**contenders, **kernels})
    return Timed(case, {name: 1e6 * value / num[name] for name, value in seconds.items()}, difference)


def _kernels(answers: Sequence[Ring], target: Target) -> dict[str, Callable[[], NDArray[np.int64]]]:
    """Our kernel alone, on flat arrays, and the same in C."""
    flat, in_c = flat_answers([[ring] for ring in answers]), overlap_in_c()
    runs = {"kernel in Numba": lambda: overlap(*flat, target.spans, target.table, target.width)}
    return runs if in_c is None else runs | {"kernel in C": lambda: in_c(flat, target)}


def _others(answers: Sequence[Ring], target: Target) -> dict[str, Iou]:
    """What else is installed, by name."""
    makers = {"pycocotools": _pycocotools, "cv2": _cv2, "shapely": _shapely, "skimage": _skimage}
    return {name: make(answers[: _ANSWERS.get(name)], target) for name, make in makers.items() if find_spec(name)}


def _pycocotools(answers: Sequence[Ring], target: Target) -> Iou:
    from pycocotools import mask as coco_mask

    height, width = target.height, target.width
    truth = {"size": [height, width], "counts": rle_from_mask(target.mask).encode()}
    lists = [ring.ravel().tolist() for ring in answers]
    return lambda: coco_mask.iou(coco_mask.frPyObjects(lists, height, width), [truth], [False])[:, 0]


def _cv2(answers: Sequence[Ring], target: Target) -> Iou:
    import cv2

    cv2.setNumThreads(1)
    truth, shape = target.mask, (target.height, target.width)

    def iou(ring: Ring) -> float:
        # Four bits of a pixel, as fine as the function takes them, and centres instead of corners at whole numbers.
        mask = np.zeros(shape, np.uint8)
        cv2.fillPoly(mask, [np.rint((ring - 0.5) * 16).astype(np.int32)], 1, shift=4)
        filled = mask.view(bool)
        return float((filled & truth).sum() / (filled | truth).sum())

    return lambda: np.array([iou(ring) for ring in answers])


def _shapely(answers: Sequence[Ring], target: Target) -> Iou:
    import shapely

    from envs.geometry.contours import rings_from_mask

    truth = shapely.union_all([shapely.Polygon(ring) for ring in rings_from_mask(target.mask)])

    def iou(ring: Ring) -> float:
        drawn = shapely.Polygon(ring)
        drawn = drawn if drawn.is_valid else shapely.make_valid(drawn)
        shared = drawn.intersection(truth).area
        return float(shared / (drawn.area + truth.area - shared))

    return lambda: np.array([iou(ring) for ring in answers])


def _skimage(answers: Sequence[Ring], target: Target) -> Iou:
    from skimage.draw import polygon2mask

    truth = target.mask

    def iou(ring: Ring) -> float:
        filled = polygon2mask(truth.shape, ring[:, ::-1] - 0.5)
        return float((filled & truth).sum() / (filled | truth).sum())

    return lambda: np.array([iou(ring) for ring in answers])


def median_seconds(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of a call of each, timed in turn; a round repeats what is quick."""
    repeats = {}
    for name, run in runs.items():
        run()
        started = time.perf_counter()
        run()
        repeats[name] = max(1, round(_ROUND_SECONDS / (time.perf_counter() - started)))
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(_ROUNDS):
        for name, run in runs.items():
            if k < 3 or name not in _ANSWERS:
                started = time.perf_counter()
                for _ in range(repeats[name]):
                    run()
                rounds[name].append((time.perf_counter() - started) / repeats[name])
    return {name: float(np.median(seconds)) for name, seconds in rounds.items()}


def bench(quick: bool) -> Iterator[Timed]:
    """Every case, as it is measured."""
    warm()
    return (measure(case) for case in cases(quick))


def table(timed: Sequence[Timed]) -> Table:
    """A row per case: microseconds per answer by contender, and the ratios that count; 80 characters wide."""
    names = [name for name in dict.fromkeys(name for one in timed for name in one.microseconds) if "kernel" not in name]
    made = Table(title="Microseconds an answer, one thread", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.caption = "N vertices, groups of G; x coco: pycocotools over ours; x C: our kernel over the same in C"
    heads = [{"polytrace": "ours", "pycocotools": "coco"}.get(name, name) for name in names]
    for column in ("outline", "pixels", "N", "G", *heads, "x coco", "x C"):
        made.add_column(column, justify="left" if column in ("outline", "pixels") else "right", no_wrap=True)
    for one in timed:
        case = one.case
        shape = case.kind, f"{case.height}x{case.width}", f"{case.vertices}", f"{case.group}"
        cells = [_short(one.microseconds[name]) if name in one.microseconds else "" for name in names]
        ratio_c = "" if one.ratio_c is None else f"{one.ratio_c:.2f}"
        made.add_row(*shape, *cells, f"{one.ratio_pycocotools:.1f}", ratio_c)
    return made


def _short(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}" if value < 100 else f"{value:.0f}"


def as_json(timed: Sequence[Timed]) -> dict[str, object]:
    """What --json prints: `cases`, and `ratio`: at the bar by kind of outline, the lowest of all, and that to C."""
    rows = [
        {**asdict(one.case), "microseconds": dict(one.microseconds), "iou_difference": dict(one.iou_difference)}
        | {"ratio_pycocotools": one.ratio_pycocotools, "ratio_c": one.ratio_c}
        for one in timed
    ]
    at_bar = {
        one.case.kind: one.ratio_pycocotools
        for one in timed
        if (one.case.height, one.case.vertices, one.case.group) == (480, 64, 64)
    }
    in_c = [one.ratio_c for one in timed if one.ratio_c is not None]
    return {
        "cases": rows,
        "ratio": {
            "pycocotools": at_bar,
            "pycocotools_lowest": min(one.ratio_pycocotools for one in timed),
            "c_highest": max(in_c, default=None),
            "bar": BAR,
        },
    }


GROUPS, ANSWERS, SIDE, VERTICES = 32, 16, 64, 12
_BATCH_ROUNDS = 15


def batch_milliseconds() -> float:
    """Median milliseconds for 32 groups of 16 answers of 12 vertices over 64 x 64 pixels, in one thread."""
    warm()
    rng, scorer = np.random.default_rng(0), Scorer(load_rewards(Path("tiny")).recipes)
    masks = [fill(smooth(rng, 40, SIDE, SIDE), np.array([0, 40]), SIDE, SIDE)[None] for _ in range(GROUPS)]
    answers = [[answer_from_rings([smooth(rng, VERTICES, SIDE, SIDE)]) for _ in range(ANSWERS)] for _ in range(GROUPS)]
    seconds = []
    for _ in range(_BATCH_ROUNDS):
        started = time.perf_counter()
        for mask, group in zip(masks, answers, strict=True):
            scorer.columns(compare(group, Target.from_truth(Truth(mask))))
        seconds.append(time.perf_counter() - started)
    scorer.close()
    return 1e3 * float(np.median(seconds))
