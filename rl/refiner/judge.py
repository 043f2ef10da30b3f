"""A trained refiner judged on masks that it has not seen: tables, refiner.html and summary.json, beside smoothing.

Smoothing is what a refiner has to beat: a mask opened and closed with a disc, which sees no image. After Serra (1982):
opening removes what is thinner than the disc, closing fills gaps and bays that are narrower. The radius is relative to
the object, so that small and large ones are smoothed alike, and is chosen on training pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.example import Truth
from envs.geometry.damage import dilated
from envs.polygons import AnswerStatus
from policies.families.base import VisionTower
from policies.refiner.mask_refiner import MaskRefiner
from rl.config.refiner import RefineConfig
from rl.pages.charts import Chart, chart
from rl.pages.json_text import json_text
from rl.refiner.data import RefinerPairs, shares, truth_of_pair
from rl.refiner.errors import KINDS, SplitRow, gain_by_kind, split_dict, split_table, traits
from rl.refiner.page import BeforeAfter, RefinerPage, choose_changes, write_refiner_page
from rl.refiner.rank import RefinerRankSettings
from rl.refiner.scenes import CoarseScenes, refine_scenes
from rl.refiner.scores import MaskScores, RefinerSummary, refiner_table, score_masks, summarise_refined
from rl.run.metrics import read_curves
from rollout.disk import replace_text


@dataclass(frozen=True)
class RefinerReport:
    """A refiner on S scenes."""

    name: str
    """Description of the scenes, for people."""
    scenes: CoarseScenes
    masks: Sequence[NDArray[np.bool_]]
    """Refined masks [S], each [H, W]."""
    scores: MaskScores
    summary: RefinerSummary
    errors: Mapping[str, SplitRow] = field(default_factory=dict)
    """Sources of the errors (rl/refiner/errors.py), where that was asked."""
    baselines: Sequence[tuple[str, SplitRow]] = ()
    """Scores of what was made of the coarse masks without the refiner, by name."""

    @classmethod
    def of(
        cls,
        name: str,
        refiner: MaskRefiner,
        tower: VisionTower,
        scenes: CoarseScenes,
        errors: Mapping[str, SplitRow] | None = None,
        baselines: Mapping[str, Sequence[NDArray[np.bool_]]] | None = None,
    ) -> "RefinerReport":
        """Refine the coarse masks and score what comes of them; baselines: other masks [S] of the same scenes."""
        masks, scores = refine_scenes(refiner, tower, scenes)
        rows = [
            (title, SplitRow.of(*score_masks(others, scenes.truths, scenes.statuses)))
            for title, others in (baselines or {}).items()
        ]
        return cls(name, scenes, masks, scores, summarise_refined(scores), errors or {}, rows)

    def show(self, console: Console) -> None:
        """Print the tables."""
        console.print(f"refiner on {self.name}:", markup=False)
        console.print(refiner_table(self.summary))
        for title, row in self.baselines:
            console.print(f"{title}: gIoU {row.giou}, boundary IoU {row.boundary_iou}", markup=False)
        if self.errors:
            console.print(split_table(dict(self.errors)))

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        found = self.summary.as_dict()
        if self.errors:
            found["errors"] = split_dict(dict(self.errors))
        return found | {"baselines": split_dict(dict(self.baselines))}

    def write(self, path: Path, title: str, charts: Sequence[Chart], facts: Sequence[tuple[str, str]]) -> None:
        """Write the page."""
        objects = [traits(truth.union) for truth in self.scenes.truths]
        by_kind = [gain_by_kind(self.scores, objects, kinds) for kinds in KINDS]
        pictures = [self._picture(choice, k) for choice, k in choose_changes(self.scores)]
        page = RefinerPage(
            title, self.summary, self.name, by_kind, self.errors, self.baselines, pictures, charts, facts
        )
        write_refiner_page(path, page)

    def _picture(self, choice: str, k: int) -> BeforeAfter:
        scenes, scores = self.scenes, self.scores
        return BeforeAfter(
            example_id=scenes.example_ids[k],
            phrase=scenes.prompts[k],
            choice=choice,
            image=scenes.images[k],
            coarse=scenes.coarse[k],
            refined=self.masks[k],
            true=scenes.truths[k].union,
            coarse_iou=float(scores.coarse_iou[k]),
            refined_iou=float(scores.refined_iou[k]),
            predicted_coarse_iou=float(scores.predicted_coarse_iou[k]),
            predicted_iou=float(scores.predicted_iou[k]),
            taken=int(scores.taken[k]),
        )


SUMMARY = "summary.json"
_SMOOTHED_ON = 500
"""Number of training pairs that the radius of smoothing is chosen on."""


def judge(
    config: RefineConfig, settings: RefinerRankSettings, policy: VisionTower, refiner: MaskRefiner, console: Console
) -> None:
    """Score the refiner on what it has not seen: tables, refiner*.html, and summary.json, which ends the making."""
    out, pairs = Path(config.out), settings.pairs()
    parts = shares(pairs.image_hashes(), settings.calibration_share, settings.evaluation_share)
    judges: dict[str, RefinerReport] = {}
    if len(parts["evaluation"]):
        scenes = CoarseScenes.of_pairs(pairs, parts["evaluation"].tolist())
        smooth = {"smoothing": smoothed_like(pairs, parts["train"], scenes.coarse)}
        judges["pairs"] = RefinerReport.of("pairs of images kept apart", refiner, policy, scenes, baselines=smooth)
    if config.damaged_scenes:
        env = next(iter(settings.envs.values())).build(split="validation")
        scenes = CoarseScenes.of_damage(env, config.damaged_scenes, config.training.seed)
        smooth = {"smoothing": smoothed_like(pairs, parts["train"], scenes.coarse)}
        name = "damaged true masks of the split validation"
        judges["damaged"] = RefinerReport.of(name, refiner, policy, scenes, baselines=smooth)
    facts = [("steps", f"{settings.training.steps}"), ("config", (out / "config.yaml").read_text())]
    facts[:0] = [(f"pairs, {name}", f"{len(part):,}") for name, part in parts.items()]
    pages = [out / f"refiner{'' if k == 0 else '_' + name}.html" for k, name in enumerate(judges)]
    for path, report in zip(pages, judges.values(), strict=True):
        report.show(console)
        report.write(path, f"Refiner: {out.absolute().name}", refiner_charts(out), facts)
        console.print(f"wrote {path}", markup=False)
    counts = {"pairs": {name: len(part) for name, part in parts.items()}, "steps": settings.training.steps}
    numbers = {f"on_{name}": report.as_dict() for name, report in judges.items()}
    replace_text(out / SUMMARY, json_text(counts | numbers, indent=2) + "\n")


def refiner_charts(out: Path) -> list[Chart]:
    """How the training of the refiner in `out` went."""
    curves = read_curves(out)
    names = {"loss": "loss", "mask": "mask_loss", "Dice": "dice_loss", "error of predicted IoU": "iou_error"}
    return [
        chart("Losses", "loss", curves, {shown: f"refiner/{name}" for shown, name in names.items()}),
        chart("IoU in the crop", "IoU", curves, {"coarse": "refiner/coarse_iou", "last pass": "refiner/iou"}),
    ]


def smoothed_like(
    pairs: RefinerPairs, training: NDArray[np.int64], coarse: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.bool_]]:
    """Coarse masks [H, W], smoothed with the radius that serves the training pairs best."""
    fitted = [pairs.masks(int(number)) for number in training[:_SMOOTHED_ON]]
    share = fit_radius_share([one[0] for one in fitted], [truth_of_pair(one[1], one[2]) for one in fitted])
    return [smoothed_by_size(mask, share) for mask in coarse]


RADIUS_SHARES = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)
"""Radii to choose from, as shares of the square root of the mask's area; 0 leaves every mask as it is."""


