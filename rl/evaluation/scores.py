"""How good answers are on a fixed set of scenes: scores of a scene, summaries with intervals, paired differences.

An answer is worth here what it is worth to the rewards: both ask `compare` of rewards/comparison.py. gIoU is the mean
of the scenes' IoU, cIoU the summed intersection over the summed union, Acc@0.5 the share of scenes with IoU 0.5 or
more. Intervals are 95 % percentile bootstrap intervals over scenes (Efron, 1979). The same functions score filled
polygons and refined masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from envs.example import PART_END, Example, Truth
from envs.geometry.contours import rings_from_mask
from envs.geometry.pools import oracle
from envs.polygons import Answer, AnswerStatus, instance_from_rings
from rewards.score import Target, compare

_ON_A_LINE = 3
"""Stages whose scores and intervals fit side by side on a line of 80 characters."""
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

STAGE_TITLES = {"sft": "SFT", "control": "SFT, as long", "rl": "after RL", "refined": "RL + refiner"}
METRIC_TITLES = {
    "giou": "gIoU",
    "ciou": "cIoU",
    "acc50": "Acc@0.5",
    "boundary_iou": "boundary IoU",
    "valid": "valid answers",
}


@dataclass(frozen=True)
class SceneScore:
    """One answer against the truth of its scene."""

    example_id: str
    iou: float
    """In [0, 1], as rewards have it: where no true pixel counts, 1 for the status `empty` and 0 for any other."""
    intersection_px: int
    """Pixels of answer and truth, ignored ones left out."""
    union_px: int
    """Pixels of answer or truth, ignored ones left out; the truth's own area for an invalid status."""
    boundary_iou: float
    """IoU of the inner boundary bands of answer and truth, in [0, 1] (Cheng et al., 2021); without a true pixel, as
    `iou`."""
    valid: bool
    """Whether the status is `ok` or `empty`."""
    status: AnswerStatus
    """How the answer read."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The estimate and both ends."""
        return self.value, self.low, self.high

    def __str__(self) -> str:
        """Text such as "0.512 [0.498, 0.527]"."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class StageScores:
    """One policy, with or without refiner, on a fixed set of scenes; the field names are the keys of summary.json."""

    giou: Interval
    ciou: Interval
    acc50: Interval
    boundary_iou: Interval
    valid: Interval

    def intervals(self) -> dict[str, Interval]:
        """The scores by field name, in the order of the table."""
        return {
            "giou": self.giou,
            "ciou": self.ciou,
            "acc50": self.acc50,
            "boundary_iou": self.boundary_iou,
            "valid": self.valid,
        }


def score_answer(answer: Answer, truth: Truth, example_id: str, asked: str = "mask") -> SceneScore:
    """Score an answer; pixels in `truth.ignore` count nowhere, and an invalid answer scores 0 whatever is true.

    Boxes and points that were asked for have as IoU what rewards/places.py says, and no pixels in a cIoU.

    Where no true pixel counts, since nothing fits or since all of it is ignored, only the answer `empty` is right: an
    outline too thin to hold a pixel scores 0, as it earns 0.
    """
    target = Target.from_truth(truth)
    [found] = compare([answer], target, example_id, asked=asked)
    if asked != "mask":
        return SceneScore(example_id, found.iou, 0, 0, found.iou, answer.status.valid, answer.status)
    union_px = found.answer_area_px + target.area_px - found.intersection_px
    status = answer.status
    return SceneScore(example_id, found.iou, found.intersection_px, union_px, found.boundary_iou, status.valid, status)


def score_mask(mask: NDArray[np.bool_], truth: Truth, status: AnswerStatus, example_id: str) -> SceneScore:
    """Score a mask, bool [H, W], such as a refined one, as `score_answer` does the answer that draws just its pixels.

    status: how the answer read that the mask was made of; of any status but `ok` the mask counts as empty. So no mask
    mends an answer which drew where nothing is true: one that a refiner emptied scores 0, as `refined_iou` pays.
    """
    drawn = (instance_from_rings(rings_from_mask(mask)),) if status is AnswerStatus.OK else ()
    return score_answer(Answer(status, drawn), truth, example_id)


def resample_indices(num_scenes: int, seed: int) -> NDArray[np.int64]:
    """[R, S] int64: R = NUM_RESAMPLES draws of S = num_scenes scene numbers, with replacement."""
    return np.random.default_rng(seed).integers(0, num_scenes, (NUM_RESAMPLES, num_scenes))


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _mean_interval(values: NDArray[np.float64], indices: NDArray[np.int64]) -> Interval:
    return _interval(values.mean(), values[indices].mean(axis=1))


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """The mean of [S] numbers, one a scene, and its bootstrap interval over scenes.

    Raises ValueError without any.
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        raise ValueError("No scene was scored, so there is no mean; evaluate at least one scene.")
    return _mean_interval(numbers, resample_indices(len(numbers), seed))


def pool_oracle(examples: Sequence[Example]) -> Interval | None:
    """gIoU of the best choice from each example's candidates (envs/geometry/pools.py), which bounds every policy that
    chooses; of those that have some, None where none has."""
    ious = [oracle(one.candidates, one.truth.union) for one in examples if one.candidates is not None]
    return mean_interval(ious) if ious else None


def _pooled_iou(intersection_px: ArrayLike, union_px: ArrayLike, giou: ArrayLike) -> NDArray[np.float64]:
    # Without a single true or drawn pixel there is nothing to pool; the scenes' mean IoU stands in.
    return np.where(np.greater(union_px, 0), np.divide(intersection_px, np.maximum(union_px, 1)), giou)


