"""What became of everything that was found in images: a funnel by stage, and how good labels are before and after they
are verified, where the truth is known."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from envs.shards.files import CARD
from rollout.label.judged import TRUE_IOU
from rollout.label.objects import AT_THE_END, read_objects
from rollout.label.record import DECODED
from rollout.label.timings import Timings, read_timings

VERIFIERS = ("found_again", "agreement")
"""Stages that verify labels."""
THRESHOLDS = tuple(k / 20 for k in range(20))
"""Least IoUs of a verifier at which the curve is told."""
SIZES = (0.0, 0.01, 0.04, 0.16, 1.01)
"""Shares of the image that part objects by size."""
_COLUMNS = ("image", "number", "name", "phrase", "stage", "reason", "numbers", "area", "height", "width", "example_id")


@dataclass(frozen=True)
class FunnelStep:
    """What one stage let pass."""

    stage: str
    refused: Mapping[str, int]
    """Objects that it refused, by reason."""
    left: int
    """Objects that are left behind it, of all that any stage found."""


@dataclass(frozen=True)
class CurvePoint:
    """Labels that a verifier would keep at a threshold."""

    least: float
    objects: int
    share: float
    """Share of those that it saw."""
    mean_iou: float
    """Their mean IoU with the truth; NaN of none."""


@dataclass(frozen=True)
class StageTime:
    """What a stage took."""

    stage: str
    core: float
    """Seconds of cores, of all its workers together."""
    wall: float
    """Seconds by the clock."""
    share: float
    """Share of the core seconds of all stages."""
    images_a_core_second: float

    @property
    def rate(self) -> str:
        """Images a core second, for a person."""
        rate = self.images_a_core_second
        return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


class LabelReport:
    """The numbers of one folder of labels."""

    def __init__(self, out: Path) -> None:
        """Raises FileNotFoundError or ValueError where the folder holds no labels, or none that can be read."""
        self.out = out
        rows = [row for table in read_objects(out, _COLUMNS) for row in table.to_pylist()]
        self.images = len({row["image"] for row in rows})
        self.refused_images = Counter(
            (row["stage"], row["reason"]) for row in rows if row["number"] is None and row["stage"]
        )
        self.objects = [row for row in rows if row["number"] is not None]
        for row in self.objects:
            row["numbers"] = json.loads(row["numbers"])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """How the labels were made, of the card of their split or what it was begun with."""
        for name in (CARD, "begun.json"):
            for path in sorted(self.out.glob(f"*/{name}")):
                held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["provenance"]
                return held
        raise FileNotFoundError(f"{self.out} holds no card of its labels; label the images anew in another folder.")

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Objects that became labels."""
        return [row for row in self.objects if row["stage"] is None]

    @property
    def kept_share(self) -> float:
        """Share of all objects that became labels; NaN where nothing was found."""
        return len(self.kept) / len(self.objects) if self.objects else float("nan")

    @cached_property
    def stages(self) -> list[str]:
        """Stages in their order, by the names that refusals have."""
        order = [DECODED, *(entry.get("called", entry["name"]) for entry in self.provenance["stages"])]
        return [*order, AT_THE_END]

    def funnel(self) -> list[FunnelStep]:
        """Each stage that refused an object, with how many are left behind it."""
        left, steps = len(self.objects), []
        for stage in dict.fromkeys(self.stages):
            refused = Counter(row["reason"] for row in self.objects if row["stage"] == stage)
            if refused or stage in self.stages[1:-1]:
                left -= refused.total()
                steps.append(FunnelStep(stage, dict(refused.most_common()), left))
        return steps

    @cached_property
    def verifiers(self) -> list[str]:
        """Verifying stages, by the names that their numbers have."""
        return [entry.get("called", entry["name"]) for entry in self.provenance["stages"] if _verifies(entry)]

    @property
    def is_judged(self) -> bool:
        """Whether the truth is known."""
        return any(TRUE_IOU in row["numbers"] for row in self.objects)

    def before(self, verifier: str) -> list[dict[str, Any]]:
        """Objects that a verifier saw: that have its numbers."""
        return [row for row in self.objects if any(key.startswith(f"{verifier}.") for key in row["numbers"])]

    def mean_iou(self, objects: Sequence[Mapping[str, Any]]) -> float:
        """Mean IoU with the truth of those whose truth is known; NaN of none."""
        known = [row["numbers"][TRUE_IOU] for row in objects if TRUE_IOU in row["numbers"]]
        return float(np.mean(known)) if known else float("nan")

    def before_and_after(self) -> tuple[float, float]:
        """Mean IoU with the truth of the objects that the first verifier saw, and of the labels; without a verifier of
        all objects with a mask, and of the labels."""
        masked = [row for row in self.objects if row["area"] is not None]
        before = self.before(self.verifiers[0]) if self.verifiers else masked
        return self.mean_iou(before), self.mean_iou(self.kept)

    def curve(self, verifier: str) -> list[CurvePoint]:
        """What a verifier would keep at each of THRESHOLDS of its `mask_iou`, and how good that is."""
        key = f"{verifier}.mask_iou"
        seen = [row["numbers"] for row in self.objects if key in row["numbers"] and TRUE_IOU in row["numbers"]]
        agreed = np.array([numbers[key] for numbers in seen])
        true = np.array([numbers[TRUE_IOU] for numbers in seen])
        return curve_of(agreed, true)

    def by_size(self) -> list[tuple[str, int, float, float]]:
        """(share of the image, objects, their mean IoU with the truth, share of them that was kept) of objects with a
        mask, by size."""
        found = []
        for low, high in pairwise(SIZES):
            mine = [row for row in self.objects if row["area"] is not None and low <= _share(row) < high]
            kept = sum(row["stage"] is None for row in mine) / len(mine) if mine else float("nan")
            name = f"{low:.0%} to {high:.0%}" if high <= 1 else f"{low:.0%} and more"
            found.append((name, len(mine), self.mean_iou(mine), kept))
        return found

    def agreement(self) -> list[tuple[str, str, int, float]]:
        """(one, other, objects, share on which both or neither agree by an IoU of 0.7) of each two verifiers."""
        found = []
        named = [name for name in self.verifiers if any(f"{name}.mask_iou" in row["numbers"] for row in self.objects)]
        for k, one in enumerate(named):
            for other in named[k + 1 :]:
                both = [
                    (row["numbers"][f"{one}.mask_iou"] >= 0.7, row["numbers"][f"{other}.mask_iou"] >= 0.7)
                    for row in self.objects
                    if f"{one}.mask_iou" in row["numbers"] and f"{other}.mask_iou" in row["numbers"]
                ]
                found.append((one, other, len(both), float(np.mean([a == b for a, b in both])) if both else np.nan))
        return found

    @cached_property
    def timings(self) -> Timings:
        """What the stages took; of no images where that was not kept."""
        return read_timings(self.out)

    def times(self) -> list[StageTime]:
        """Where the time went, stage by stage."""
        stages = self.timings.stages
        total = sum(one.core for one in stages.values())
        return [
            StageTime(name, one.core, one.wall, one.core / max(total, 1e-9), self.timings.images / max(one.core, 1e-9))
            for name, one in stages.items()
        ]

    def words(self) -> list[int]:
        """Words of the phrase of each label."""
        return [len((row["phrase"] or "").split()) for row in self.kept]

    def shares(self) -> list[float]:
        """Share of the image that each label covers."""
        return [_share(row) for row in self.kept]

    def as_json(self) -> dict[str, Any]:
        """The numbers for a program (docs/label.md)."""
        before, after = self.before_and_after()
        return {
            "images": self.images,
            "refused_images": {f"{stage}: {reason}": count for (stage, reason), count in self.refused_images.items()},
            "objects": len(self.objects),
            "kept": len(self.kept),
            "kept_share": self.kept_share,
            "funnel": [{"stage": one.stage, "refused": one.refused, "left": one.left} for one in self.funnel()],
            "mean_iou": {"before": before, "after": after} if self.is_judged else None,
            "curve": {name: [asdict(one) for one in self.curve(name)] for name in self.verifiers}
            if self.is_judged
            else None,
            "by_size": [
                dict(zip(("share", "objects", "mean_iou", "kept"), one, strict=True)) for one in self.by_size()
            ],
            "times": [asdict(one) for one in self.times()],
            "agreement": [
                dict(zip(("one", "other", "objects", "share"), one, strict=True)) for one in self.agreement()
            ],
        }