def smoothed(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """A bool mask [H, W], opened and then closed with a disc of `radius_px`; as it came where nothing would be left.

    The disc holds the pixels whose centres are within radius_px, so a radius below 1 changes nothing. What lies beyond
    the image counts neither as drawn nor as left out.
    """
    opened = dilated(_eroded(mask, radius_px), radius_px)
    return _eroded(dilated(opened, radius_px), radius_px) if opened.any() else mask.copy()


def smoothed_by_size(mask: NDArray[np.bool_], radius_share: float) -> NDArray[np.bool_]:
    """A bool mask [H, W], smoothed with a radius of `radius_share` of the square root of its area."""
    return smoothed(mask, radius_share * math.sqrt(mask.sum()))


def fit_radius_share(coarse: Sequence[NDArray[np.bool_]], truths: Sequence[Truth]) -> float:
    """The one of RADIUS_SHARES whose smoothed coarse masks score the highest mean IoU; of equals the smallest.

    coarse: bool masks [H, W], one of the size of each truth. Raises ValueError without a pair, or for unequal numbers.
    """
    if not coarse or len(coarse) != len(truths):
        raise ValueError(f"{len(coarse)} coarse masks and {len(truths)} truths; give one or more pairs of them.")
    statuses = [AnswerStatus.OK] * len(coarse)
    means = [
        score_masks([smoothed_by_size(mask, share) for mask in coarse], truths, statuses)[0].mean()
        for share in RADIUS_SHARES
    ]
    return RADIUS_SHARES[int(np.argmax(means))]


def _eroded(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    return ~dilated(~mask, radius_px)