def summarise(scenes: Sequence[SceneScore], seed: int = 0) -> StageScores:
    """Mean scores over S scenes with bootstrap intervals; cIoU resamples intersection and union of a scene together.

    Raises ValueError without any scene.
    """
    if not scenes:
        raise ValueError("No scene was scored, so there is nothing to summarise; evaluate at least one scene.")
    iou = np.array([scene.iou for scene in scenes])
    intersection_px = np.array([scene.intersection_px for scene in scenes])
    union_px = np.array([scene.union_px for scene in scenes])
    indices = resample_indices(len(scenes), seed)
    ciou = _pooled_iou(intersection_px.sum(), union_px.sum(), iou.mean())
    resampled_ciou = _pooled_iou(
        intersection_px[indices].sum(axis=1), union_px[indices].sum(axis=1), iou[indices].mean(axis=1)
    )
    return StageScores(
        giou=_mean_interval(iou, indices),
        ciou=_interval(float(ciou), resampled_ciou),
        acc50=_mean_interval((iou >= 0.5).astype(np.float64), indices),
        boundary_iou=_mean_interval(np.array([scene.boundary_iou for scene in scenes]), indices),
        valid=_mean_interval(np.array([float(scene.valid) for scene in scenes]), indices),
    )


def by_part(scenes: Sequence[SceneScore]) -> dict[str, list[SceneScore]]:
    """Scenes by the part of the env that asked them, as their ids begin; empty for an env that has no parts."""
    parts: dict[str, list[SceneScore]] = {}
    for scene in scenes:
        part, end, _ = scene.example_id.rpartition(PART_END)
        if end:
            parts.setdefault(part, []).append(scene)
    return dict(sorted(parts.items()))


def parts_table(stages: Mapping[str, Mapping[str, StageScores]]) -> Table:
    """gIoU of each part in each stage, each cell "value [low, high]"; stages: by name, the scores by part."""
    table = Table(title="gIoU by part of the data", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    for stage in stages:
        table.add_column(STAGE_TITLES.get(stage, stage), justify="right", no_wrap=True)
    for part in next(iter(stages.values()), {}):
        table.add_row(part, *(Text(str(scores[part].giou)) for scores in stages.values()))
    return table


def parts_dict(stages: Mapping[str, Mapping[str, StageScores]]) -> dict[str, object]:
    """Scores by stage and part, JSON-ready."""
    return {stage: {part: _stage_dict(scores) for part, scores in parts.items()} for stage, parts in stages.items()}


def paired_difference(a: Sequence[SceneScore], b: Sequence[SceneScore], seed: int = 0) -> Interval:
    """gIoU of `b` less gIoU of `a`: the mean of the per-scene differences, bootstrapped over scenes.

    Raises ValueError where the two do not hold the same scenes in the same order, or hold none.
    """
    if not a or len(a) != len(b):
        raise ValueError(
            f"A paired difference needs the same scenes twice, but got {len(a)} and {len(b)}; "
            "evaluate both on one split with the same number of scenes."
        )
    for first, second in zip(a, b, strict=True):
        if first.example_id != second.example_id:
            raise ValueError(
                f"A paired difference needs the same scenes in the same order, but {first.example_id!r} meets "
                f"{second.example_id!r}; evaluate both on one split with the same number of scenes."
            )
    differences = np.array([second.iou - first.iou for first, second in zip(a, b, strict=True)])
    return _mean_interval(differences, resample_indices(len(differences), seed))


def stage_table(stages: Mapping[str, StageScores]) -> Table:
    """A table of one row a score and one column a stage, each cell "value [low, high]", 80 characters wide for three.

    Of more stages the interval stands below the value: as wide for four.

    stages: by a key of STAGE_TITLES, or by any name to show.
    """
    end = " " if len(stages) <= _ON_A_LINE else "\n"
    table = Table(title="Scores with 95 % bootstrap intervals over scenes", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("score")
    for stage in stages:
        table.add_column(STAGE_TITLES.get(stage, stage), justify="right", no_wrap=True)
    for metric, title in METRIC_TITLES.items():
        cells = [str(scores.intervals()[metric]) for scores in stages.values()]
        table.add_row(title, *(Text(cell.replace(" [", f"{end}[")) for cell in cells))
    return table


def _stage_dict(scores: StageScores) -> dict[str, object]:
    intervals = scores.intervals()
    return {name: interval.value for name, interval in intervals.items()} | {
        "intervals": {name: {"low": interval.low, "high": interval.high} for name, interval in intervals.items()}
    }


def summary_dict(
    stages: Mapping[str, StageScores],
    paired: Mapping[str, Interval],
    num_scenes: int,
    seconds: float,
    peak_rss_gib: float,
    extras: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """What summary.json holds: JSON-ready scores by stage, paired gIoU differences, and what the run took.

    stages: by `sft`, `rl`, `refined`; plain numbers, with low and high of each beside them under `intervals`.
    paired: by `rl_minus_sft`, `rl_minus_control`, `refined_minus_rl`. peak_rss_gib: GiB of all processes of the run.
    Raises ValueError where a key of `extras` is one of the fixed ones.
    """
    fixed: dict[str, object] = {
        "stages": {stage: _stage_dict(scores) for stage, scores in stages.items()},
        "paired": {
            name: {"giou": interval.value, "low": interval.low, "high": interval.high}
            for name, interval in paired.items()
        },
        "num_scenes": num_scenes,
        "seconds": seconds,
        "peak_rss_gib": peak_rss_gib,
    }
    clashes = sorted(fixed.keys() & (extras or {}).keys())
    if clashes:
        raise ValueError(f"extras of the summary hold {clashes}, which the summary itself writes; rename them.")
    return fixed | dict(extras or {})