def curve_of(agreed: NDArray[np.float64], true: NDArray[np.float64]) -> list[CurvePoint]:
    """Of objects with a verifier's IoU [N] and the true one [N]: share and mean true IoU of those at each threshold."""
    points = []
    for least in THRESHOLDS:
        kept = agreed >= least
        mean = float(true[kept].mean()) if kept.any() else float("nan")
        points.append(CurvePoint(least, int(kept.sum()), float(kept.mean()) if len(kept) else float("nan"), mean))
    return points


def _verifies(entry: Mapping[str, Any]) -> bool:
    return entry["name"] in VERIFIERS


def _share(row: Mapping[str, Any]) -> float:
    return float(row["area"] / max(1, row["height"] * row["width"]))


def table_of(report: LabelReport) -> Table:
    """The funnel, for a person."""
    table = Table("stage", "refused", "left", "why", title=f"{report.images:,} images", title_justify="left")
    for column in table.columns[1:3]:
        column.justify = "right"
    table.add_row("found", "", f"{len(report.objects):,}", "")
    for step in report.funnel():
        why = ", ".join(f"{reason} ({count:,})" for reason, count in step.refused.items())
        table.add_row(escape(step.stage), f"{sum(step.refused.values()):,}", f"{step.left:,}", escape(why))
    return table


def times_of(report: LabelReport) -> Table:
    """Where the time went, for a person."""
    title = f"{report.timings.images:,} images"
    table = Table("stage", "core seconds", "share", "images a core second", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in report.times():
        table.add_row(escape(one.stage), f"{one.core:,.1f}", f"{one.share:.1%}", one.rate)
    return table
