"""`polytrace bench benchmark`: answers scored under `res`, by us and by a plain pycocotools script.

Both are given the same outlines and the same run-length texts of what is true, at 640 x 480 pixels, and give cIoU, mIoU
and P@t. Ours is measured without Boundary IoU, which the script does not give (its bands are then as wide as the image,
and so the masks themselves), and with it, as benchmarks have it. Outlines are of 64 vertices, as models draw them, and
the same traced along pixel edges, which both rasters fill alike, so that all scores must be equal there. An object is
asked for by one sentence, or by three in a row, as RefCOCO has about three: what is true is then read once for the
three of them. Ours runs on all processors, the script on one; so processor time, of all threads together, is compared
too.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from envs.geometry.contours import rings_from_mask
from envs.geometry.raster import fill
from envs.geometry.rle import rle_from_mask
from envs.polygons import Ring, answer_from_rings, flatten_rings
from rl.bench.outlines import smooth
from rl.bench.side_by_side import alternate
from rl.evaluation.protocols.base import CodedTruth, MaskProtocol, protocol_named

HEIGHT, WIDTH, VERTICES = 480, 640, 64
ANSWERS, QUICK_ANSWERS, ROUNDS = 10_000, 1000, 3
BAR = 20.0
"""How many times as fast as the script we mean to be."""
_WHOLE_IMAGE = 0.999
"""Width of a boundary band, as a share of the diagonal, that leaves nothing of any mask."""
OUTLINES = (f"{VERTICES} vertices", "pixel edges")
SENTENCES = (3, 1)

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """Answers to be scored."""

    outline: str
    """One of OUTLINES."""
    sentences: int
    """Answers in a row about one object."""
    answers: int
    """A of them."""
    boundary: bool = False
    """Whether ours gives Boundary IoU too."""


@dataclass(frozen=True)
class Timed:
    """What a case took."""

    case: Case
    seconds: tuple[float, ...]
    """Ours on all processors, by round."""
    script_seconds: tuple[float, ...]
    """The script's, by round."""
    processor_seconds: tuple[float, ...]
    """Processor seconds of all our threads together, by round."""
    script_processor_seconds: tuple[float, ...]
    """The script's, by round."""
    difference: float
    """Largest difference of a score."""

    @property
    def ratios(self) -> list[float]:
        """How many times as long the script takes, by round."""
        return [other / own for own, other in zip(self.seconds, self.script_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return float(np.median(self.ratios))

    @property
    def processor_ratio(self) -> float:
        """How many times as much processor time the script takes, the median of the rounds."""
        pairs = zip(self.processor_seconds, self.script_processor_seconds, strict=True)
        return float(np.median([other / own for own, other in pairs]))


def cases(quick: bool) -> list[Case]:
    """All cases; with `quick`, the same of fewer answers."""
    answers = QUICK_ANSWERS if quick else ANSWERS
    return [
        Case(outline, sentences, answers, boundary)
        for boundary in (False, True)
        for sentences in SENTENCES
        for outline in OUTLINES
    ]


def bench(quick: bool) -> Iterator[Timed]:
    """Every case, as it is measured."""
    return (measure(case) for case in cases(quick))


def measure(case: Case, seed: int = 0) -> Timed:
    """Time both on the outlines of a case, in turn."""
    band = {} if case.boundary else {"band_share": _WHOLE_IMAGE}
    protocol, rings, truths = protocol_named("res", band), *_made(case, seed)
    answers = [answer_from_rings(each) for each in rings]

    def ours() -> Scores:
        return protocol.scores(protocol.judge(answers, truths))

    def script() -> Scores:
        return _script(rings, truths, protocol)

    own, others = ours(), script()
    difference = max(abs(value - own[title]) for title, value in others.items())
    processor: list[float] = []
    script_processor: list[float] = []
    seconds, script_seconds = alternate(_clocked(ours, processor), _clocked(script, script_processor), ROUNDS)
    return Timed(case, tuple(seconds), tuple(script_seconds), tuple(processor), tuple(script_processor), difference)


def _clocked(run: Callable[[], object], processor_seconds: list[float]) -> Callable[[], None]:
    """`run`, its processor time added to a list."""

    def clocked() -> None:
        started = time.process_time()
        run()
        processor_seconds.append(time.process_time() - started)

    return clocked


def _made(case: Case, seed: int) -> tuple[list[list[Ring]], list[CodedTruth]]:
    """Rings of each answer, and what is true."""
    rng = np.random.default_rng(seed)
    rings, truths, counts = [], [], ""
    for a in range(case.answers):
        if a % case.sentences == 0:
            counts = rle_from_mask(fill(*flatten_rings([smooth(rng, 40, HEIGHT, WIDTH)]), HEIGHT, WIDTH))
        drawn = [smooth(rng, VERTICES, HEIGHT, WIDTH)]
        if case.outline == "pixel edges":
            drawn = rings_from_mask(fill(*flatten_rings(drawn), HEIGHT, WIDTH))
        rings.append(drawn)
        truths.append(CodedTruth(f"{a}", HEIGHT, WIDTH, (counts,)))
    return rings, truths


def _script(rings: Sequence[Sequence[Ring]], truths: Sequence[CodedTruth], protocol: MaskProtocol) -> Scores:
    """What one writes with pycocotools: polygons to a mask, the true mask decoded, pixels summed."""
    from pycocotools import mask as coco_mask

    ious, shared_px, union_px = [], 0, 0
    for drawn, truth in zip(rings, truths, strict=True):
        parts = coco_mask.frPyObjects([ring.ravel().tolist() for ring in drawn], HEIGHT, WIDTH)
        mask = coco_mask.decode(coco_mask.merge(parts))
        true = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": truth.instances[0]})
        shared, union = int(np.logical_and(mask, true).sum()), int(np.logical_or(mask, true).sum())
        ious.append(shared / union)
        shared_px, union_px = shared_px + shared, union_px + union
    reached = {f"P@{t:g}": fmean(iou >= t for iou in ious) for t in protocol.thresholds}
    return {"cIoU": shared_px / union_px, "mIoU": fmean(ious)} | reached


def table(timed: Sequence[Timed]) -> Table:
    """A row per case; 80 characters wide."""
    made = Table(title="Answers scored under res, 640 x 480 px", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    processors = len(os.sched_getaffinity(0))
    made.caption = f"us an answer; x: the script over ours on {processors} processors; x cpu: of processor time"
    for column in ("outlines", "sentences", "boundary", "ours", "script", "x", "rounds", "x cpu", "differs"):
        made.add_column(column, justify="left" if column == "outlines" else "right", no_wrap=True)
    for one in timed:
        micros = [1e6 * float(np.median(each)) / one.case.answers for each in (one.seconds, one.script_seconds)]
        rounds = f"{min(one.ratios):.0f}-{max(one.ratios):.0f}"
        ratios = f"{one.ratio:.1f}", rounds, f"{one.processor_ratio:.1f}"
        cells = [*(f"{value:.1f}" for value in micros), *ratios, f"{one.difference:.0e}"]
        made.add_row(one.case.outline, f"{one.case.sentences}", "too" if one.case.boundary else "no", *cells)
    return made


def as_json(timed: Sequence[Timed]) -> dict[str, Any]:
    """What --json prints: `ratio` of the first case and of the slowest, of processor time too, and all `cases`."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "ratio": {
            "script": timed[0].ratio,
            "script_lowest": min(one.ratio for one in timed),
            "script_processor_time": timed[0].processor_ratio,
            "bar": BAR,
        },
        "cases": [asdict(one.case) | _numbers(one) for one in timed],
    }


def _numbers(one: Timed) -> dict[str, Any]:
    return {
        "seconds": float(np.median(one.seconds)),
        "script_seconds": float(np.median(one.script_seconds)),
        "ratio": one.ratio,
        "ratio_spread": [min(one.ratios), max(one.ratios)],
        "processor_ratio": one.processor_ratio,
        "difference": one.difference,
    }
